"""Runs jobs: validates every row, runs the model, commits the output."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from itertools import chain
from typing import Literal

from sheaf_dagster.backends import ModelBackend
from sheaf_dagster.backends.base import shape_of
from sheaf_dagster.batch.committed import CommittedSink
from sheaf_dagster.batch.driver import run_job
from sheaf_dagster.batch.fingerprint import job_fingerprint, sink_format
from sheaf_dagster.batch.layout import layout_of
from sheaf_dagster.batch.model_spec import ModelSpec
from sheaf_dagster.batch.only_failed import has_failed_rows, kept_identity, whole_output
from sheaf_dagster.batch.progress import OnProgress, shown_progress
from sheaf_dagster.batch.ray.capacity import WorkerPlan
from sheaf_dagster.batch.ray.cluster_config import ClusterConfig, verify_limits
from sheaf_dagster.batch.ray.engine_choice import engine_for
from sheaf_dagster.batch.results import BatchOutcome, BatchResult, ValidationReport
from sheaf_dagster.batch.reuse.previous import reused_output
from sheaf_dagster.batch.rows.keep import check_keep
from sheaf_dagster.batch.rows.kept_columns import types_in_source
from sheaf_dagster.batch.rows.mapped_names import check_mapped_names
from sheaf_dagster.batch.spec import BatchSpec
from sheaf_dagster.batch.validation import validate_files
from sheaf_dagster.batch.worker.loading import ModelContext
from sheaf_dagster.batch.workforce import Workforce
from sheaf_dagster.contracts import contract_for
from sheaf_dagster.errors import SheafError, SpecError
from sheaf_dagster.storage import Location, digest_of, files_of, store_at

__all__ = ["BatchRunner"]


class BatchRunner:
    """Runs batch jobs of one model, with or without Dagster.

    Args:
        model_spec: The model.
        cluster: The Ray cluster, and how much of it a job may take. By default the Ray that this
            process is connected to, or else a local Ray that is started for the job and stopped
            after it.
        on_progress: Called a few times a second while a job runs, in the calling thread.
            ``"auto"`` shows a bar in a terminal or notebook; elsewhere it logs a line every ten
            seconds (logger ``sheaf_dagster``, level INFO). None is silent.
        redact_rows: Leave values of rows out of violations and messages.

    Raises:
        UnknownBackendError, UnknownContractError, SpecError: The spec can't work.
    """

    def __init__(
        self,
        model_spec: ModelSpec,
        cluster: ClusterConfig | None = None,
        on_progress: OnProgress | Literal["auto"] | None = "auto",
        *,
        redact_rows: bool = False,
    ) -> None:
        self.model_spec = model_spec
        self.cluster = cluster or ClusterConfig()
        self._on_progress = on_progress
        self._context = ModelContext.of(model_spec, redact=redact_rows)
        self._identified: Callable[[], ModelContext] = self._context.identified

    def for_one_step(self) -> BatchRunner:
        """A copy of this runner that calls ``identify`` only once, for a step whose model stays the same.

        Otherwise ``identify`` is called for each job and each fingerprint. In both cases a worker that finds
        other weights ends the job.
        """
        runner = copy.copy(self)
        runner._identified = cache(self._context.identified)
        return runner

    def validate(self, spec: BatchSpec) -> ValidationReport:
        """Checks every row of a source against the model's contract. Runs and writes nothing.

        The check streams, so its memory doesn't grow with the file.

        Raises:
            SourceError: The source is missing or can't be read.
        """
        self._check_files(spec)
        return validate_files(
            replace(self._context.rows, strict=spec.strict, keep=tuple(spec.keep)),
            spec.sources,
            spec.storage_options,
            options=spec,
            batch_size=layout_of(spec, self._context.backend_cls).rows,
            row_limit=spec.row_limit,
        )

    def run(self, spec: BatchSpec) -> BatchResult:
        """Runs every row of a source through the model and commits the answers to the sink.

        With ``only="failed"`` and no failed row, nothing is run, and the result describes the last output.

        Raises:
            InputValidationError: Rows are invalid; nothing was run or written.
            ClusterCapacityError: The job exceeds a limit or doesn't fit the cluster.
            BackendError: The model failed.
            SourceError, SinkError: A file can't be read or written.
        """
        (outcome,) = self.run_many([spec])
        if outcome.error is not None:
            raise outcome.error
        return outcome.result or whole_output(spec, *_identity_of(self._identified(), spec))

    def run_many(
        self,
        specs: Iterable[BatchSpec],
        files: int | None = None,
        *,
        committed: Mapping[str, CommittedSink] | None = None,
    ) -> Iterator[BatchOutcome]:
        """Runs many files in one job. Each worker loads the model once.

        The files share the workers: small files run side by side, and a large file is spread over all
        workers. The next file is validated while this one runs. All specs must have the same
        ``compute`` and ``num_actors``. Closing the iterator stops the job. Committed files stay, and
        the finished parts of the others are kept for a rerun.

        Args:
            specs: The files. May be lazy.
            files: The most files that there can be, if ``specs`` has no length.
            committed: What an earlier run committed, by sink. A file whose output is still valid isn't
                run: its outcome is ``unchanged``. The same is true of a file without failed rows with
                ``only="failed"``. If no file is left to run, no worker starts.

        Yields:
            One outcome for each file, as soon as it is committed or has failed. A failed file doesn't
            stop the others.

        Raises:
            SpecError: The specs differ in compute or num_actors.
            ClusterCapacityError: The job exceeds a limit or doesn't fit the cluster.
            ClusterError: Ray can't be reached or stopped working.
        """
        if files is None and isinstance(specs, Sized):
            files = len(specs)
        identified = cache(self._identified)
        sorted_out = self._sorted_out(specs, committed or {}, identified)
        for file in sorted_out:
            if isinstance(file, BatchOutcome):
                yield file
            else:  # the first one to run; the job takes the rest
                rest = chain([file], sorted_out)
                yield from self._run(identified(), file, rest, files, committed or {})

    def _run(
        self,
        context: ModelContext,
        first: BatchSpec,
        rest: Iterable[BatchSpec | BatchOutcome],
        files: int | None,
        committed: Mapping[str, CommittedSink],
    ) -> Iterator[BatchOutcome]:
        with (
            shown_progress(self.model_spec.name, files=files)
            if self._on_progress == "auto"
            else nullcontext(self._on_progress)
        ) as on_progress:
            workforce = self._workforce(context, first, files)
            yield from run_job(context, rest, workforce, on_progress, committed)

    def _workforce(self, context: ModelContext, first: BatchSpec, files: int | None) -> Workforce:
        if first.compute == "local":
            from sheaf_dagster.batch.local import LocalWorkforce

            return LocalWorkforce(context)
        from sheaf_dagster.batch.on_demand import OnDemandWorkforce
        from sheaf_dagster.batch.ray.workforce import RayWorkforce

        plan = WorkerPlan.of(self.model_spec.resources, first)
        engine = engine_for(first, files, self.cluster)
        workforce = RayWorkforce(context, plan, engine, self.cluster)
        may_have_no_work = first.only is not None or reused_output(first) is not None
        return OnDemandWorkforce(workforce) if may_have_no_work else workforce

    def fingerprint(self, spec: BatchSpec) -> str:
        """Identity of the output that a job would write: source, model, batch layout, policy.

        It equals the ``BatchResult.fingerprint`` of a finished job exactly when another run would write
        the same bytes.

        Raises:
            SourceError: The source is missing or can't be read.
        """
        return _identity_of(self._identified(), spec)[0]

    def model_identity(self) -> tuple[str | None, str]:
        """Identity of the model's current weights, and version of the model.

        Returns:
            The identity that the backend's ``identify`` finds without loading, or None if it can't; and
            the version, a hash (hex) of that identity and the spec. A job that runs with the same
            weights and spec has this ``BatchResult.model_version``.

        Raises:
            BackendLoadError: The backend's ``identify`` failed.
        """
        context = self._identified()
        return context.identity, context.version

    def _sorted_out(
        self,
        specs: Iterable[BatchSpec],
        committed: Mapping[str, CommittedSink],
        identified: Callable[[], ModelContext],
    ) -> Iterator[BatchSpec | BatchOutcome]:
        """The files to run; outcomes of those that can't work or have nothing to do."""
        first = None
        for spec in specs:
            earlier = committed.get(spec.sink) if spec.only is None else None
            if earlier and earlier.still_holds(spec, lambda s: _identity_of(identified(), s)[0]):
                yield BatchOutcome(spec=spec)
                continue
            verify_limits(WorkerPlan.of(self.model_spec.resources, spec), self.cluster)
            asked = (spec.compute, spec.num_actors)
            if first is not None and asked != (first.compute, first.num_actors):
                raise SpecError(
                    f"files of one job must share compute and num_actors: {spec.sink} has "
                    f"{spec.compute!r}/{spec.num_actors}, the first one "
                    f"{first.compute!r}/{first.num_actors}"
                )
            try:
                self._check_files(spec)
                to_do = spec.only is None or self._may_need_a_run(spec, committed.get(spec.sink))
            except SheafError as e:
                yield BatchOutcome(spec=spec, error=e)
                continue
            if not to_do:
                yield BatchOutcome(spec=spec)
                continue
            first = first or spec
            yield spec

    def _may_need_a_run(self, spec: BatchSpec, earlier: CommittedSink | None) -> bool:
        """Whether the last output has failed rows, or may be that of another source."""
        sink = Location.of(spec.sink, spec.storage_options)
        if has_failed_rows(self._context.rows, sink):
            return True
        return earlier is None or not earlier.is_of_source(spec)

    def _check_files(self, spec: BatchSpec) -> None:
        rows = self._context.rows
        check_mapped_names(spec, rows.request)
        check_keep(spec.keep, rows.request, rows.response, rows.fields_of(spec))
        sink_format(self._context, spec)
        sink = store_at(Location.of(spec.sink, spec.storage_options))
        for uri in spec.sources:
            if store_at(Location.of(uri, spec.storage_options)).is_same_file(sink):
                raise SpecError(
                    f"source and sink are the same file: {uri} and {spec.sink}; choose another sink"
                )
            if spec.sink.startswith(f"{uri.rstrip('/')}/"):
                raise SpecError(
                    f"the sink {spec.sink} lies in the folder of the source, {uri}, whose files are "
                    "all read; choose another sink"
                )
        if spec.batch_budget is not None:
            _require_size(self._context.backend_cls)
        if spec.max_cost is not None or spec.max_tokens_total is not None:
            _require_tokens(self.model_spec.model_type)
        if spec.bucket_by is not None:
            fields = self._context.rows.request.model_fields
            if spec.bucket_by not in fields:
                raise SpecError(
                    f"bucket_by={spec.bucket_by!r} is not a field of "
                    f"{self._context.rows.request.__name__}; its fields: {', '.join(fields)}"
                )


def _require_tokens(model_type: str) -> None:
    response = contract_for(model_type).response
    if not callable(getattr(response, "token_usage", None)):
        raise SpecError(
            f"max_cost, max_tokens_total: answers of model type {model_type!r} don't say how many "
            "tokens they took, so no limit could hold; leave it out"
        )


def _require_size(backend: type[ModelBackend]) -> None:
    if shape_of(backend) != "stages" or backend.size is ModelBackend.size:
        raise SpecError(
            f"batch_budget: backend {backend.__qualname__} doesn't say how large a row is; a budget "
            "needs one in stages (prepare, infer, respond) that has size(). Use batch_size"
        )


def _identity_of(context: ModelContext, spec: BatchSpec) -> tuple[str, str]:
    """A job's fingerprint, and the digest of its source."""
    files = files_of([Location.of(uri, spec.storage_options) for uri in spec.sources])
    types = types_in_source(spec, context.rows.fields_of(spec), files)
    digest = digest_of(files)
    return job_fingerprint(context, spec, digest, kept_identity(spec), types), digest
