"""One execution of a batch inference asset: its plan is run, here or as a Ray job, and recorded."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import dagster as dg

from sheaf_dagster.batch.logs import logs_told_to
from sheaf_dagster.batch.model_spec import ModelSpec
from sheaf_dagster.batch.orders import FileOutcome, StepOrder
from sheaf_dagster.batch.progress import progress_lines
from sheaf_dagster.batch.ray.capacity import WorkerPlan
from sheaf_dagster.batch.ray.cluster_config import ClusterConfig, verify_limits
from sheaf_dagster.batch.runner import BatchRunner
from sheaf_dagster.batch.spec import BatchOptions, Only
from sheaf_dagster.batch.worker.loading import ModelContext
from sheaf_dagster.definitions.checks import blocking, severities_of
from sheaf_dagster.definitions.clusters import cluster_config, cluster_limits, jobs_address
from sheaf_dagster.definitions.history import committed_in_this_chain, latest_materializations
from sheaf_dagster.definitions.interrupts import interrupts_wait
from sheaf_dagster.definitions.model_asset import note_model_version
from sheaf_dagster.definitions.options import ReportOptions, StepOptions
from sheaf_dagster.definitions.recorder import StepRecorder
from sheaf_dagster.definitions.step_plan import SpecOf, StepPlan
from sheaf_dagster.errors import SpecError
from sheaf_dagster.storage.options import secret_arguments

__all__ = ["Step"]


@dataclass(frozen=True)
class Step:
    """One execution of the step.

    Attributes:
        context: Dagster's.
        key: The asset.
        model: The model.
        model_key: The asset that stands for the model, if any.
        options: How it is run.
        report: What is shown of it.
        batch: How its files are run.
    """

    context: dg.AssetExecutionContext
    key: dg.AssetKey
    model: ModelSpec
    model_key: dg.AssetKey | None
    options: StepOptions
    report: ReportOptions
    batch: BatchOptions

    def plan(
        self, keys: Sequence[str | None], spec_of: SpecOf, only: Only | None = None
    ) -> StepPlan:
        """The files of some partitions, with what earlier runs made of them.

        Args:
            keys: The partitions.
            spec_of: Their files.
            only: Which rows are run. If not all, the answers of any run are kept; otherwise what
                runs of the same chain have made may stand.
        """
        if only is not None:
            earlier = latest_materializations(self.context, self.key, keys)
            return StepPlan.of(keys, spec_of, earlier)
        severities = severities_of(self.report.check_severities, self.batch.on_invalid)
        earlier = committed_in_this_chain(self.context, self.key, keys)
        # What a check holds back is run again: passed over, it would stay held back for ever.
        stands = {k: e for k, e in earlier.items() if not blocking(e.failed_checks, severities)}
        return StepPlan.of(keys, spec_of, stands)

    def run(self, plan: StepPlan, cluster: Any) -> StepRecorder:
        """Runs a plan as one job; returns what was recorded of it.

        Raises:
            SheafError: The job as a whole failed.
        """
        run = self._run_as_ray_job if self.options.launch == "ray_job" else self._run_here
        return run(plan, cluster)

    def _run_here(self, plan: StepPlan, cluster: Any) -> StepRecorder:
        """Runs the files with this process as the driver."""
        say = progress_lines(
            interrupts_wait()(self.context.log.info),
            every_s=self.options.progress_every_s,
            files=len(plan.keys),
            noun="partitions",
        )
        config = cluster_config(cluster, self._holder)
        runner = BatchRunner(self.model, config, say, redact_rows=self.report.redact_rows)
        runner = runner.for_one_step()
        recorder = self._recorder(plan, runner.model_identity() if self.model_key else None)
        with (
            logs_told_to(interrupts_wait()(self.context.log.log)),
            closing(runner.run_many(plan.specs, committed=plan.committed)) as outcomes,  # type: ignore[type-var]
        ):
            for outcome in outcomes:
                recorder.take(FileOutcome.of(outcome, self.model))
        return recorder

    def _run_as_ray_job(self, plan: StepPlan, cluster: Any) -> StepRecorder:
        """Runs the files with a Ray job as the driver."""
        from sheaf_dagster.definitions.ray_jobs import run_as_ray_job

        where, limits = jobs_address(cluster), cluster_limits(cluster, self._holder)
        if not plan.files:
            return self._recorder(plan, None)
        return run_as_ray_job(
            self.context,
            where,
            self._order(plan, limits),
            began=lambda model: self._recorder(plan, model),
        )

    @property
    def _holder(self) -> str:
        """What the job is called in the messages of others that wait for its capacity."""
        return f"asset {self.key.to_user_string()} (run {self.context.run_id[:8]})"

    def _recorder(self, plan: StepPlan, model: tuple[str | None, str] | None) -> StepRecorder:
        """The recorder of a job that begins with these weights (identity, version), if known."""
        if self.model_key is not None and model is not None:
            note_model_version(self.context, self.model_key, self.model, *model)
        severities = severities_of(self.report.check_severities, self.batch.on_invalid)
        return StepRecorder(
            self.context, self.key, plan, self.model, self.model_key, self.report, severities
        )

    def _order(self, plan: StepPlan, limits: ClusterConfig) -> StepOrder:
        """The files for a process on the cluster.

        Raises:
            ClusterCapacityError: They can't fit the limits.
            SpecError: The model's arguments hold a secret.
        """
        if secrets := secret_arguments(self.model.backend_kwargs):
            raise SpecError(
                f"model {self.model.name!r}: {', '.join(secrets)} of backend_kwargs would be sent "
                "to "
                'the cluster as plain text, which the dashboard shows; give EnvVar("NAME"), which '
                "is read on the cluster"
            )
        first = plan.specs[0]
        verify_limits(WorkerPlan.of(self.model.resources, first), limits)
        model = ModelContext.of(self.model)
        classes = (model.backend_cls, model.rows.request)
        return StepOrder(
            self.model,
            limits,
            first.model_dump(mode="json", exclude={"source", "sink"}, exclude_defaults=True),
            plan.specs,
            plan.committed,
            sorted({c.__module__ for c in classes} - {"__main__"}),
            self.report.redact_rows,
            self.options.progress_every_s,
            identify=self.model_key is not None,
        )
