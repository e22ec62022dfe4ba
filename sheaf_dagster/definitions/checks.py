"""Asset checks that the inference step itself emits."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from sheaf_dagster.batch.file_checks import CHECKS, findings_of
from sheaf_dagster.batch.results import BatchResult, ValidationReport
from sheaf_dagster.batch.rows.sample import OutputSample
from sheaf_dagster.batch.rows.violation import Violation
from sheaf_dagster.batch.spec import OnError
from sheaf_dagster.errors import (
    InputValidationError,
    PredictError,
    ResponseMismatchError,
    SpecError,
    WorkerCrashError,
)

__all__ = ["CHECKS", "CheckLedger", "blocking", "check_specs", "severities_of"]

ERROR, WARN = dg.AssetCheckSeverity.ERROR, dg.AssetCheckSeverity.WARN

_WARNS = (
    "no_row_failed",
    "all_numbers_are_finite",
    "no_row_fell_back",
    "every_row_is_answered_as_asked",
)

_SHOWN = 20
_DESCRIPTION = 2000


def severities_of(
    changed: Mapping[str, dg.AssetCheckSeverity],
    on_invalid: OnError = "fail",
) -> dict[str, dg.AssetCheckSeverity]:
    """The severity of each check.

    Args:
        changed: By check, in place of the default.
        on_invalid: What becomes of invalid rows: where they are tolerated, they are a warning.

    Raises:
        SpecError: A name that is no check.
    """
    unknown = [name for name in changed if name not in CHECKS]
    if unknown:
        raise SpecError(
            f"check_severities: there is no check {unknown[0]!r}; known: {', '.join(CHECKS)}"
        )
    warns = (*_WARNS, "input_rows_are_valid") if on_invalid == "record" else _WARNS
    return {name: changed.get(name, WARN if name in warns else ERROR) for name in CHECKS}


def blocking(failed: Iterable[str], severities: Mapping[str, dg.AssetCheckSeverity]) -> list[str]:
    """Those of some failed checks that hold downstream assets back."""
    failed = set(failed)
    return [name for name in CHECKS if name in failed and severities[name] == ERROR]


def check_specs(
    key: dg.AssetKey, partitions_def: dg.PartitionsDefinition | None = None
) -> list[dg.AssetCheckSpec]:
    """The checks of an asset; Dagster lets a blocking one block where it fails with ERROR.

    Args:
        key: The asset.
        partitions_def: Its partitions, where each has results of its own.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.PreviewWarning)  # partitions_def, on each check
        return [
            dg.AssetCheckSpec(
                name, asset=key, description=text, blocking=True, partitions_def=partitions_def
            )
            for name, text in CHECKS.items()
        ]


