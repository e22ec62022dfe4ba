"""One source→sink pair on its way: scanned, validated, run, committed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from sheaf_dagster.batch.committed import CommittedSink
from sheaf_dagster.batch.file_parts import FileParts
from sheaf_dagster.batch.fingerprint import job_fingerprint, sink_format
from sheaf_dagster.batch.keeping import (
    Keeper,
    chunks_to_keep,
    kept_answers,
    made_without_model,
    without_valid_rows,
)
from sheaf_dagster.batch.kept import Table
from sheaf_dagster.batch.layout import layout_of
from sheaf_dagster.batch.measured import counted, measured
from sheaf_dagster.batch.messages import ChunkReport, FileWork
from sheaf_dagster.batch.only_failed import OnlyFailed, last_output
from sheaf_dagster.batch.receipt import write_receipt
from sheaf_dagster.batch.results import BatchResult, ValidationReport
from sheaf_dagster.batch.reuse.file_reuse import FileReuse
from sheaf_dagster.batch.reuse.index import remove_index
from sheaf_dagster.batch.rows.findings import ChunkFindings
from sheaf_dagster.batch.rows.kept_agreement import KeptAgreement
from sheaf_dagster.batch.rows.kept_columns import types_in_source
from sheaf_dagster.batch.rows.requests import RowContract
from sheaf_dagster.batch.spec import BatchSpec
from sheaf_dagster.batch.tolerance import refusal_of
from sheaf_dagster.batch.validation import validate_source
from sheaf_dagster.batch.worker.loading import ModelContext
from sheaf_dagster.errors import PreviousOutputError, SheafError
from sheaf_dagster.storage import (
    Chunk,
    HeldSink,
    KeptTypes,
    Location,
    ScannedSource,
    Sink,
    files_of,
    scan_source,
    store_at,
)
from sheaf_dagster.storage.formats import is_plain

__all__ = ["FileRun", "ValidateChunks"]

log = logging.getLogger(__name__)

ValidateChunks = Callable[[RowContract, ScannedSource], Iterable[ChunkFindings]]
"""Validates all chunks of a source; yields the findings in order."""


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
        self._types: KeptTypes = {}
        self.sink = self._sink()
        self._held: HeldSink | None = None
        self.parts = FileParts(spec)
        self.resumed_rows = 0
        self.rows = 0
        self._reports: list[ChunkReport] = []
        self._source: ScannedSource | None = None
        self._validation: ValidationReport | None = None
        self._chunks: tuple[Chunk, ...] = ()
        self.fingerprint = ""
        self._result_fingerprint = ""
        self._reuse = FileReuse.of(context, spec)
        self._work: FileWork | None = None
        self._refused = False
        self._keeper: Keeper | None = None

    @property
    def rows_done(self) -> int:
        """Rows answered so far."""
        return self.parts.rows

    def prepare(
        self, validate: ValidateChunks, stop: threading.Event | None = None
    ) -> tuple[FileWork, list[Chunk]]:
        """Scans and validates the source, takes the sink, and finds what is left to do.

        Args:
            validate: Validates the rows.
            stop: Ends the scan early.

        Raises:
            InputValidationError: Rows don't match their contract.
            SpecError: Fields can't be kept as columns of a table.
            SourceError, SinkError: A file can't be read or written.
            PreviousOutputError: Answers of an earlier output can't be kept.
            InterruptedError: ``stop`` was set.
        """
        source = self._scan(stop)
        self._source, self.rows = source, source.rows
        keep = tuple(self.spec.keep)
        agreement = KeptAgreement(self.spec, self._types, source)
        contract = replace(
            self.context.rows,
            strict=self.spec.strict,
            keep=keep,
            columns=agreement.columns,
            digests=self._reuse is not None,
        )
        findings = agreement.taken_from(validate(contract, source))
        if self._reuse is not None:
            findings = self._reuse.taken_from(findings)
        report, self._chunks = validate_source(source, findings)
        report.seconds = time.perf_counter() - self.started
        self._validation = report
        if (refused := refusal_of(self.spec, report) or agreement.refusal()) is not None:
            if self._held is not None:
                self._held.discard()
            raise refused
        if not report.ok:
            log.warning("%s", report.recorded_summary())
        for text in report.warnings():
            log.warning("%s: %s", report.source, text)
        held = self._hold()
        keeper = self._keeper = self._keeper_of(source, report)
        kept_of = None if keeper is None else keeper.identity
        self.fingerprint = self._fingerprint(source, kept_of)
        self._result_fingerprint = self.fingerprint
        if self._reuse is not None and self.spec.only is None:
            # Where answers come from doesn't make the output another one.
            self._result_fingerprint = self._fingerprint(source)
        self.resumed_rows = self.parts.open(self.fingerprint, source, self._chunks, held)
        work = FileWork(
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
            fields=self.context.rows.fields_of(self.spec),
            indexed=self._reuse is not None,
        )
        self._work = work = self._answer_without_model(work, keeper, stop)
        return work, [c for c in self._chunks if c.index not in self.parts]

    def _sink(self) -> Sink:
        format = sink_format(self.context, self.spec, self._types)
        return Sink(Location.of(self.spec.sink, self.spec.storage_options), format)

    def _fingerprint(self, source: ScannedSource, kept: str | None = None) -> str:
        return job_fingerprint(self.context, self.spec, source.digest, kept, self._types)

    def _keeper_of(self, source: ScannedSource, report: ValidationReport) -> Keeper | None:
        """What decides which answers of an earlier output are kept."""
        if self.spec.only is None:
            return None if self._reuse is None else self._reuse.keeper(all_valid=report.ok)
        with self._refusing():
            sink = self.sink.location
            state = last_output(sink)
            return OnlyFailed(self.context, self.spec, state, source.digest, self._earlier)

    def _answer_without_model(
        self, work: FileWork, keeper: Keeper | None, stop: threading.Event | None
    ) -> FileWork:
        """Says which rows keep their answers; makes the parts of chunks with no row to run."""
        with self._refusing():
            todo: Iterable[tuple[Chunk, Table | None]]
            if keeper is None:
                todo = ((c, None) for c in without_valid_rows(self._chunks, self.parts))
            else:
                kept = kept_answers(keeper, self._hold())
                work = replace(work, kept=kept)
                todo = chunks_to_keep(keeper, kept, self._chunks, self.parts, stop)
            note = None if self._reuse is None else self._reuse.note
            made = made_without_model(self.context.rows, work, todo, stop, note)
        self.parts.put(made)
        return work

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
        self._types = types_in_source(self.spec, fields, files)
        self.sink = self._sink()
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
            types=self._types,
        )

    @property
    def complete(self) -> bool:
        """Whether every chunk's part is there."""
        return self.parts.complete

    def take(self, report: ChunkReport) -> None:
        """Notes a finished chunk.

        Raises:
            SheafError: The chunk failed; the error that the worker met.
            ModelChangedError: Other weights have answered it than the chunks before.
            TooManyErrorsError: With this chunk there are more error rows than there may be.
        """
        if report.failure is not None:
            with self._refusing():
                raise report.failure.rebuilt()
        assert report.part is not None
        self.parts.add(report.part, report.worker)
        self._reports.append(report)

    def commit(self) -> BatchResult | None:
        """Joins the parts into the sink.

        Returns:
            None where the sink holds that already: with ``only`` each row keeps its answer.

        Raises:
            SourceChangedError: The source is no longer what was validated.
            SinkError: The sink could not be written.
        """
        assert self._source is not None and self._validation is not None
        self._source.check_unchanged()
        if self._keeper is not None:
            with self._refusing():
                self._keeper.check_unchanged()
        if self.spec.only is not None and self.parts.kept_rows == self.rows:
            self._hold().discard()
            if self._reuse is not None:
                self._reuse.close()
            return None
        with self._reuse_ends():
            parts = self.parts.in_order()
            size = self._hold().commit(parts)
        reports = self._reports
        result = BatchResult(
            source=self._validation.source,
            sink=self.sink.location.uri,
            rows=self.rows,
            seconds=time.perf_counter() - self.started,
            source_digest=self._source.digest,
            fingerprint=self._result_fingerprint,
            resumed_rows=self.resumed_rows,
            output_bytes=size,
            validation=self._validation,
            model_digest=next(
                (r.model_digest for r in reports if r.model_digest), self.context.identity
            ),
            model_version=self.context.version,
            **counted(self.spec, parts, {r.chunk for r in reports}),
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
            remove_index(self.sink.location)
            return
        assert self._work is not None
        filled = self._reuse.filled(self._work, self._chunks, self.parts)
        self.parts.put(filled.values())
        self._reuse.tell_lost(self.parts)
        with self._reuse.indexed(self._work, self._chunks, self.parts):
            yield

    @property
    def may_resume(self) -> bool:
        """Whether finished parts are of use to a rerun."""
        return self.spec.resume and self.parts.of_one_model and not self._refused

    def abandon(self) -> None:
        """Gives the sink free after a failure; finished parts stay if they may be resumed."""
        if self._reuse is not None:
            self._reuse.close()
        if self._held is not None:
            self._held.release() if self.may_resume else self._held.discard()
