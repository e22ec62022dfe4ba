"""Validating files against a contract alone: no backend, no cluster, nothing written."""

from __future__ import annotations

import itertools
import tempfile
import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sheaf_dagster.batch.progress import OnProgress
from sheaf_dagster.batch.results import BatchProgress, ValidationReport
from sheaf_dagster.batch.rows.chunk_validation import validate_chunks
from sheaf_dagster.batch.rows.findings import ChunkFindings
from sheaf_dagster.batch.rows.invalid import lines_in, packed_lines
from sheaf_dagster.batch.rows.kept_agreement import KeptAgreement
from sheaf_dagster.batch.rows.kept_columns import types_in_source
from sheaf_dagster.batch.rows.occurrences import Occurrences
from sheaf_dagster.batch.rows.requests import RowContract
from sheaf_dagster.batch.rows.unique import Duplicate, SeenKeys
from sheaf_dagster.batch.rows.unknown import count_rows
from sheaf_dagster.batch.rows.violation import MAX_VIOLATIONS_SHOWN, Violation
from sheaf_dagster.batch.spec import BatchOptions
from sheaf_dagster.errors import SourceChangedError
from sheaf_dagster.storage import Chunk, Location, ScannedSource, files_of, scan_source
from sheaf_dagster.storage.formats import is_table, row_word

__all__ = ["validate_files", "validate_source"]

_BATCH_SIZE = 64
_AS_THEY_ARE = BatchOptions()


def validate_source(
    source: ScannedSource, findings: Iterable[ChunkFindings]
) -> tuple[ValidationReport, tuple[Chunk, ...]]:
    """The report over all chunks, and the chunks with the checksums of what was validated."""
    report = ValidationReport(
        source=", ".join(f.stored.uri for f in source.files),
        rows=source.rows,
        source_digest=source.digest,
        source_bytes=source.stored_bytes,
    )
    with SeenKeys() as seen:
        chunks, key, is_unique = _validated(source, findings, report, seen)
        if is_unique:
            _refuse_duplicates(report, source, key, seen, chunks)
        else:
            _count_duplicates(report, source, key, seen)
    return report, tuple(chunks)


def _validated(
    source: ScannedSource,
    findings: Iterable[ChunkFindings],
    report: ValidationReport,
    seen: SeenKeys,
) -> tuple[list[Chunk], str, bool]:
    """Takes findings into the report; returns the chunks, the rows' key and whether it is unique."""
    validated, key, is_unique = [], "", False
    occurrences = Occurrences()
    several = len(source.files) > 1
    for chunk, found in zip(source.chunks, findings, strict=True):
        if found.rows != chunk.rows:
            source.check_unchanged()
            raise SourceChangedError(
                f"{source.files[chunk.file].stored.uri} changed while it was validated (from "
                f"{row_word(source.files[chunk.file].stored.uri)} {chunk.first_line}); run again once its writer has finished"
            )
        for violation in found.violations[: MAX_VIOLATIONS_SHOWN - len(report.violations)]:
            uri = source.files[chunk.file].stored.uri
            if several:
                violation.file = uri
            if is_table(uri):
                violation.column = source.files[chunk.file].fields.column_of(violation.field)
            report.violations.append(violation)
        report.total_violations += found.total_violations
        report.invalid_rows += found.invalid_rows
        count_rows(report.unknown_fields, found.unknown_fields)
        report.meant.update({n: m for n, m in found.meant.items() if n in report.unknown_fields})
        seen.add(chunk.file, found.keys)
        occurrences.add(found.hashes)
        key, is_unique = found.key, found.key_is_unique
        validated.append(chunk.validated(found.crc, found.invalid))
    found_again = zip(validated, occurrences.by_chunk(), strict=True)
    chunks = [replace(chunk, repeats=repeats) for chunk, repeats in found_again]
    return chunks, key, is_unique


def _count_duplicates(
    report: ValidationReport, source: ScannedSource, key: str, seen: SeenKeys
) -> None:
    """Counts rows whose id an earlier one has, and names the first."""
    report.duplicate_ids, duplicates = seen.duplicates()
    found = next(duplicates, None)
    if found is None:
        return
    uri, first = (source.files[n].stored.uri for n in (found.file, found.first_file))
    where = "" if found.file == found.first_file else f" of {first}"
    report.first_duplicate = (
        f"{row_word(uri)} {found.line} has the '{key}' of {row_word(first)} "
        f"{found.first_line}{where}"
    )


