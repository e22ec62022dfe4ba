"""One execution of a batch inference asset: its files, and what is recorded of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import dagster as dg

from sheaf_dagster.batch.messages import shortened
from sheaf_dagster.batch.ray.capacity import WorkerPlan
from sheaf_dagster.batch.ray.cluster_config import ClusterConfig, check_limits
from sheaf_dagster.batch.spec import BatchSpec, ModelSpec
from sheaf_dagster.batch.work import FileOutcome, FileWork, StepOrder
from sheaf_dagster.batch.worker.loading import ModelContext
from sheaf_dagster.definitions.checks import CheckLedger, severities_of
from sheaf_dagster.definitions.history import (
    EarlierMaterialization,
    Provenance,
    committed_in_this_chain,
)
from sheaf_dagster.definitions.interrupts import interrupts_wait
from sheaf_dagster.definitions.metadata import FAILED_CHECKS, result_metadata
from sheaf_dagster.definitions.model_asset import note_model_version, version_tag
from sheaf_dagster.definitions.options import ReportOptions, StepOptions
from sheaf_dagster.errors import SheafError, SpecError
from sheaf_dagster.storage.options import secret_arguments

__all__ = ["SpecOf", "Step"]

SpecOf = Callable[[str | None], BatchSpec]
"""The job of a partition."""

_SHOWN = 20
"""Failed partitions that the step's failure names."""

_REASON = 2000
_EXCERPT = 500


