"""What commands say, and the exit codes that they end with.

What a command found goes to stdout, progress and errors to stderr.

====  ==============================================================================
0     done
1     the job failed; running it again unchanged won't help
2     the command, the spec or the limits can't work
3     rows don't match their contract
4     the job failed for a passing reason (a busy cluster or sink, say): run it again
130   interrupted by Ctrl-C, 143 by SIGTERM; what is finished is kept for the next run
====  ==============================================================================
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from sheaf_dagster.batch.estimate import Estimate
from sheaf_dagster.batch.results import BatchOutcome, ValidationReport
from sheaf_dagster.errors import (
    ClusterCapacityError,
    InputValidationError,
    SheafError,
    SpecError,
)

__all__ = [
    "AGAIN",
    "FAILED",
    "INTERRUPTED",
    "INVALID",
    "OK",
    "TERMINATED",
    "USAGE",
    "code_of",
    "estimate_rows",
    "print_json",
    "print_table",
    "report_fields",
    "tell_error",
    "tell_outcome",
    "valid_line",
]

OK, FAILED, USAGE, INVALID, AGAIN, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 4, 130, 143


def code_of(error: BaseException) -> int:
    """The exit code of an error."""
    if isinstance(error, InputValidationError):
        return INVALID
    if isinstance(error, SheafError) and error.retryable:
        return AGAIN
    return USAGE if isinstance(error, (SpecError, ClusterCapacityError)) else FAILED


def tell_outcome(outcome: BatchOutcome, *, as_json: bool) -> None:
    """Says how one file of a job ended."""
    if outcome.error is not None:
        tell_error(outcome.error, as_json=as_json, sink=outcome.spec.sink)
        return
    result = outcome.result
    if result is None:
        if as_json:
            print_json({"ok": True, "sink": outcome.spec.sink, "unchanged": True})
        else:
            click.echo(f"{outcome.spec.sink}: no failed rows, nothing to run")
        return
    if as_json:
        plain = result.model_dump(mode="json", exclude={"validation"})
        print_json({"ok": True, **plain, "rows_per_second": round(result.rows_per_second, 3)})
        return
    remarks = [
        f"{result.resumed_rows:,} resumed" if result.resumed_rows else "",
        f"{result.reused_rows:,} kept" if result.reused_rows else "",
        f"{result.error_rows:,} error rows" if result.error_rows else "",
        f"{result.non_finite:,} numbers not finite" if result.non_finite else "",
        f"cost {result.cost:.4g}" if result.cost is not None else "",
        *(f"{n:,} {kind.replace('_', ' ')}" for kind, n in result.deviations.items()),
    ]
    noted = "".join(f", {r}" for r in remarks if r)
    click.echo(
        f"{result.sink}: {result.rows:,} rows in {result.seconds:.1f} s "
        f"({result.rows_per_second:,.0f} rows/s{noted})"
    )


def tell_error(error: BaseException, *, as_json: bool, sink: str | None = None) -> None:
    """Says what went wrong: to stderr, or as JSON to stdout."""
    retryable = bool(getattr(error, "retryable", False))
    if as_json:
        told: dict[str, Any] = {"ok": False, "exit_code": code_of(error)}
        if sink is not None:
            told["sink"] = sink
        told["error"] = {
            "type": type(error).__name__,
            "message": str(error),
            "retryable": retryable,
        }
        if isinstance(error, InputValidationError):
            told["validation"] = report_fields(error.report, 100)
        print_json(told)
        return
    click.echo(f"{type(error).__name__}: {error}", err=True)


def report_fields(report: ValidationReport, shown: int) -> dict[str, Any]:
    """A report as JSON holds it, with the first violations."""
    plain = report.model_dump(mode="json")
    plain["violations"] = plain["violations"][:shown]
    return plain


def valid_line(report: ValidationReport) -> str:
    """A report without violations, in words."""
    return f"{report.source}: all {report.rows:,} rows are valid ({report.seconds:.1f} s)"


def estimate_rows(found: Estimate, asset: str | None) -> list[tuple[str, str]]:
    """An estimate in words; what can't be known says what it takes to know it."""

    def said(number: float | None, form: str, otherwise: str) -> str:
        return otherwise if number is None else format(number, form)

    rows = [("rows", f"{found.rows:,} in {found.files:,} file{'s' * (found.files != 1)}")]
    if found.invalid_rows:
        rows.append(("invalid rows", f"{found.invalid_rows:,}; `validate` names them"))
    if found.error_rows:
        rows.append(("error rows", f"{found.error_rows:,} (invalid rows); `validate` names them"))
    no_past = "not known: " + (
        f"no materialisation of {asset} says" if asset else "name an asset with --asset"
    )
    if found.prompt_tokens is not None:
        unpriced = "not known: give batch.price_per_million"
        priced = found.cost is not None or found.most_cost is not None
        rows += [
            ("prompt tokens", f"{found.prompt_tokens:,}"),
            ("completion tokens", said(found.completion_tokens, ",", no_past)),
            (
                "completion tokens at most",
                said(found.most_completion_tokens, ",", "not known: a row has no limit"),
            ),
            ("cost", said(found.cost, ".4g", no_past if priced else unpriced)),
        ]
        if found.most_cost is not None:
            rows.append(("cost at most", f"{found.most_cost:.4g}"))
    rows.append(("seconds", said(found.seconds, ",.0f", no_past)))
    if found.based_on:
        rows.append(("based on", f"{found.based_on} materialisations of {asset}"))
    return rows


def print_json(value: Any) -> None:
    """One line, whole at once: results of several files come one a line."""
    click.echo(json.dumps(value, ensure_ascii=False, allow_nan=False))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Aligned columns."""
    cells = [tuple(header), *(tuple(r) for r in rows)]
    widths = [max(len(r[i]) for r in cells) for i in range(len(header))]
    for row in cells:
        click.echo("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip())
