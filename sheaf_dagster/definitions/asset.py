"""A batch job as a Dagster asset, for one partition or a range of them in one step."""

# No postponed annotations here: Dagster reads those of the step function as they are.
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

import dagster as dg
from pydantic import ValidationError

from sheaf_dagster.batch import BatchRunner
from sheaf_dagster.batch.progress import EVERY_SECONDS, progress_lines
from sheaf_dagster.batch.results import BatchOutcome
from sheaf_dagster.batch.sample import OutputSample, sample_output
from sheaf_dagster.batch.spec import BatchSpec, Compute, ModelSpec, OnError
from sheaf_dagster.definitions.checks import CheckLedger, check_specs
from sheaf_dagster.definitions.config import BatchConfig
from sheaf_dagster.definitions.history import Provenance, committed_in_this_chain
from sheaf_dagster.definitions.metadata import result_metadata
from sheaf_dagster.definitions.model_asset import note_model_version, version_tag
from sheaf_dagster.definitions.paths import (
    SINK_METADATA,
    SOURCE_METADATA,
    check_template,
    partition_fields,
    resolve,
)
from sheaf_dagster.definitions.sources import SourcePartitions
from sheaf_dagster.errors import SheafError, SpecError

__all__ = ["build_batch_inference_asset"]

# Dagster logs one materialisation for each partition of a range when the step's output is
# yielded, and only then: too late for a range of which some fail, and without a data version of
# each. We log them one by one as their files are committed, and yield the output, without which
# downstream steps of the same run would be skipped, with the mark by which Dagster knows an
# asset that has logged its own events.
_LOGGED_ITS_OWN_EVENTS = "__source_asset_observation__"


def build_batch_inference_asset(
    key: str | Sequence[str] | dg.AssetKey,
    *,
    source: str,
    sink: str,
    deps: Iterable[Any] | None = None,
    partitions_def: dg.PartitionsDefinition | None = None,
    source_partitions: SourcePartitions | None = None,
    batch_size: int = 32,
    compute: Compute = "tasks",
    num_actors: int | None = None,
    on_error: OnError = "fail",
    batch_timeout: float | None = None,
    bucket_by: str | None = None,
    model: str = "model",
    model_asset: Any = None,
    ray_cluster: str = "ray_cluster",
    storage: str = "storage",
    backfill_policy: dg.BackfillPolicy | None = None,
    retry_policy: dg.RetryPolicy | None = None,
    automation_condition: dg.AutomationCondition | None = None,
    pool: str | None = None,
    group_name: str | None = None,
    description: str | None = None,
    owners: Sequence[str] | None = None,
    tags: Mapping[str, str] | None = None,
    kinds: set[str] | None = None,
    metadata: Mapping[str, Any] | None = None,
    code_version: str | None = None,
    check_severities: Mapping[str, dg.AssetCheckSeverity] | None = None,
    redact_rows: bool = False,
    progress_every_s: float = EVERY_SECONDS,
) -> dg.AssetsDefinition:
    """An asset that runs a JSONL file of requests through a model, for each partition.

    A range of partitions runs as one job with the model loaded once in each worker. Each
    partition is materialised as soon as its file is committed, with its own metadata and data
    version; those that fail leave the others materialised and are the only ones to redo. A
    re-execution or automatic retry of a run, which Dagster hands every key again, passes over
    partitions that the same chain of runs has committed and whose source, model and batch
    layout are unchanged. Materialising a partition anew, as a run of its own, always runs it.

    Args:
        key: Key of the asset.
        source: Template of the file of requests: ``{root}`` is the storage's root,
            ``{partition_key}`` the partition, ``{name}`` a dimension of a multi-dimensional one.
        sink: Template of the file of responses.
        deps: The upstream assets.
        partitions_def: Partitions, if any: time windows, static, dynamic or multi-dimensional.
        source_partitions: Where the source has other partitions than the sink: several upstream
            files are read as one, in key order, and ``{partition_key}`` in ``source`` is theirs.
        batch_size: Rows that one ``batch_predict`` call is given.
        compute: ``tasks``, ``actors`` or ``local``.
        num_actors: Size of the actor pool; needed with ``compute="actors"``.
        on_error: ``fail``, or ``record`` to write failing rows as error responses.
        batch_timeout: Seconds that one ``batch_predict`` call may take before it is stopped.
        bucket_by: Request field by whose value rows are grouped into batches.
        model: Key of the ``ModelResource``.
        model_asset: What ``build_model_asset`` made of the same resource, or its key: a changed
            model then shows the partitions that the earlier one has made as stale.
        ray_cluster: Key of the ``RayClusterResource``.
        storage: Key of the ``StorageResource``.
        backfill_policy: By default a single run for any range of partitions.
        retry_policy: For errors that retrying can mend; the others end the step at once.
        automation_condition: For declarative automation, such as
            ``AutomationCondition.eager()``.
        pool: Dagster pool of the step, by which an instance limits jobs at a time.
        group_name: Group of the asset.
        description: Shown on the asset's page.
        owners: E-mail addresses or ``team:`` names.
        tags: Tags of the asset.
        kinds: Kinds shown on the asset, beside ``ray``.
        metadata: Metadata of the definition.
        code_version: Version of the code that makes the asset.
        check_severities: Severity by check name, in place of the default.
        redact_rows: Keep row values out of errors, metadata and previews.
        progress_every_s: Seconds between two lines in the event log that say how far the step
            is: rows, rate, partitions done, time to go.

    Returns:
        The asset, with its checks.

    Raises:
        SpecError: An argument can't work; the message names it.
    """
    asset_key = dg.AssetKey.from_coercible(key)
    model_key = None if model_asset is None else dg.AssetDep.from_coercible(model_asset).asset_key
    dimensions = (
        [d.name for d in partitions_def.partitions_defs]
        if isinstance(partitions_def, dg.MultiPartitionsDefinition)
        else []
    )
    partitioned = partitions_def is not None
    check_template("sink", sink, dimensions, partitioned=partitioned)

    def check_source(template: str) -> None:
        names = [] if source_partitions else dimensions
        check_template("source", template, names, partitioned=partitioned)

    check_source(source)
    built = {
        "batch_size": batch_size,
        "compute": compute,
        "num_actors": num_actors,
        "on_error": on_error,
        "batch_timeout": batch_timeout,
        "bucket_by": bucket_by,
    }
    _batch_spec(f"asset {asset_key.to_user_string()}", {**built, "source": "a", "sink": "b"})
    spec = dg.AssetSpec(
        asset_key,
        deps=[*(deps or ()), *([] if model_key is None else [model_key])],
        description=description,
        group_name=group_name,
        owners=owners,
        tags=tags,
        kinds={"ray", *(kinds or ())},
        metadata={SOURCE_METADATA: source, SINK_METADATA: sink, **(metadata or {})},
        code_version=code_version,
        automation_condition=automation_condition,
        partitions_def=partitions_def,
    )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)  # backfill_policy, on every call
        return _define(
            spec,
            source=source,
            check_source=check_source,
            sink=sink,
            built=built,
            source_partitions=source_partitions,
            resource_keys=(model, ray_cluster, storage),
            model_key=model_key,
            backfill_policy=backfill_policy,
            retry_policy=retry_policy,
            pool=pool,
            check_severities=check_severities or {},
            redact_rows=redact_rows,
            progress_every_s=progress_every_s,
        )


