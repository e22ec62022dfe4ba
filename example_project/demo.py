"""``make demo``: a few days of forecasts through a real Dagster run."""

from __future__ import annotations

import sys

import dagster as dg

from example_project.runs import materialisations, materialise, quiet, relative, table

FIRST, LAST = "2013-06-10", "2013-06-12"
ASSETS = ("forecast_requests", "forecasts", "forecast_accuracy")


def main() -> int:
    """Materialises three days and prints what came out."""
    quiet()
    print(f"Forecasting New York departures for {FIRST} to {LAST}: one Dagster run, on Ray …")
    with dg.DagsterInstance.get() as instance:
        result = materialise(instance, ASSETS, FIRST, LAST, "ERROR")
        if not result.success:
            print("The run failed; its log is above.", file=sys.stderr)
            return 1
        requests = materialisations(instance, "forecast_requests", result.run_id)
        made = materialisations(instance, "forecasts", result.run_id)
        scored = materialisations(instance, "forecast_accuracy", result.run_id)
    rows = [
        [
            day,
            requests[day]["dagster/partition_row_count"],
            md["dagster/partition_row_count"],
            f"{md['rows_per_second']:.0f}",
            f"{scored[day]['wape']:.1%}",
            f"{scored[day]['naive_wape']:.1%}",
            f"{scored[day]['coverage']:.0%}",
            relative(md["dagster/uri"]),
        ]
        for day, md in sorted(made.items())
    ]
    header = [
        "partition", "rows in", "rows out", "rows/s", "WAPE", "naive WAPE", "in 80 % band", "output"
    ]  # fmt: skip
    print("\n" + table(header, rows))
    print(
        "\nWAPE: sum of absolute errors over the sum of departures, 7 days ahead; naive: last week"
        "\nagain (hard to beat here, since schedules repeat weekly). `make ui` shows these runs."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
