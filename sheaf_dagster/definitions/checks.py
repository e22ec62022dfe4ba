"""Asset checks that the inference step itself emits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import dagster as dg

from sheaf_dagster.batch.results import BatchResult
from sheaf_dagster.batch.sample import OutputSample
from sheaf_dagster.errors import InputValidationError, ResponseMismatchError

__all__ = ["CHECKS", "CheckLedger", "check_specs"]

CHECKS: dict[str, str] = {
    "input_rows_are_valid": "Every row of the source matches its contract.",
    "every_row_is_answered": "The sink holds one line for each row of the source.",
    "order_is_kept": "The n-th line answers the n-th row.",
    "all_numbers_are_finite": "No answer holds NaN or infinity (they are written as null).",
    "no_error_rows": "No row failed in the model (on_error: record).",
}
_BLOCKING = ("input_rows_are_valid", "every_row_is_answered", "order_is_kept")


def check_specs(key: dg.AssetKey) -> list[dg.AssetCheckSpec]:
    """The checks of an asset; those whose failure makes downstream wrong block it."""
    return [
        dg.AssetCheckSpec(name, asset=key, description=text, blocking=name in _BLOCKING)
        for name, text in CHECKS.items()
    ]


@dataclass
class CheckLedger:
    """Collects findings over the partitions of a step: one evaluation a check."""

    severities: Mapping[str, dg.AssetCheckSeverity]
    done: int = 0
    problems: dict[str, dict[str, str]] = field(default_factory=dict)

    def committed(self, partition: str, result: BatchResult, sample: OutputSample) -> None:
        """Notes a committed file."""
        self.done += 1
        lines = sample.lines
        if lines is not None and lines != result.rows:
            self._add("every_row_is_answered", partition, f"{lines} lines for {result.rows} rows")
        if not sample.in_order:
            self._add("order_is_kept", partition, "a response answers another row's request")
        if result.non_finite:
            self._add("all_numbers_are_finite", partition, f"{result.non_finite} numbers")
        if result.error_rows:
            self._add("no_error_rows", partition, f"{result.error_rows} of {result.rows} rows")

    def failed(self, partition: str, error: BaseException) -> None:
        """Notes a file that failed."""
        if isinstance(error, InputValidationError):
            self._add("input_rows_are_valid", partition, error.report.summary(shown=3))
        elif isinstance(error, ResponseMismatchError):
            self._add("every_row_is_answered", partition, str(error))

    def _add(self, check: str, partition: str, text: str) -> None:
        self.problems.setdefault(check, {})[partition] = text

    def results(self, key: dg.AssetKey) -> Iterator[dg.AssetCheckResult]:
        """One result a check; a check that nothing was looked at for is left out."""
        for name in CHECKS:
            bad = self.problems.get(name, {})
            if not bad and not self.done:
                continue
            yield dg.AssetCheckResult(
                passed=not bad,
                asset_key=key,
                check_name=name,
                severity=self.severities.get(
                    name,
                    dg.AssetCheckSeverity.ERROR
                    if name in _BLOCKING
                    else dg.AssetCheckSeverity.WARN,
                ),
                description="; ".join(f"{k}: {v}" if k else v for k, v in bad.items())[:2000]
                or None,
                metadata={
                    "files_checked": self.done + len(bad),
                    **({"failing": dg.MetadataValue.json(bad)} if bad else {}),
                },
            )
