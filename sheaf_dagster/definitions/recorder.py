"""What is recorded of a step: one outcome after the other, then the summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import dagster as dg

from sheaf_dagster.batch.messages import shortened
from sheaf_dagster.batch.model_spec import ModelSpec
from sheaf_dagster.batch.orders import FileOutcome
from sheaf_dagster.batch.report import remove_report, write_report
from sheaf_dagster.batch.results import BatchResult
from sheaf_dagster.batch.rows.sample import OutputSample
from sheaf_dagster.definitions.checks import CheckLedger
from sheaf_dagster.definitions.history import Provenance
from sheaf_dagster.definitions.inside import checks_of_partition
from sheaf_dagster.definitions.interrupts import interrupts_wait
from sheaf_dagster.definitions.links import file_metadata
from sheaf_dagster.definitions.metadata import FAILED_CHECKS, result_metadata
from sheaf_dagster.definitions.model_asset import version_tag
from sheaf_dagster.definitions.options import ReportOptions
from sheaf_dagster.definitions.step_plan import PlannedFile, StepPlan
from sheaf_dagster.errors import SheafError

__all__ = ["StepRecorder"]

_SHOWN = 20
"""Failed partitions that the step's failure names."""

_REASON = 2000

_BACKFILL = "dagster/backfill"
"""Tag of a backfill's runs."""
_EXCERPT = 500