def _refuse_duplicates(
    report: ValidationReport,
    source: ScannedSource,
    key: str,
    seen: SeenKeys,
    chunks: list[Chunk],
) -> None:
    """Counts rows whose key an earlier one has, and marks their lines in the chunks."""
    number, duplicates = seen.duplicates()
    report.total_violations += number
    report.invalid_rows += number
    names = [f.stored.uri for f in source.files]
    starts = [(chunk.file, chunk.first_line) for chunk in chunks]
    in_chunk = itertools.groupby(duplicates, lambda d: bisect_right(starts, (d.file, d.line)) - 1)
    for index, group in in_chunk:
        some, chunk = list(group), chunks[index]
        lines = lines_in(chunk.invalid, chunk.first_line).union(found.line for found in some)
        packed = packed_lines(sorted(lines), chunk.first_line)
        chunks[index] = chunk.validated(chunk.crc, packed)
        _show_duplicates(report, key, names, some)


def _show_duplicates(
    report: ValidationReport, field: str, names: Sequence[str], duplicates: Sequence[Duplicate]
) -> None:
    for found in duplicates[: MAX_VIOLATIONS_SHOWN - len(report.violations)]:
        first = names[found.first_file]
        other = "" if found.file == found.first_file else f"{first}, "
        report.violations.append(
            Violation(
                line=found.line,
                field=field,
                message=f"is the same as on {other}{row_word(first)} {found.first_line}; each row "
                "needs its own",
                file=names[found.file] if len(names) > 1 else "",
                column=field if is_table(names[found.file]) else None,
            )
        )


def validate_files(
    contract: RowContract,
    sources: Sequence[str],
    storage_options: Mapping[str, Any] | None = None,
    *,
    options: BatchOptions = _AS_THEY_ARE,
    batch_size: int = _BATCH_SIZE,
    row_limit: int | None = None,
    on_progress: OnProgress | None = None,
) -> ValidationReport:
    """Validates every row of some files, read as one, against a contract.

    It streams: its memory doesn't grow with the files.

    Args:
        contract: What rows must be.
        sources: Paths or URIs, ``.gz``, ``.zst`` and ``.parquet`` by suffix.
        storage_options: Arguments of their fsspec file system.
        options: Say which of their columns is which field.
        batch_size: Rows of a batch, by which the files are cut into chunks.
        row_limit: Validate the first rows only.
        on_progress: Called after each chunk.

    Raises:
        SourceError: A file is missing or can't be read.
        SpecError: A field can't be kept as a column of a table.
    """
    started = time.perf_counter()
    files = files_of([Location.of(uri, dict(storage_options or {})) for uri in sources])
    fields = contract.fields_of(options)
    with tempfile.TemporaryDirectory(prefix="sheaf-") as folder:
        types = types_in_source(options, fields, files)
        source = scan_source(
            files,
            batch_size,
            fields=fields,
            row_limit=row_limit,
            spool=Location.of(folder),
            types=types,
        )
        agreement = KeptAgreement(options, types, source)
        contract = replace(contract, columns=agreement.columns)
        findings: Iterable[ChunkFindings] = agreement.taken_from(
            validate_chunks(contract, [f.text for f in source.files], source.chunks)
        )
        if on_progress is not None:
            findings = _telling(findings, source, on_progress, started)
        report, _ = validate_source(source, findings)
    if report.ok and (refused := agreement.refusal()) is not None:
        raise refused
    report.seconds = time.perf_counter() - started
    return report


def _telling(
    findings: Iterable[ChunkFindings], source: ScannedSource, tell: OnProgress, started: float
) -> Iterator[ChunkFindings]:
    began, done = time.perf_counter(), 0
    for found in findings:
        yield found
        done += found.rows
        now = time.perf_counter()
        rate = done / max(now - began, 1e-9)
        tell(
            BatchProgress(
                rows_done=done,
                rows_total=source.rows,
                files_done=0,
                files_total=1,
                rows_per_second=rate,
                eta_seconds=(source.rows - done) / rate if rate else None,
                elapsed_seconds=now - started,
            )
        )
