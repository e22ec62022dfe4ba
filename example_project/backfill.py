"""``make backfill``: the whole year as one run, a partition a day."""

from __future__ import annotations

import sys
import time
from collections import defaultdict

import dagster as dg

from example_project.demo import ASSETS
from example_project.runs import materialisations, materialise, quiet, table


def main(first: str | None = None, last: str | None = None) -> int:
    """Materialises a range of days (by default all) and prints a table by month."""
    quiet()
    from example_project.definitions import days

    keys = days.get_partition_keys()
    first, last = first or keys[0], last or keys[-1]
    count = keys.index(last) - keys.index(first) + 1
    print(f"Backfilling {count} days × 182 routes as one run …")
    started = time.perf_counter()
    with dg.DagsterInstance.get() as instance:
        result = materialise(instance, ASSETS, first, last, "INFO")
        made = materialisations(instance, "forecasts", result.run_id)
        scored = materialisations(instance, "forecast_accuracy", result.run_id)
    seconds = time.perf_counter() - started
    months: dict[str, list[str]] = defaultdict(list)
    for day in sorted(made):
        months[day[:7]].append(day)
    rows = []
    for month, in_month in months.items():
        done = [scored[d] for d in in_month if d in scored]
        rows.append(
            [
                month,
                len(in_month),
                sum(made[d]["dagster/partition_row_count"] for d in in_month),
                *(
                    f"{sum(s[name] for s in done) / len(done):.1%}" if done else "-"
                    for name in ("wape", "naive_wape", "coverage")
                ),
            ]
        )
    header = ["month", "partitions", "rows", "WAPE", "naive WAPE", "in 80 % band"]
    print("\n" + table(header, rows))
    total = sum(made[d]["dagster/partition_row_count"] for d in made)
    print(
        f"\n{len(made)} of {count} partitions, {total:,} rows in {seconds:.1f} s "
        f"({seconds / max(len(made), 1):.2f} s a partition, all assets); one run: {result.run_id}"
    )
    return 0 if result.success and len(made) == count else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
