"""``make demo``: the three ways in, in one story, through real Dagster runs.

All runs share one Ray. By themselves, each would start one of its own.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from example_project import embed
from example_project.accuracy import Accuracy
from example_project.root import ROOT
from example_project.runs import (
    failed_check,
    forecast_file,
    materialisations,
    materialise,
    quiet,
    relative,
    table,
)
from example_project.series import load_series
from sheaf_dagster import ray_session

__all__ = ["BROKEN", "FIRST", "LAST", "accuracy_table"]

FIRST, LAST = "2013-07-01", "2013-07-31"
"""Held out: the month after the last day that the model was chosen on."""

BROKEN = "2013-07-13"
"""The day whose file is broken on purpose."""

_BROKEN_LINE = 3
_STORY = """How long will flights from New York be in the air next week? The demo forecasts {} routes
for each day of July. The model was chosen on March to June. At the end its errors are compared with
those of repeating last week."""


def main(*groups: str) -> int:
    """Tells the story of the forecasts, then embeds.

    Args:
        groups: What to embed, such as ``digits``.
    """
    quiet()
    with ray_session():
        return _forecast() or max((embed.main(group) for group in groups), default=0)


def _forecast() -> int:
    """Materialises a day, backfills the month with a broken day, and takes a file that lands."""
    print(_STORY.format(len(load_series().routes)))
    with dg.DagsterInstance.get() as instance:
        try:
            _one_day(instance)
            _backfill(instance)
            _landing_file(instance)
            scored = _scores(instance)
        except _DemoFailedError as e:
            print(f"{e}; its log is above.", file=sys.stderr)
            return 1
    print("\nForecasts of July against what happened (7 days ahead; lower is better):\n")
    print(accuracy_table(_by_week(scored)))
    print(
        "\nWAPE: sum of absolute errors / sum of minutes. Quantile loss: the same measure for the"
        "\n0.1, 0.5 and 0.9 quantiles. The band should hold 80 %. `make ui` shows all of this."
    )
    return 0


class _DemoFailedError(Exception):
    """A run ended otherwise than the story says."""


def _run(
    instance: dg.DagsterInstance,
    assets: Sequence[str],
    first: str,
    last: str,
    *,
    succeeds: bool = True,
    config: Mapping[str, Any] | None = None,
) -> dg.ExecuteInProcessResult:
    log_level = "ERROR" if succeeds else "CRITICAL"
    result = materialise(instance, assets, first, last, log_level, config)
    if result.success != succeeds:
        raise _DemoFailedError(f"The run of {', '.join(assets)} from {first} to {last} failed")
    return result


def _one_day(instance: dg.DagsterInstance) -> None:
    print(f"\n1. Materialise a day, {FIRST}, on Ray …")
    result = _run(instance, ("forecast_requests", "forecasts"), FIRST, FIRST)
    asked = materialisations(instance, "forecast_requests", result.run_id)[FIRST]
    made = materialisations(instance, "forecasts", result.run_id)[FIRST]
    print(
        f"   {asked['dagster/partition_row_count']} rows in, "
        f"{made['dagster/partition_row_count']} rows out, in order: "
        f"{relative(made['dagster/uri'])}"
        f"\n   In the UI: Assets › forecasts › Materialize… › {FIRST}"
    )


def _backfill(instance: dg.DagsterInstance) -> None:
    _run(instance, ("forecast_requests",), FIRST, LAST)
    broken = ROOT / "requests" / f"{BROKEN}.jsonl"
    whole = broken.read_text()
    broken.write_text(_with_a_broken_line(whole))
    print(f"\n2. Backfill {FIRST} to {LAST} as one run, with a broken file on {BROKEN} …")
    started = time.perf_counter()
    result = _run(instance, ("forecasts",), FIRST, LAST, succeeds=False)
    seconds = time.perf_counter() - started
    made = materialisations(instance, "forecasts", result.run_id)
    print(f"   {len(made)} days materialised in {seconds:.0f} s, 1 failed. Its check says:")
    print(f"     {failed_check(result, 'input_rows_are_valid')}")
    broken.write_text(whole)
    # Eighty rows: a Ray cluster would take longer to start than they take.
    _run(
        instance, ("forecasts",), BROKEN, BROKEN,
        config={"forecasts": {"config": {"compute": "local"}}},
    )  # fmt: skip
    print(
        f"   The demo repairs the file, and only {BROKEN} runs again, with compute: local."
        f"\n   In the UI: Materialize… › [{FIRST}...{LAST}] › Launch backfill. The Checks tab names the"
        "\n   line. Then Materialize… › that day; the Launchpad sets another compute or batch size"
    )
    _run(instance, ("weekly_naive", "forecast_accuracy"), FIRST, LAST)


def _with_a_broken_line(text: str) -> str:
    lines = text.splitlines()
    request = json.loads(lines[_BROKEN_LINE - 1])
    request["history"][-1] = "n/a"
    lines[_BROKEN_LINE - 1] = json.dumps(request)
    return "\n".join(lines) + "\n"


def _landing_file(instance: dg.DagsterInstance) -> None:
    landed = ROOT / "inbox" / "august.jsonl"
    landed.parent.mkdir(parents=True, exist_ok=True)
    print(f"\n3. A file lands: {relative(str(landed))} …")
    temporary = landed.with_suffix(".tmp")
    shutil.copyfile(ROOT / "requests" / f"{LAST}.jsonl", temporary)
    temporary.replace(landed)
    result = forecast_file(instance, landed.stem, "ERROR")
    if not result.success:
        raise _DemoFailedError("The run of the file that landed failed")
    made = materialisations(instance, "inbox_forecasts", result.run_id)[landed.stem]
    print(
        f"   The sensor asked for a run of partition {landed.stem!r}: "
        f"{made['dagster/partition_row_count']} forecasts in {relative(made['dagster/uri'])}"
        "\n   In the UI: `make ui`, drop another file there, then Automation ›"
        " inbox_forecasts_arrivals and Runs"
    )


def _scores(instance: dg.DagsterInstance) -> dict[str, dict[str, Any]]:
    scored = {
        day: made
        for day, made in materialisations(instance, "forecast_accuracy").items()
        if FIRST <= day <= LAST
    }
    if len(scored) < 31:
        raise _DemoFailedError(f"Only {len(scored)} of 31 days were scored")
    return scored


def _by_week(scored: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    days = sorted(scored)
    weeks = [days[i : i + 7] for i in range(0, len(days), 7)]
    rows = {f"{week[0]} to {week[-1][-2:]}": [scored[d] for d in week] for week in weeks}
    return {**rows, "all": list(scored.values())}


def accuracy_table(groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The forecasts' scores beside those of repeating last week, a line a group of days."""
    rows = []
    for name, scored in groups.items():
        ours, naive = (
            Accuracy.mean(Accuracy.of(day, prefix) for day in scored) for prefix in ("", "naive_")
        )
        rows.append(
            [
                name,
                len(scored),
                f"{ours.wape:.1%}",
                f"{naive.wape:.1%}",
                f"{ours.quantile_loss:.1%}",
                f"{naive.quantile_loss:.1%}",
                f"{ours.coverage:.0%}",
                f"{naive.coverage:.0%}",
            ]
        )
    header = ["days of 2013", "days", "WAPE", "last week", "quantile loss", "last week",
              "in 80 % band", "last week"]  # fmt: skip
    return table(header, rows)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