class Step:
    """One execution of the step: what is recorded of some partitions that run as one job."""

    def __init__(
        self,
        context: dg.AssetExecutionContext,
        key: dg.AssetKey,
        model: ModelSpec,
        model_key: dg.AssetKey | None,
        options: StepOptions,
        report: ReportOptions,
    ) -> None:
        self.context = context
        self.model = model
        self.redact_rows = report.redact_rows
        self.progress_every_s = options.progress_every_s
        self.ledger = CheckLedger(severities_of(report.check_severities))
        self._key = key
        self._actuals = report.actuals
        self._upstream = [
            dep.asset_key
            for dep in context.assets_def.specs_by_key[key].deps
            if dep.asset_key != model_key
        ]
        self.model_key = model_key
        self._failed: dict[str, Exception] = {}
        self._earlier: dict[str, EarlierMaterialization] = {}
        self._reused: list[dg.AssetMaterialization] = []
        self._partition_of: dict[str, str | None] = {}
        self._spec_of: dict[str, BatchSpec] = {}
        self._total = 0

    @property
    def holder(self) -> str:
        """What the job is called in the messages of others that wait for its capacity."""
        return f"asset {self._key.to_user_string()} (run {self.context.run_id[:8]})"

    def began(self, keys: Sequence[str | None], model: tuple[str | None, str] | None) -> None:
        """Notes the model that is about to run: its weights' identity, and its version."""
        if self.model_key is not None and model is not None:
            note_model_version(self.context, self.model_key, self.model, *model)
        self._provenance = Provenance(self.context, self._key, keys, self.model_key)

    def files(self, keys: Sequence[str | None], spec_of: SpecOf) -> Iterator[FileWork]:
        """The files to run; a partition that can't be a file is its own failure."""
        self._total = len(keys)
        self._earlier = committed_in_this_chain(self.context, self._key, keys)
        for partition in keys:
            try:
                spec = spec_of(partition)
                self._check_sink(partition, spec)
            except SheafError as e:
                self._fail(partition, e)
                continue
            earlier = self._earlier.get(partition or "")
            self._partition_of[spec.sink] = partition
            self._spec_of[spec.sink] = spec
            # What a check holds back is run again: passed over, it would stay held back for ever.
            keep = earlier and not self.ledger.would_block(earlier.failed_checks)
            yield FileWork(spec, earlier.committed if earlier and keep else None)

    def _check_sink(self, partition: str | None, spec: BatchSpec) -> None:
        if spec.sink in self._partition_of:  # such as {a}-{b} for x-y, z and x, y-z
            raise SpecError(
                f"partitions {self._partition_of[spec.sink]} and {partition} have the same sink, "
                f"{spec.sink}; put something between the placeholders of sink that does not occur "
                "in partition keys, such as a slash"
            )

    def order(self, limits: ClusterConfig, files: Sequence[FileWork]) -> StepOrder:
        """The same files for a process on the cluster.

        Raises:
            ClusterCapacityError: They can't fit the limits.
            SpecError: The model's arguments hold a secret.
        """
        if secrets := secret_arguments(self.model.backend_kwargs):
            raise SpecError(
                f"model {self.model.name!r}: {', '.join(secrets)} of backend_kwargs would travel to "
                'the cluster in clear, where the dashboard shows them; give EnvVar("NAME"), which '
                "is read on the cluster"
            )
        first = files[0].spec
        check_limits(WorkerPlan.of(self.model.resources, first), limits)
        model = ModelContext.of(self.model)
        classes = (model.backend_cls, model.rows.request)
        return StepOrder(
            self.model,
            limits,
            first.model_dump(mode="json", exclude={"source", "sink"}, exclude_defaults=True),
            list(files),
            sorted({c.__module__ for c in classes} - {"__main__"}),
            self.redact_rows,
            self.progress_every_s,
            identify=self.model_key is not None,
        )

    @interrupts_wait()
    def take(self, outcome: FileOutcome) -> None:
        """Records what came of one file."""
        partition = self._partition_of[outcome.sink]
        if outcome.unchanged:
            self._pass_over(partition)
            return
        result, sample = outcome.result, outcome.sample
        if result is None or sample is None:
            assert outcome.error is not None
            self._fail(partition, outcome.error)
            return
        actuals = self._actuals
        md = result_metadata(
            result,
            self._spec_of[outcome.sink],
            self.model,
            sample,
            partitioned=partition is not None,
            preview=not self.redact_rows,
            upstream=self._upstream,
            actuals=(lambda request: actuals(partition, request)) if actuals else None,
        )
        if failed := self.ledger.committed(partition or "", result, sample):
            md[FAILED_CHECKS] = ", ".join(failed)
        self.context.log_event(
            dg.AssetMaterialization(
                self._key,
                partition=partition,
                metadata=md,
                tags=self._provenance.tags(
                    partition, result.fingerprint[:32], version_tag(result.model_version)
                ),
            )
        )

    def _pass_over(self, partition: str | None) -> None:
        self.context.log.info(
            f"{partition or 'asset'}: committed by an earlier run of this chain, and its source, "
            "model and layout are unchanged; not run again"
        )
        earlier = self._earlier[partition or ""]
        self.ledger.passed_over(partition or "", earlier.rows, earlier.failed_checks)
        if not earlier.in_this_run:
            self._reused.append(earlier.materialization)

    def _fail(self, partition: str | None, error: Exception) -> None:
        self._failed[partition or ""] = error
        self.ledger.failed(partition or "", error)
        self.context.log.error(f"{partition or 'asset'}: {error}")

    def raise_if_failed(self) -> None:
        """Ends the step with one summary where a partition failed."""
        if not self._failed:
            return
        # Dagster counts a key of a failed run as failed unless that run has materialised it.
        for materialization in self._reused:
            self.context.log_event(materialization)
        # Our own errors know whether retrying helps; an unknown one is left to the policy.
        retryable = any(getattr(e, "retryable", True) for e in self._failed.values())
        if list(self._failed) == [""]:
            (error,) = self._failed.values()
            raise dg.Failure(str(error), allow_retries=retryable) from error
        # A message or metadata of megabytes is an event that Dagster's database and pages choke on.
        first = list(self._failed.items())[:_SHOWN]
        failed = "\n".join(f"{k}: {shortened(str(e), _REASON)}" for k, e in first)
        if more := len(self._failed) - len(first):
            failed += (
                f"\n… and {more:,} more: each is an error in this run's log, by its partition, and "
                "the asset's page lists the failed partitions"
            )
        if self._total > 1:
            others = "; the others are materialised" if len(self._failed) < self._total else ""
            failed = f"{len(self._failed)} of {self._total} partitions failed{others}:\n{failed}"
        raise dg.Failure(
            failed,
            metadata={
                "failed_partitions": dg.MetadataValue.json(
                    {k: shortened(str(e), _EXCERPT) for k, e in first}
                ),
                "failed_partitions_count": len(self._failed),
            },
            allow_retries=retryable,
        ) from next(iter(self._failed.values()))