@dataclass
class CheckLedger:
    """Collects findings over the partitions of a step: one evaluation a check."""

    severities: Mapping[str, dg.AssetCheckSeverity]
    files: int = 0
    rows: int = 0
    compared: int = 0
    passed_over_files: int = 0
    problems: dict[str, dict[str, str]] = field(default_factory=dict)
    violations: list[tuple[str, Violation]] = field(default_factory=list)
    _failed: set[str] = field(default_factory=set)

    def committed(self, partition: str, result: BatchResult, sample: OutputSample) -> list[str]:
        """Notes a committed file; names the checks that it fails."""
        self.files += 1
        self.rows += result.rows
        self.compared += sample.compared
        for check, text in findings_of(result, sample).items():
            self._add(check, partition, text)
        if not result.validation.ok:
            self._note_invalid(partition, result.validation, "they are error rows in the sink")
        return [name for name in CHECKS if partition in self.problems.get(name, {})]

    def passed_over(self, partition: str, rows: int, failed: Iterable[str]) -> None:
        """Notes a file of an earlier run of the chain, with the checks that it failed then."""
        self.files += 1
        self.rows += rows
        self.passed_over_files += 1
        for name in failed:
            self._add(name, partition, "failed in an earlier attempt of this run")

    def failed(self, partition: str, error: BaseException) -> None:
        """Notes a file that failed."""
        self._failed.add(partition)
        if isinstance(error, InputValidationError):
            self._note_invalid(partition, error.report, "nothing was run or written for this file")
        elif isinstance(error, ResponseMismatchError):
            self._add("every_row_is_answered", partition, str(error))
        elif isinstance(error, (PredictError, WorkerCrashError)):
            self._add("no_row_failed", partition, str(error))

    def _note_invalid(self, partition: str, report: ValidationReport, so: str) -> None:
        self._add("input_rows_are_valid", partition, _invalid(report, partition, so))
        room = max(0, _SHOWN - len(self.violations))
        self.violations += [(partition, v) for v in report.violations[:room]]

    def _add(self, check: str, partition: str, text: str) -> None:
        self.problems.setdefault(check, {})[partition] = text

    @property
    def blocking(self) -> list[str]:
        """The failed checks that hold downstream assets back."""
        return blocking(self.problems, self.severities)

    def results(self, key: dg.AssetKey) -> Iterator[dg.AssetCheckResult]:
        """One result a check; a check that nothing was looked at for is left out."""
        for name in CHECKS:
            bad = self.problems.get(name, {})
            if not bad and not self.files:
                continue
            yield dg.AssetCheckResult(
                passed=not bad,
                asset_key=key,
                check_name=name,
                severity=self.severities[name],
                description=_described(bad) if bad else self._passed(name),
                metadata=self._metadata(name, bad),
            )

    def _passed(self, name: str) -> str:
        rows = self.compared if name == "order_is_kept" else self.rows
        files = f" in {self.files:,} files" if self.files > 1 else ""
        earlier = f"; {self.passed_over_files:,} not run again" if self.passed_over_files else ""
        return f"{rows:,} rows{files}{earlier}"

    def _metadata(self, name: str, bad: Mapping[str, str]) -> dict[str, Any]:
        md: dict[str, Any] = {
            "files_checked": self.files + len(self._failed & bad.keys()),
            "rows_checked": self.compared if name == "order_is_kept" else self.rows,
        }
        if bad and list(bad) != [""]:
            first = list(bad.items())[:_SHOWN]
            md["failing"] = dg.MetadataValue.json({k: v[:500] for k, v in first})
            md["failing_count"] = len(bad)
        if bad and name == "input_rows_are_valid":
            md["violations"] = _table(self.violations)
        return md


def _invalid(report: ValidationReport, partition: str, so: str) -> str:
    """The first lines and fields, then the counts; in one line, since the UI folds more."""
    shown = "; ".join(str(v) for v in report.violations[:3])
    rest = report.total_violations - min(3, len(report.violations))
    more = f"; and {rest:,} more" if rest > 0 else ""
    where = "" if partition else f"{report.source}, "
    return (
        f"{where}{shown}{more}. {report.invalid_rows:,} of {report.rows:,} rows are invalid; {so}."
    )


def _described(bad: Mapping[str, str]) -> str:
    first = list(bad.items())[:_SHOWN]
    text = " ".join(f"{partition}: {text}" if partition else text for partition, text in first)
    if len(bad) > len(first):
        text = f"{len(bad):,} partitions, first of them {text}"
    return text if len(text) <= _DESCRIPTION else text[: _DESCRIPTION - 1] + "…"


def _table(violations: list[tuple[str, Violation]]) -> dg.TableMetadataValue:
    partitioned = any(partition for partition, _ in violations)
    columns = [*(["partition"] if partitioned else []), "line", "field", "problem", "got"]
    records = []
    for partition, v in violations:
        cells: list[str | int] = [
            *([partition] if partitioned else []),
            v.line,
            v.field,
            v.message,
            v.excerpt,
        ]
        records.append(dg.TableRecord(dict(zip(columns, cells, strict=True))))
    kinds = {"line": "int"}
    return dg.MetadataValue.table(
        records,
        schema=dg.TableSchema([dg.TableColumn(c, kinds.get(c, "string")) for c in columns]),
    )
