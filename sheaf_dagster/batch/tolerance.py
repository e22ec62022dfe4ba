"""How many rows of a file may fail before that file is given up."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

import orjson

from sheaf_dagster.batch.messages import shortened
from sheaf_dagster.batch.results import ValidationReport
from sheaf_dagster.batch.spec import BatchOptions
from sheaf_dagster.errors import InputValidationError, SheafError, TooManyErrorsError
from sheaf_dagster.storage import Chunk, Part, PartStore, ScannedSource, lines_in_chunk, store_at
from sheaf_dagster.storage.formats import row_word

__all__ = ["most_error_rows", "refusal_of", "too_many_errors"]

_SHOWN = 3
_SHOWN_CHARS = 200


def most_error_rows(options: BatchOptions, rows: int) -> float:
    """The error rows that a file may have: the smaller of what both limits allow, or infinity.

    Args:
        options: With the limits.
        rows: Of the file.
    """
    most = math.inf if options.max_error_rows is None else options.max_error_rows
    if options.max_error_fraction is None:
        return most
    # 0.29 * 100 is 28.999…: a row more or less is decided by the numbers as they are written.
    return min(most, math.floor(rows * Fraction(str(options.max_error_fraction))))


def too_many_errors(
    options: BatchOptions,
    source: ScannedSource,
    chunks: Sequence[Chunk],
    store: PartStore,
    parts: Mapping[int, Part],
) -> TooManyErrorsError:
    """The error of a file with more error rows than it may have; names the first ones by line.

    Args:
        options: With the limits.
        source: The file, as it was scanned.
        chunks: All of its chunks.
        store: Where the parts lie.
        parts: What is answered so far, by chunk.
    """
    errors = (
        f"{uri}, {row_word(uri)} {line}: {shortened(said, _SHOWN_CHARS)}"
        for chunk in chunks
        if chunk.index in parts and parts[chunk.index].error_rows
        for uri in [source.files[chunk.file].stored.uri]
        for line, said in _errors_of(source, chunk, store, parts[chunk.index])
    )
    shown = list(itertools.islice(errors, _SHOWN))
    first = f" The first: {'; '.join(shown)}." if shown else ""
    failed = sum(p.error_rows for p in parts.values())
    done = sum(p.rows for p in parts.values())
    return TooManyErrorsError(
        f"{failed:,} of the {done:,} rows run so far have failed; "
        f"{_allowed(options, source.rows)}.{first} Fix the rows or the model, or raise the limit: "
        "a rerun continues from here"
    )


def refusal_of(options: BatchOptions, report: ValidationReport) -> SheafError | None:
    """Why a file isn't run whose rows are invalid; None: it is run."""
    if report.ok:
        return None
    if options.on_invalid == "fail":
        return InputValidationError(report.summary(), report)
    if report.invalid_rows > most_error_rows(options, report.rows):
        return _too_many_invalid(options, report)
    return None


def _too_many_invalid(options: BatchOptions, report: ValidationReport) -> TooManyErrorsError:
    """The error of a file of which more rows are invalid than may fail; nothing was run."""
    first = "; ".join(shortened(str(v), _SHOWN_CHARS) for v in report.violations[:_SHOWN])
    return TooManyErrorsError(
        f"{report.source}: {report.invalid_rows:,} of {report.rows:,} rows are invalid; "
        f"{_allowed(options, report.rows)}. The first: {first}. Nothing was run; fix the rows, or "
        "raise the limit"
    )


def _allowed(options: BatchOptions, rows: int) -> str:
    limits = " and ".join(
        f"{name}={value:g}"
        for name in ("max_error_rows", "max_error_fraction")
        if (value := getattr(options, name)) is not None
    )
    return f"{limits} allows {most_error_rows(options, rows):,.0f} of {rows:,}"


def _errors_of(
    source: ScannedSource, chunk: Chunk, store: PartStore, part: Part
) -> Iterator[tuple[int, str]]:
    """The error rows of a part: the line of each request, and what its answer says."""
    asked = store_at(source.files[chunk.file].text).read_range(chunk.start, chunk.end)
    answers = store.lines(part)
    for (line, _), answer in zip(lines_in_chunk(chunk, asked), answers, strict=True):
        record = orjson.loads(answer)
        error = record.get("error") if isinstance(record, dict) else None
        if isinstance(error, dict):
            yield line, f"{error.get('type') or error.get('code')}: {error.get('message')}"
        elif error:  # a request type may have a form of its own
            yield line, str(error)
