"""One source→sink pair on its way: scanned, validated, run, committed."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

from sheaf_dagster.batch.committed import CommittedSink
from sheaf_dagster.batch.keeping import Keeper, keep_answers
from sheaf_dagster.batch.kept import KEPT, REPEATED, UNFILLED
from sheaf_dagster.batch.layout import layout_of
from sheaf_dagster.batch.measured import measured
from sheaf_dagster.batch.messages import ChunkReport, FileWork
from sheaf_dagster.batch.only_failed import OnlyFailed, last_output
from sheaf_dagster.batch.receipt import write_receipt
from sheaf_dagster.batch.results import BatchResult, ValidationReport
from sheaf_dagster.batch.reuse.file_reuse import FileReuse
from sheaf_dagster.batch.rows.columns import check_float_type, columns_of
from sheaf_dagster.batch.rows.invalid import lines_in
from sheaf_dagster.batch.rows.requests import ChunkFindings, RowContract
from sheaf_dagster.batch.spec import BatchSpec
from sheaf_dagster.batch.spending import cost_of, tokens_in
from sheaf_dagster.batch.tolerance import most_error_rows, too_many_errors, too_many_invalid
from sheaf_dagster.batch.validation import validate_source
from sheaf_dagster.batch.worker.keeping import part_without_model
from sheaf_dagster.batch.worker.loading import ModelContext
from sheaf_dagster.contracts import DEVIATIONS, contract_for, schema_of
from sheaf_dagster.errors import (
    InputValidationError,
    ModelChangedError,
    PreviousOutputError,
    SheafError,
)
from sheaf_dagster.storage import (
    Chunk,
    HeldSink,
    Location,
    Part,
    ScannedSource,
    Sink,
    files_of,
    scan_source,
    store_at,
)
from sheaf_dagster.storage.compression import codec_of
from sheaf_dagster.storage.formats import Format, Table, format_of, is_plain
from sheaf_dagster.version import __version__

__all__ = ["FileRun", "ValidateChunks", "job_fingerprint", "sink_format"]

log = logging.getLogger(__name__)

ValidateChunks = Callable[[RowContract, ScannedSource], Iterable[ChunkFindings]]
"""Validates all chunks of a source; yields the findings in order."""

_JOIN_BYTES = 64 * 2**20
"""Parts of a killed run that are joined at a time, while workers wait to be heard."""

_PARTS_AT_A_TIME = 4
"""Parts that the driver makes itself: a remote store takes its time for each."""

_LAYOUT_VERSION = 1
"""Raised when the same job would be cut or written differently than by an older version."""


def job_fingerprint(
    context: ModelContext, spec: BatchSpec, source_digest: str, kept: str | None = None
) -> str:
    """Hash of all that decides a job's output (hex, 64 digits).

    Args:
        context: The model.
        spec: The file.
        source_digest: Of its source.
        kept: The ``Keeper``'s identity, where answers of an earlier output are kept.
    """
    identity = {
        "layout": _LAYOUT_VERSION,
        "source": source_digest,
        "model": context.version,
        "contract": schema_of(context.rows.request),
        "batch_size": spec.batch_size,
        "bucket_by": spec.bucket_by,
        "on_error": spec.on_error,
        "row_limit": spec.row_limit,
        "codec": codec_of(spec.sink),
        "version": __version__,
    }
    if spec.batch_budget is not None:
        identity |= {"batch_budget": spec.batch_budget, "batch_size": None}
    if (window := layout_of(spec, context.backend_cls).window) is not None:
        identity["window"] = window
    if spec.columns or spec.fields:
        identity["fields"] = [spec.columns, spec.fields]
    if isinstance(format := sink_format(context, spec), Table):
        identity["columns"] = format.columns.hex()
    if spec.on_error == "record":  # what decides which rows become error rows, and their text
        identity |= {"batch_timeout": spec.batch_timeout, "redact": context.rows.redact}
    if spec.on_invalid == "record":  # likewise
        identity |= {"on_invalid": "record", "strict": spec.strict, "redact": context.rows.redact}
    if spec.keep:
        identity["keep"] = spec.keep
    if kept is not None:
        identity["kept"] = kept
    text = json.dumps(identity, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def sink_format(context: ModelContext, spec: BatchSpec) -> Format:
    """How a job's answers are written: as lines, or in the columns of their contract.

    Raises:
        SpecError: The contract's answers can't be columns, or lines have no type of numbers.
    """
    format = format_of(spec.sink)
    check_float_type(spec, spec.sink)
    if not isinstance(format, Table):
        return format
    columns = columns_of(
        contract_for(context.spec.model_type).response, spec.float_type, tuple(spec.keep)
    )
    return Table(columns.serialize().to_pybytes())


class FileRun:
    """State of one file in the driver. Its rows are never here."""

    def __init__(
        self,
        id: int,
        spec: BatchSpec,
        context: ModelContext,
        earlier: CommittedSink | None = None,
    ) -> None:
        self.id = id
        self._earlier = earlier
        self.spec = spec
        self.context = context
        self.started = time.perf_counter()
        self._layout = layout_of(spec, context.backend_cls)
        self.sink = Sink(Location.of(spec.sink, spec.storage_options), sink_format(context, spec))
        self._held: HeldSink | None = None
        self.parts: dict[int, Part] = {}
        self.resumed_rows = 0
        self.rows = 0
        self._error_rows = 0
        self._reports: list[ChunkReport] = []
        self._source: ScannedSource | None = None
        self._validation: ValidationReport | None = None
        self._chunks: tuple[Chunk, ...] = ()
        self.fingerprint = ""
        self._result_fingerprint = ""
        self._reuse = FileReuse.of(context, spec)
        self._work: FileWork | None = None
        self._models: set[str] = set()
        self._joined = 0
        self._refused = False
        self._keeper: Keeper | None = None

    @property
    def rows_done(self) -> int:
        """Rows answered so far."""
        return sum(p.rows for p in self.parts.values())

    def prepare(
        self, validate: ValidateChunks, stop: threading.Event | None = None
    ) -> tuple[FileWork, list[Chunk]]:
        """Scans and validates the source, takes the sink, and finds what is left to do.

        Args:
            validate: Validates the rows.
            stop: Ends the scan early.

        Raises:
            InputValidationError: Rows don't match their contract.
            SourceError, SinkError: A file can't be read or written.
            PreviousOutputError: Answers of an earlier output can't be kept.
            InterruptedError: ``stop`` was set.
        """
        source = self._scan(stop)
        self._source, self.rows = source, source.rows
        keep = tuple(self.spec.keep)
        contract = replace(
            self.context.rows,
            strict=self.spec.strict,
            keep=keep,
            digests=self._reuse is not None,
        )
        findings = validate(contract, source)
        if self._reuse is not None:
            findings = self._reuse.taken_from(findings)
        report, self._chunks = validate_source(source, findings)
        report.seconds = time.perf_counter() - self.started
        self._validation = report
        if (refused := self._refused_rows(report)) is not None:
            if self._held is not None:
                self._held.discard()
            raise refused
        if not report.ok:
            log.warning("%s", report.recorded_summary())
        if report.unknown_fields:
            log.warning("%s: %s", report.source, report.unknown_summary())
        held = self._hold()
        keeper = self._keeper = self._keeper_of(source, report)
        kept_of = None if keeper is None else keeper.identity
        self.fingerprint = job_fingerprint(self.context, self.spec, source.digest, kept_of)
        self._result_fingerprint = self.fingerprint
        if self._reuse is not None and self.spec.only is None:
            # Where answers come from doesn't make the output another one.
            self._result_fingerprint = job_fingerprint(self.context, self.spec, source.digest)
        found = held.open_run(self.fingerprint, resume=self.spec.resume)
        by_index = {c.index: c for c in self._chunks}
        self.parts = {
            i: p for i, p in found.items() if i in by_index and by_index[i].rows == p.rows
        }
        self._models = {p.model for p in self.parts.values() if not _without_model(p)}
        if len(self._models) > 1:  # that run was killed before it could refuse them
            held.open_run(self.fingerprint, resume=False)
            self.parts, self._models = {}, set()
        self.resumed_rows = sum(p.rows - _without_work(p) for p in self.parts.values())
        job = FileWork(
            id=self.id,
            texts=tuple(f.text for f in source.files),
            names=tuple(f.stored.uri for f in source.files),
            store=held.store,
            batch_size=None if self.spec.batch_size == "auto" else self.spec.batch_size,
            on_error=self.spec.on_error,
            bucket_by=self.spec.bucket_by,
            batch_budget=self.spec.batch_budget,
            window=self._layout.window,
            batch_timeout=self.spec.batch_timeout,
            redact=self.context.rows.redact,
            strict=self.spec.strict,
            keep=keep,
            indexed=self._reuse is not None,
        )
        self._work = job = self._answer_without_model(job, keeper, stop)
        self._count_errors(self.parts.values())
        return job, [c for c in self._chunks if c.index not in self.parts]

    def _keeper_of(self, source: ScannedSource, report: ValidationReport) -> Keeper | None:
        """What decides which answers of an earlier output are kept."""
        if self.spec.only is None:
            return None if self._reuse is None else self._reuse.keeper(all_valid=report.ok)
        with self._refusing():
            sink = self.sink.location
            state = last_output(sink)
            return OnlyFailed(self.context, sink, state, source.digest, self._earlier)

    def _answer_without_model(
        self, job: FileWork, keeper: Keeper | None, stop: threading.Event | None
    ) -> FileWork:
        """Says which rows keep their answers; makes the parts of chunks with no row to run."""
        with self._refusing():
            if keeper is None:
                done = [c for c in self._chunks if c.invalid and c.index not in self.parts]
                done = [c for c in done if len(lines_in(c.invalid, c.first_line)) >= c.rows]
            else:
                kept, done = keep_answers(keeper, self._hold(), self._chunks, self.parts, stop)
                job = replace(job, kept=kept)

            def make(chunk: Chunk) -> Part | None:
                if stop is not None and stop.is_set():
                    raise InterruptedError("the job was stopped")
                return part_without_model(self.context.rows, job, chunk)

            with ThreadPoolExecutor(_PARTS_AT_A_TIME, thread_name_prefix="sheaf-keep") as pool:
                made = [part for part in pool.map(make, done) if part is not None]
            self.parts |= {part.chunk: part for part in made}
        return job

    def _refused_rows(self, report: ValidationReport) -> SheafError | None:
        """Why a file isn't run whose rows are invalid."""
        if report.ok:
            return None
        if self.spec.on_invalid == "fail":
            return InputValidationError(report.summary(), report)
        if report.invalid_rows > most_error_rows(self.spec, report.rows):
            return too_many_invalid(self.spec, report)
        return None

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Notes where an earlier output can't be used: a rerun has no use for the parts either."""
        try:
            yield
        except PreviousOutputError:
            self._refused = True
            raise

    def _hold(self) -> HeldSink:
        if self._held is None:
            self._held = self.sink.hold()
        return self._held

    def _scan(self, stop: threading.Event | None) -> ScannedSource:
        options = self.spec.storage_options
        files = files_of([Location.of(uri, options) for uri in self.spec.sources])
        fields = self.context.rows.fields_of(self.spec)
        spool = None
        if not all(is_plain(f.location.uri, fields.beside(f.folders)) for f in files):
            # Unpacked copies lie beside the sink, where every worker can read them.
            for file in files:
                store_at(file.location).require_state()
            spool = self._hold().spool()
        return scan_source(
            files,
            self._layout.rows,
            fields=fields,
            row_limit=self.spec.row_limit,
            spool=spool,
            stop=stop,
        )

    @property
    def complete(self) -> bool:
        """Whether every chunk's part is there."""
        return len(self.parts) == len(self._chunks)

    def take(self, report: ChunkReport) -> None:
        """Notes a finished chunk.

        Raises:
            SheafError: The chunk failed; the error that the worker met.
            TooManyErrorsError: With this chunk there are more error rows than there may be.
        """
        if report.failure is not None:
            with self._refusing():
                raise report.failure.rebuilt()
        assert report.part is not None
        self._require_one_model(report.part, report.worker)
        self.parts[report.chunk] = report.part
        self._reports.append(report)
        self._count_errors([report.part])
        self._join_ahead()

    def _count_errors(self, parts: Iterable[Part]) -> None:
        """Adds up error rows, as long as there may be as many."""
        self._error_rows += sum(p.error_rows for p in parts)
        if self._error_rows > most_error_rows(self.spec, self.rows):
            assert self._source is not None
            store = self._hold().store
            raise too_many_errors(self.spec, self._source, self._chunks, store, self.parts)

    def _join_ahead(self) -> None:
        """Joins what is whole from the beginning on, a little at a time."""
        ready: list[Part] = []
        size = 0
        for chunk in self._chunks[self._joined :]:
            part = self.parts.get(chunk.index)
            if part is None or part.counts.get(UNFILLED) or size >= _JOIN_BYTES:
                break
            ready.append(part)
            size += part.size
        self._joined += len(ready)
        if ready and self._joined < len(self._chunks):  # the last ones are the commit's
            self._hold().join_ahead(ready)

    def _require_one_model(self, part: Part, worker: str) -> None:
        """An output isn't put together from the answers of different weights."""
        if not _without_model(part):
            self._models.add(part.model)
        if len(self._models) <= 1:
            return
        raise ModelChangedError(
            f"{self.sink.location.uri}: worker {worker} loaded other weights than those that made "
            f"the parts of another worker or of an earlier run; none of these parts is used. Run "
            "again once the weights are in place, and give every machine the same ones"
        )

    def commit(self) -> BatchResult:
        """Joins the parts into the sink.

        Raises:
            SourceChangedError: The source is no longer what was validated.
            SinkError: The sink could not be written.
        """
        assert self._source is not None and self._validation is not None
        self._source.check_unchanged()
        if self._keeper is not None:
            with self._refusing():
                self._keeper.check_unchanged()
        with self._reuse_ends():
            parts = [self.parts[c.index] for c in self._chunks]
            size = self._hold().commit(parts)
        reports = self._reports
        made = {r.chunk for r in reports}
        tokens = tokens_in(parts, kept=True)
        new_tokens = tokens_in(p for i, p in self.parts.items() if i in made)
        prices = self.spec.price_per_million
        result = BatchResult(
            source=self._validation.source,
            sink=self.sink.location.uri,
            rows=self.rows,
            output_rows=sum(p.rows for p in parts),
            seconds=time.perf_counter() - self.started,
            source_digest=self._source.digest,
            fingerprint=self._result_fingerprint,
            resumed_rows=self.resumed_rows,
            reused_rows=sum(p.counts.get(KEPT, 0) for p in parts),
            repeated_rows=sum(p.counts.get(REPEATED, 0) for p in parts),
            error_rows=sum(p.error_rows for p in parts),
            non_finite=sum(p.non_finite for p in parts),
            deviations=_deviations(parts),
            tokens=tokens,
            new_tokens=new_tokens,
            cost=cost_of(tokens, prices),
            new_cost=cost_of(new_tokens, prices),
            chunks=len(parts),
            output_bytes=size,
            validation=self._validation,
            model_digest=next(
                (r.model_digest for r in reports if r.model_digest), self.context.identity
            ),
            model_version=self.context.version,
            **measured(self.spec, reports),
        )
        if self.spec.receipt:
            result.receipt = self._written_receipt(result)
        return result.of_job(self.context.spec, self.spec, redact=self.context.rows.redact)

    def _written_receipt(self, result: BatchResult) -> str | None:
        """Where the receipt is; None where it can't be written: the file itself is committed."""
        try:
            return write_receipt(self.context, self.spec, result)
        except SheafError as e:
            log.warning("%s is committed, but has no receipt: %s", result.sink, e)
            return None

    @contextmanager
    def _reuse_ends(self) -> Iterator[None]:
        """Gives rows the answers of equal ones, and an index to the output that is committed meanwhile."""
        if self._reuse is None:
            yield
            return
        assert self._work is not None
        filled = self._reuse.filled(self._work, self._chunks, self.parts)
        self._error_rows -= sum(self.parts[i].error_rows for i in filled)
        self.parts |= filled
        self._count_errors(filled.values())
        with self._reuse.indexed(self._work, self._chunks, self.parts):
            yield

    @property
    def may_resume(self) -> bool:
        """Whether finished parts are of use to a rerun."""
        return self.spec.resume and len(self._models) <= 1 and not self._refused

    def abandon(self) -> None:
        """Gives the sink free after a failure; finished parts stay if they may be resumed."""
        if self._reuse is not None:
            self._reuse.close()
        if self._held is not None:
            self._held.release() if self.may_resume else self._held.discard()


def _without_model(part: Part) -> bool:
    """Whether no model had a hand in a part: it consists of kept answers and error rows."""
    return _without_work(part) + part.error_rows == part.rows


def _without_work(part: Part) -> int:
    """Rows of a part that have, or will have, the answers of others."""
    return sum(part.counts.get(letter, 0) for letter in (KEPT, UNFILLED, REPEATED))


def _deviations(parts: Sequence[Part]) -> dict[str, int]:
    """Rows that are answered otherwise than asked, by kind; parts name a kind by its first letter."""
    counts = {kind: sum(p.counts.get(kind[0], 0) for p in parts) for kind in DEVIATIONS}
    return {kind: n for kind, n in counts.items() if n}
