"""``make backfill``: the whole year as one run, a partition a day."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import dagster as dg

from example_project.choose_model import HELD_OUT_FROM
from example_project.demo import accuracy_table
from example_project.runs import materialisations, materialise, quiet
from example_project.series import load_series

ASSETS = ("forecast_requests", "forecasts", "weekly_naive", "forecast_accuracy")


def main(first: str | None = None, last: str | None = None) -> int:
    """Materialises a range of days (by default all) and prints a table by month."""
    quiet()
    from example_project.definitions import days

    keys = days.get_partition_keys()
    first, last = first or keys[0], last or keys[-1]
    count = keys.index(last) - keys.index(first) + 1
    print(f"Backfilling {count} days × {len(load_series().routes)} routes as one run …")
    started = time.perf_counter()
    with dg.DagsterInstance.get() as instance:
        result = materialise(instance, ASSETS, first, last, "INFO")
        made = materialisations(instance, "forecasts", result.run_id)
        scored = materialisations(instance, "forecast_accuracy", result.run_id)
    seconds = time.perf_counter() - started
    if scored:
        print("\n" + accuracy_table(_by_month(scored)))
    total = sum(made[d]["dagster/partition_row_count"] for d in made)
    print(
        f"\n{len(made)} of {count} partitions, {total:,} rows in {seconds:.1f} s "
        f"({seconds / max(len(made), 1):.2f} s a partition, all assets); one run: {result.run_id}"
    )
    return 0 if result.success and len(made) == count else 1


def _by_month(scored: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for day in sorted(scored):
        groups[day[:7]].append(scored[day])
    held_out = [md for day, md in scored.items() if day >= HELD_OUT_FROM.isoformat()]
    return {**groups, **({f"held out, from {HELD_OUT_FROM:%B}": held_out} if held_out else {})}


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
