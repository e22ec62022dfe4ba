"""What a job will take, before it runs: its rows and tokens counted, the rest from earlier jobs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median

from pydantic import BaseModel

from sheaf_dagster.batch.results import ValidationReport
from sheaf_dagster.batch.rows.findings import ChunkFindings
from sheaf_dagster.batch.rows.invalid import lines_in
from sheaf_dagster.batch.rows.kept_columns import types_in_source
from sheaf_dagster.batch.rows.requests import RowContract
from sheaf_dagster.batch.spec import BatchSpec
from sheaf_dagster.batch.spending import cost_of
from sheaf_dagster.batch.tolerance import most_error_rows
from sheaf_dagster.batch.validation import validate_source
from sheaf_dagster.batch.worker.sizing import AUTO_LAYOUT_ROWS
from sheaf_dagster.contracts.prompt_size import asked_tokens
from sheaf_dagster.storage import (
    Location,
    ScannedSource,
    files_of,
    lines_in_chunk,
    read_ranges,
    scan_source,
)

__all__ = ["Estimate", "Past", "estimate_job"]


@dataclass(frozen=True)
class Past:
    """What an earlier job over rows of the same kind took.

    Attributes:
        rows: Rows of its source.
        rows_per_second: Their rate.
        load_seconds: Until its model was loaded.
        prompt_tokens: Tokens that the model read; None where the answers don't say.
        completion_tokens: Tokens of the answers.
    """

    rows: int
    rows_per_second: float
    load_seconds: float = 0.0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Estimate(BaseModel):
    """What a job will take, about.

    Attributes:
        files: Source files.
        rows: Their rows.
        invalid_rows: Rows that don't match the contract, and with which their file would not begin.
        error_rows: Those that would become error rows (``on_invalid="record"``); no model is asked
            about them.
        prompt_tokens: By the characters of the rows; None for rows that aren't of language models.
        most_completion_tokens: What the limits of the rows add up to; None where a row has none.
        completion_tokens: As many a row as in the earlier jobs.
        seconds: Time to load the model and answer the rows, at the rate of the earlier jobs.
        cost: By ``price_per_million``.
        most_cost: The same if each answer is as long as it may be.
        based_on: How many earlier jobs there are to go by.
    """

    files: int = 0
    rows: int = 0
    invalid_rows: int = 0
    error_rows: int = 0
    prompt_tokens: int | None = None
    most_completion_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float | None = None
    cost: float | None = None
    most_cost: float | None = None
    based_on: int = 0


def estimate_job(
    contract: RowContract, specs: Sequence[BatchSpec], past: Sequence[Past] = ()
) -> Estimate:
    """Counts the rows and tokens of a job's files, and goes by what earlier jobs took.

    Of several earlier jobs it takes the median. Nothing is loaded, run or written.

    Args:
        contract: What rows are.
        specs: The files.
        past: Earlier jobs of the same model and kind of rows.

    Raises:
        SourceError: A file is missing or can't be read.
    """
    counted = _Counted()
    reports = [counted.take(contract, spec) for spec in specs]
    rows = sum(r.rows for r in reports)
    recorded = sum(
        report.invalid_rows
        for spec, report in zip(specs, reports, strict=True)
        if _are_recorded(spec, report)
    )
    to_run = rows - recorded
    rates = [p.rows_per_second for p in past if p.rows_per_second > 0]
    made = [p.completion_tokens / p.rows for p in past if p.rows and p.completion_tokens]
    expected = round(median(made) * to_run) if made and counted.language else None
    if expected is not None and counted.most is not None:
        expected = min(expected, counted.most)
    prices = specs[0].price_per_million if specs else None

    def cost(made: int | None) -> float | None:
        if made is None or not counted.language:
            return None
        return cost_of({"prompt": counted.prompt, "output": made, "hit": 0}, prices)

    return Estimate(
        files=sum(len(spec.sources) for spec in specs),
        rows=rows,
        invalid_rows=sum(r.invalid_rows for r in reports) - recorded,
        error_rows=recorded,
        prompt_tokens=counted.prompt if counted.language else None,
        most_completion_tokens=counted.most if counted.language else None,
        completion_tokens=expected,
        seconds=median(p.load_seconds for p in past) + to_run / median(rates) if rates else None,
        cost=cost(expected),
        most_cost=cost(counted.most),
        based_on=len(past),
    )


def _are_recorded(spec: BatchSpec, report: ValidationReport) -> bool:
    """Whether a file's invalid rows become error rows, and are no more than it may have."""
    most = most_error_rows(spec, report.rows)
    return spec.on_invalid == "record" and report.invalid_rows <= most


class _Counted:
    """Tokens of the rows so far."""

    def __init__(self) -> None:
        self.language = False
        self.prompt = 0
        self.most: int | None = 0

    def take(self, contract: RowContract, spec: BatchSpec) -> ValidationReport:
        """Validates a job's source, and counts its rows' tokens on the way."""
        contract = replace(contract, strict=spec.strict, keep=tuple(spec.keep))
        files = files_of([Location.of(uri, spec.storage_options) for uri in spec.sources])
        fields = contract.fields_of(spec)
        with tempfile.TemporaryDirectory(prefix="sheaf-") as folder:
            source = scan_source(
                files,
                AUTO_LAYOUT_ROWS,  # any: nothing is run
                fields=fields,
                row_limit=spec.row_limit,
                spool=Location.of(folder),
                types=types_in_source(spec, fields, files),
            )
            return validate_source(source, self._findings(contract, source))[0]

    def _findings(self, contract: RowContract, source: ScannedSource) -> Iterator[ChunkFindings]:
        texts = [f.text for f in source.files]
        ranges = read_ranges([(texts[c.file], c.start, c.end) for c in source.chunks])
        for chunk, read in zip(source.chunks, ranges, strict=True):
            data, contract = read(), contract.of_chunk(chunk)
            findings = contract.validate(data, chunk.first_line)
            invalid = lines_in(findings.invalid, chunk.first_line)
            lines = [x for x in lines_in_chunk(chunk, data) if x[0] not in invalid]
            self._count(row.request for row in contract.parse(lines, chunk.first_row))
            yield findings

    def _count(self, requests: Iterable[object]) -> None:
        for request in requests:
            asked = asked_tokens(request)
            if asked is None:
                return
            self.language = True
            self.prompt += asked[0]
            if asked[1] is None or self.most is None:
                self.most = None
            else:
                self.most += asked[1]