def _define(
    spec: dg.AssetSpec,
    *,
    source: str,
    check_source: Callable[[str], None],
    sink: str,
    built: dict[str, Any],
    source_partitions: SourcePartitions | None,
    resource_keys: tuple[str, str, str],
    model_key: dg.AssetKey | None,
    backfill_policy: dg.BackfillPolicy | None,
    retry_policy: dg.RetryPolicy | None,
    pool: str | None,
    check_severities: Mapping[str, dg.AssetCheckSeverity],
    redact_rows: bool,
    progress_every_s: float,
) -> dg.AssetsDefinition:
    asset_key = spec.key
    partitions_def = spec.partitions_def
    partitioned = partitions_def is not None
    model, ray_cluster, storage = resource_keys

    @dg.multi_asset(
        name="__".join(asset_key.path),
        specs=[spec],
        check_specs=check_specs(asset_key),
        backfill_policy=(backfill_policy or dg.BackfillPolicy.single_run())
        if partitioned
        else None,
        retry_policy=retry_policy,
        pool=pool,
        required_resource_keys={model, ray_cluster, storage},
    )
    def batch_inference(context: dg.AssetExecutionContext, config: BatchConfig) -> Iterator[Any]:
        model_spec: ModelSpec = getattr(context.resources, model).to_spec()
        cluster = getattr(context.resources, ray_cluster).to_config()
        where = getattr(context.resources, storage)
        changed = config.changes()
        read_from = changed.pop("source", source)
        try:
            check_source(read_from)
            options = where.options
        except SheafError as e:
            raise dg.Failure(str(e), allow_retries=False) from e
        keys: list[str | None] = list(context.partition_keys) if partitioned else [None]

        def spec_of(partition: str | None) -> BatchSpec:
            fields = partition_fields(partition)
            if source_partitions is None:
                files: str | list[str] = resolve(read_from, where.base, fields)
            else:
                upstream = source_partitions.keys_for(partition, partitions_def, context.instance)
                files = [resolve(read_from, where.base, partition_fields(k)) for k in upstream]
                files = files[0] if len(files) == 1 else files
            return _batch_spec(
                f"partition {partition}" if partition else asset_key.to_user_string(),
                {
                    **built,
                    **changed,
                    "source": files,
                    "sink": resolve(sink, where.base, fields),
                    "storage_options": options,
                },
            )

        on_progress = progress_lines(
            context.log.info, every_s=progress_every_s, files=len(keys), noun="partitions"
        )
        try:
            runner = BatchRunner(model_spec, cluster, on_progress, redact_rows=redact_rows)
            step = _Step(
                context, asset_key, runner, model_spec, model_key, check_severities, redact_rows
            )
            step.run(keys, spec_of)
        except SheafError as e:
            raise dg.Failure(str(e), allow_retries=e.retryable) from e
        yield from step.ledger.results(asset_key)
        step.raise_if_failed()
        if step.ledger.problems.keys() & {"every_row_is_answered", "order_is_kept"}:
            raise dg.Failure("the output failed its checks; see them", allow_retries=False)
        yield dg.MaterializeResult(asset_key=asset_key, metadata={_LOGGED_ITS_OWN_EVENTS: True})

    return batch_inference


