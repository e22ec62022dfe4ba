"""What is checked of every committed file, and what was found."""

from __future__ import annotations

from sheaf_dagster.batch.results import BatchResult
from sheaf_dagster.batch.rows.sample import OutputSample
from sheaf_dagster.contracts import deviations_of

__all__ = ["CHECKS", "findings_of"]

CHECKS = {
    "input_rows_are_valid": "Every row of the source matches its contract. If not, the lines and "
    "fields are named, and nothing was run or written for that file (on_invalid: fail), or these "
    "rows are error rows in the sink (on_invalid: record).",
    "every_row_is_answered": "The sink holds one line for each row of the source.",
    "order_is_kept": "The n-th line answers the n-th row. The ids of the first rows of each file "
    "are compared.",
    "no_row_failed": "The model answered every row. Failed ones are in the sink as error rows "
    "(on_error: record) or ended the job (on_error: fail).",
    "all_numbers_are_finite": "No answer holds NaN or infinity, which are written as null.",
    "no_row_fell_back": "The model that was asked for answered every row. A row that fell back was "
    "answered by a simpler method; its `metadata` says which.",
    "every_row_is_answered_as_asked": "No input was truncated, no answer clipped and no field of a "
    "request ignored. Such rows say so in `metadata.deviations`.",
}
"""By name what each looks at."""

_SHOWN_ROWS = 5


def findings_of(result: BatchResult, sample: OutputSample) -> dict[str, str]:
    """The checks that a committed file fails, each with what was found.

    Args:
        result: The file's.
        sample: Its first rows.
    """
    found: dict[str, str] = {}
    if not result.validation.ok:
        found["input_rows_are_valid"] = (
            f"{result.validation.invalid_rows:,} of {result.rows:,} rows are invalid; they are error "
            "rows in the sink"
        )
    if result.output_rows != result.rows:
        found["every_row_is_answered"] = f"{result.output_rows:,} answers to {result.rows:,} rows"
    if not sample.in_order:
        found["order_is_kept"] = "a response answers another row's request"
    if result.non_finite:
        found["all_numbers_are_finite"] = f"{result.non_finite:,} numbers"
    if result.error_rows:
        invalid = result.validation.invalid_rows
        these = f", {invalid:,} of them invalid" if invalid else ""
        found["no_row_failed"] = f"{result.error_rows:,} of {result.rows:,} rows failed{these}"
    for kind, n in result.deviations.items():
        check = "no_row_fell_back" if kind == "fell_back" else "every_row_is_answered_as_asked"
        text = f"{n:,} of {result.rows:,} rows {kind.replace('_', ' ')}{_first(kind, n, sample)}"
        found[check] = f"{found[check]}, {text}" if check in found else text
    return found


def _first(kind: str, n: int, sample: OutputSample) -> str:
    """Which rows, as far as the first rows of the sink tell."""
    found = [i for i, (_, a) in enumerate(sample.pairs, 1) if kind in deviations_of(a)]
    if not found:
        return ""
    shown = ", ".join(map(str, found[:_SHOWN_ROWS]))
    which = "row" if len(found) == 1 else "rows"
    return f" ({which} {shown}{' …' if n > _SHOWN_ROWS or n > len(found) else ''})"