class StepRecorder:
    """Turns what came of a step's files into Dagster's events.

    What has been materialised upstream counts as of now: make it when the job begins.

    Args:
        context: The step.
        key: The asset.
        plan: The step's files; what can't be a file is recorded as failed at once.
        model: The model that runs.
        model_key: The asset that stands for the model, if any.
        report: What is shown.
        severities: Of the checks.
    """

    def __init__(
        self,
        context: dg.AssetExecutionContext,
        key: dg.AssetKey,
        plan: StepPlan,
        model: ModelSpec,
        model_key: dg.AssetKey | None,
        report: ReportOptions,
        severities: Mapping[str, dg.AssetCheckSeverity],
    ) -> None:
        self._context = context
        self._key = key
        self._plan = plan
        self._model = model
        self._report = report
        self._checks = CheckLedger(severities)
        # Dagster itself puts the results of a run of one partition at that partition.
        self._by_partition = report.checks_by_partition and not context.has_partition_key
        self._provenance = Provenance(context, key, plan.keys, model_key)
        deps = context.assets_def.specs_by_key[key].deps
        self._upstream = [dep.asset_key for dep in deps if dep.asset_key != model_key]
        self._failed: dict[str, Exception] = {}
        self._reused: list[dg.AssetMaterialization] = []
        self._spent = Counter[str]()
        self._cost: float | None = None
        for partition, error in plan.errors.items():
            self._fail(partition, error)

    @interrupts_wait()
    def take(self, outcome: FileOutcome) -> None:
        """Records what came of one file."""
        file = self._plan.files[outcome.sink]
        if outcome.unchanged:
            self._pass_over(file)
        elif outcome.error is not None:
            self._fail(file.partition, outcome.error)
        else:
            self._materialize(file, outcome)

    def _materialize(self, file: PlannedFile, outcome: FileOutcome) -> None:
        result, sample, partition = outcome.result, outcome.sample, file.partition
        assert result is not None and sample is not None
        if result.reused_rows:
            self._context.log.info(
                f"{partition or 'asset'}: {result.rows - result.reused_rows:,} rows were run, "
                f"{result.reused_rows:,} keep their answers"
            )
        self._spent.update(result.new_tokens)
        if result.new_cost is not None:
            self._cost = (self._cost or 0.0) + result.new_cost
        md = result_metadata(
            result,
            file.spec,
            self._model,
            sample,
            partitioned=partition is not None,
            preview=not self._report.redact_rows,
            upstream=self._upstream,
            axes=self._report.axes_for(partition),
        )
        if self._report.report is not None:
            md["report"] = self._written_report(file, result, sample)
        if failed := self._checks.committed(partition or "", result, sample):
            md[FAILED_CHECKS] = ", ".join(failed)
        tags = self._provenance.tags(
            partition, result.fingerprint[:32], version_tag(result.model_version)
        )
        self._context.log_event(
            dg.AssetMaterialization(self._key, partition=partition, metadata=md, tags=tags)
        )
        self._check_alone(
            partition, lambda checks: checks.committed(partition or "", result, sample)
        )

    def _check_alone(self, partition: str | None, note: Callable[[CheckLedger], object]) -> None:
        """Records at a partition of a range what the checks find of its file alone."""
        if not self._by_partition or partition is None:
            return
        checks = CheckLedger(self._checks.severities)
        note(checks)
        results = checks.results(self._key)
        for event in checks_of_partition(self._context.instance, self._key, partition, results):
            self._context.log_event(event)

    def _written_report(
        self, file: PlannedFile, result: BatchResult, sample: OutputSample
    ) -> dg.MetadataValue:
        """Where the page about a file is, or why there is none: the file itself is committed."""
        partition, spec = file.partition, file.spec
        try:
            at = write_report(
                result,
                spec,
                self._model,
                sample,
                title=f"{self._key.to_user_string()}{f', {partition}' if partition else ''}",
                axes=self._report.axes_for(partition),
                redact=self._report.redact_rows,
            )
        except Exception as e:
            remove_report(spec)
            why = e if isinstance(e, SheafError) else f"{type(e).__name__}: {e}"
            self._context.log.warning(f"{partition or 'asset'}: no report was written: {why}")
            return dg.MetadataValue.text(f"not written: {why}")
        return file_metadata(at.uri, spec.storage_options)

    def _pass_over(self, file: PlannedFile) -> None:
        name, earlier, mending = file.partition or "", file.earlier, file.spec.only is not None
        why = (
            "no row failed in its last output; nothing was run"
            if mending
            else "not run again: an earlier attempt of this run committed it, and its source, model "
            "and batch layout are unchanged"
        )
        self._context.log.info(f"{name or 'asset'}: {why}")
        rows, failed = (earlier.rows, earlier.failed_checks) if earlier else (0, ())
        self._checks.passed_over(name, rows, failed)
        self._check_alone(name, lambda checks: checks.passed_over(name, rows, failed))
        if earlier is None:  # an output of which Dagster has not heard
            return
        if mending and self._context.run.tags.get(_BACKFILL):
            # Dagster waits for a materialisation of each partition of a backfill.
            self._context.log_event(earlier.materialization)
        elif not earlier.in_this_run:
            self._reused.append(earlier.materialization)

    def _fail(self, partition: str | None, error: Exception) -> None:
        self._failed[partition or ""] = error
        self._checks.failed(partition or "", error)
        self._check_alone(partition, lambda checks: checks.failed(partition or "", error))
        self._context.log.error(f"{partition or 'asset'}: {error}")

    def tell_spent(self) -> None:
        """Says what the answers of this run took, where they say so."""
        if not self._spent:
            return
        cost = "" if self._cost is None else f", at a cost of {self._cost:.6g}"
        self._context.log.info(
            f"this run used {self._spent['prompt']:,} prompt tokens ({self._spent['hit']:,} of them "
            f"cached) and {self._spent['output']:,} completion tokens{cost}"
        )

    def check_results(self) -> Iterator[dg.AssetCheckResult]:
        """One result a check, over all files of the step."""
        return self._checks.results(self._key)

    def raise_if_failed(self) -> None:
        """Ends the step where a partition failed, or a check that holds downstream assets back.

        Raises:
            dg.Failure: The summary; retried where that may help.
        """
        if self._failed:
            self._raise_failed()
        if blocking := self._checks.blocking:
            raise dg.Failure(
                f"checks failed: {', '.join(blocking)}; see them on the asset's page",
                allow_retries=False,
            )

    def _raise_failed(self) -> None:
        # Dagster counts a key of a failed run as failed unless that run has materialised it.
        for materialization in self._reused:
            self._context.log_event(materialization)
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
                f"\n… and {more:,} more: this run's log has an error for each, and the asset's page "
                "lists the failed partitions"
            )
        total = len(self._plan.keys)
        if total > 1:
            others = "; the others are materialised" if len(self._failed) < total else ""
            failed = f"{len(self._failed)} of {total} partitions failed{others}:\n{failed}"
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