def _batch_spec(what: str, fields: dict[str, Any]) -> BatchSpec:
    try:
        return BatchSpec(**fields)
    except ValidationError as e:
        problems = "; ".join(
            f"{'.'.join(map(str, x['loc'])) or 'spec'}: {x['msg'].removeprefix('Value error, ')}"
            for x in e.errors()
        )
        raise SpecError(f"{what}: {problems}") from e


class _Step:
    """One execution of the step: some partitions through one job."""

    def __init__(
        self,
        context: dg.AssetExecutionContext,
        key: dg.AssetKey,
        runner: BatchRunner,
        model: ModelSpec,
        model_key: dg.AssetKey | None,
        severities: Mapping[str, dg.AssetCheckSeverity],
        redact_rows: bool,
    ) -> None:
        self._context = context
        self._key = key
        self._runner = runner
        self._model = model
        self._model_key = model_key
        self._redact = redact_rows
        self.ledger = CheckLedger(severities)
        self._failed: dict[str, Exception] = {}
        self._reused: list[dg.AssetMaterialization] = []
        self._partition_of: dict[str, str | None] = {}
        self._total = 0

    def run(self, keys: Sequence[str | None], spec_of: Callable[[str | None], BatchSpec]) -> None:
        self._total = len(keys)
        if self._model_key is not None:
            note_model_version(self._context, self._model_key, self._model, self._runner)
        self._provenance = Provenance(self._context, self._key, keys, self._model_key)
        with closing(self._runner.run_many(self._specs(keys, spec_of))) as outcomes:  # type: ignore[type-var]
            for outcome in outcomes:
                self._take(outcome)

    def _specs(
        self, keys: Sequence[str | None], spec_of: Callable[[str | None], BatchSpec]
    ) -> Iterator[BatchSpec]:
        done = committed_in_this_chain(self._context, self._key, keys)
        for partition in keys:
            try:
                spec = spec_of(partition)
            except SheafError as e:  # a key that can't be a file: its own failure, not the range's
                self._fail(partition, e)
                continue
            earlier = done.get(partition or "")
            if earlier is not None and earlier.still_holds(self._runner, spec):
                self._context.log.info(
                    f"{partition or 'asset'}: committed by an earlier run of this chain, and its "
                    "source, model and layout are unchanged; not run again"
                )
                if not earlier.in_this_run:
                    self._reused.append(earlier.materialization)
                continue
            self._partition_of[spec.sink] = partition
            yield spec

    def _take(self, outcome: BatchOutcome) -> None:
        partition = self._partition_of[outcome.spec.sink]
        if outcome.result is None:
            assert outcome.error is not None
            self._fail(partition, outcome.error)
            return
        result = outcome.result
        sample = self._sample(outcome.spec)
        md = result_metadata(
            result,
            self._model,
            sample,
            partitioned=partition is not None,
            preview=not self._redact,
        )
        self._context.log_event(
            dg.AssetMaterialization(
                self._key,
                partition=partition,
                metadata=md,
                tags=self._provenance.tags(
                    partition, result.fingerprint[:32], version_tag(result.model_version)
                ),
            )
        )
        self.ledger.committed(partition or "", result, sample)

    def _sample(self, spec: BatchSpec) -> OutputSample:
        try:
            return sample_output(self._model, spec)
        except SheafError as e:  # the file is committed: that it can't be shown is no failure
            self._context.log.warning(f"no preview, and the order was not compared: {e}")
            return OutputSample([], in_order=True, compared=0)

    def _fail(self, partition: str | None, error: Exception) -> None:
        self._failed[partition or ""] = error
        self.ledger.failed(partition or "", error)
        self._context.log.error(f"{partition or 'asset'}: {error}")

    def raise_if_failed(self) -> None:
        """Ends the step with one summary where a partition failed."""
        if not self._failed:
            return
        # Dagster counts a key of a failed run as failed unless that run has materialised it.
        for materialization in self._reused:
            self._context.log_event(materialization)
        # Our own errors know whether retrying helps; an unknown one is left to the policy.
        retryable = any(getattr(e, "retryable", True) for e in self._failed.values())
        if list(self._failed) == [""]:
            (error,) = self._failed.values()
            raise dg.Failure(str(error), allow_retries=retryable) from error
        raise dg.Failure(
            f"{len(self._failed)} of {self._total} partitions failed; the others are "
            "materialised:\n" + "\n".join(f"{k}: {e}" for k, e in self._failed.items()),
            metadata={
                "failed_partitions": dg.MetadataValue.json(
                    {k: str(e)[:500] for k, e in self._failed.items()}
                )
            },
            allow_retries=retryable,
        ) from next(iter(self._failed.values()))
