"""A batch job as a Dagster asset, for one partition or a range of them in one step."""

# No postponed annotations here: Dagster reads those of the step function as they are.
import importlib.util
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, Literal

import dagster as dg
from pydantic import ValidationError

from sheaf_dagster.batch.logs import logs_told_to
from sheaf_dagster.batch.progress import EVERY_SECONDS, progress_lines
from sheaf_dagster.batch.runner import BatchRunner
from sheaf_dagster.batch.spec import BatchSpec, Compute, ModelSpec, OnError, problems_of
from sheaf_dagster.batch.work import run_files
from sheaf_dagster.definitions.capacity import BUILT_METADATA, built_metadata
from sheaf_dagster.definitions.checks import check_specs, severities_of
from sheaf_dagster.definitions.clusters import cluster_config, cluster_limits, jobs_address
from sheaf_dagster.definitions.config import BatchConfig, run_config
from sheaf_dagster.definitions.interrupts import interrupts_wait
from sheaf_dagster.definitions.paths import (
    SINK_METADATA,
    SOURCE_METADATA,
    SOURCE_PARTITIONS_METADATA,
    check_template,
    partition_fields,
    resolve,
)
from sheaf_dagster.definitions.plots import ActualsOf
from sheaf_dagster.definitions.sources import SourcePartitions
from sheaf_dagster.definitions.step import SpecOf, Step
from sheaf_dagster.errors import MissingDependencyError, SheafError, SpecError

__all__ = ["Launch", "build_batch_inference_asset"]

Launch = Literal["step", "ray_job"]

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
    batch_size: int | Literal["auto"] = 32,
    compute: Compute = "tasks",
    num_actors: int | None = None,
    on_error: OnError = "fail",
    batch_timeout: float | None = None,
    bucket_by: str | None = None,
    model: str = "model",
    model_asset: Any = None,
    ray_cluster: str = "ray_cluster",
    storage: str = "storage",
    launch: Launch = "step",
    backfill_policy: dg.BackfillPolicy | None = None,
    retry_policy: dg.RetryPolicy | None = None,
    automation_condition: dg.AutomationCondition | None = None,
    pool: str | None = None,
    group_name: str | None = None,
    description: str | None = None,
    owners: Sequence[str] | None = None,
    tags: Mapping[str, str] | None = None,
    kinds: set[str] | None = None,
    op_tags: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    code_version: str | None = None,
    check_severities: Mapping[str, dg.AssetCheckSeverity] | None = None,
    actuals: ActualsOf | None = None,
    redact_rows: bool = False,
    progress_every_s: float = EVERY_SECONDS,
) -> dg.AssetsDefinition:
    """An asset that runs a JSONL file of requests through a model, for each partition.

    A range of partitions runs as one job with the model loaded once in each worker. Each
    partition is materialised as soon as its file is committed, with its own metadata and data
    version; those that fail leave the others materialised and are the only ones to redo. A
    re-execution or automatic retry of a run, which Dagster hands every key again, passes over
    partitions that the same chain of runs has committed, whose source, model and batch layout
    are unchanged, and which no check holds back. Materialising a partition anew, as a run of its
    own, always runs it.

    Args:
        key: Key of the asset.
        source: Template of the file of requests: ``{root}`` is the storage's root,
            ``{partition_key}`` the partition, ``{name}`` a dimension of a multi-dimensional one, whose other
            dimensions may share the file.
        sink: Template of the file of responses.
        deps: The upstream assets.
        partitions_def: Partitions, if any: time windows, static, dynamic or multi-dimensional.
        source_partitions: Where the source has other partitions than the sink: several upstream
            files are read as one, in key order, and ``{partition_key}`` in ``source`` is theirs.
        batch_size: Rows that one ``batch_predict`` call is given; ``"auto"``: each worker grows it
            to the best rows per second within memory, then holds it.
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
        launch: ``step``: the step is Ray's driver, on a machine of the cluster or with a local Ray;
            ``ray_job``: the step submits a Ray job to the cluster's dashboard and follows it, from
            anywhere.
        backfill_policy: By default a single run for any range of partitions.
        retry_policy: For errors that retrying can mend; the others end the step at once.
        automation_condition: For declarative automation, such as
            ``AutomationCondition.eager()``.
        pool: Dagster pool of the step, by which an instance limits jobs at a time; None: named
            like the ``ray_cluster`` resource, so that
            ``dagster instance concurrency set ray_cluster 2`` lets two jobs run on it at a time;
            ``""``: none. With ``compute="local"`` there is none by default.
        group_name: Group of the asset.
        description: Shown on the asset's page; by default which rows are answered, by what, and
            where the answers are.
        owners: E-mail addresses or ``team:`` names.
        tags: Tags of the asset.
        kinds: Kinds shown on the asset, beside ``ray``.
        op_tags: Tags of the step, which executors and run launchers read, such as
            ``dagster-k8s/config``.
        metadata: Metadata of the definition.
        code_version: Version of the code that makes the asset.
        check_severities: Severity by check name, in place of the default. A check that fails
            with ERROR holds downstream assets back; with WARN it is only shown.
        actuals: For forecasts: called with the partition key (None without partitions) and a
            request, as a dictionary, it gives what happened after the request's history, or
            None where that isn't known. The plot shows it beside the forecast.
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
        check_template("source", template, names, partitioned=partitioned, shared=True)

    check_source(source)
    if source == sink:
        raise SpecError(f"source and sink are the same file, {source!r}; choose another sink")
    if source_partitions is not None:
        source_partitions.check(partitions_def)
    built = {
        "batch_size": batch_size,
        "compute": compute,
        "num_actors": num_actors,
        "on_error": on_error,
        "batch_timeout": batch_timeout,
        "bucket_by": bucket_by,
    }
    _batch_spec(f"asset {asset_key.to_user_string()}", {**built, "source": "a", "sink": "b"})
    if launch == "ray_job" and importlib.util.find_spec("dagster_ray") is None:
        raise MissingDependencyError(
            f'asset {asset_key.to_user_string()}: launch="ray_job" needs dagster-ray; '
            "pip install 'sheaf_dagster[ray-jobs]'"
        )
    spec = dg.AssetSpec(
        asset_key,
        deps=[*(deps or ()), *([] if model_key is None else [model_key])],
        description=description or _described(source, sink, model),
        group_name=group_name,
        owners=owners,
        tags=tags,
        kinds={"ray", *(kinds or ())},
        metadata={
            SOURCE_METADATA: source,
            SINK_METADATA: sink,
            **_upstream(source_partitions),
            BUILT_METADATA: built_metadata(compute, num_actors, model, ray_cluster),
            **(metadata or {}),
        },
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
            launch=launch,
            model_key=model_key,
            backfill_policy=backfill_policy,
            retry_policy=retry_policy,
            pool=_pool(pool, compute, ray_cluster),
            op_tags=op_tags,
            severities=severities_of(check_severities or {}),
            actuals=actuals,
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
    launch: Launch,
    model_key: dg.AssetKey | None,
    backfill_policy: dg.BackfillPolicy | None,
    retry_policy: dg.RetryPolicy | None,
    pool: str | None,
    op_tags: Mapping[str, Any] | None,
    severities: Mapping[str, dg.AssetCheckSeverity],
    actuals: ActualsOf | None,
    redact_rows: bool,
    progress_every_s: float,
) -> dg.AssetsDefinition:
    asset_key = spec.key
    partitions_def = spec.partitions_def
    partitioned = partitions_def is not None
    model, ray_cluster, storage = resource_keys

    @dg.multi_asset(
        name=asset_key.to_python_identifier(),
        specs=[spec],
        check_specs=check_specs(asset_key),
        backfill_policy=(backfill_policy or dg.BackfillPolicy.single_run())
        if partitioned
        else None,
        retry_policy=retry_policy,
        pool=pool,
        op_tags=op_tags,
        required_resource_keys={model, ray_cluster, storage},
        # No argument of the function: a wrong value would end the step before that is called.
        config_schema=BatchConfig.to_fields_dict(),
    )
    def batch_inference(context: dg.AssetExecutionContext) -> Iterator[Any]:
        where = getattr(context.resources, storage)
        try:
            path = f"run config, ops.{context.op.name}.config"
            changed = run_config(path, context.op_execution_context.op_config).changes()
            read_from = changed.pop("source", source)
            _batch_spec(path, {**built, **changed, "source": "a", "sink": "b"})
            model_spec: ModelSpec = getattr(context.resources, model).to_spec()
            check_source(read_from)
            options = where.options_by_name if launch == "ray_job" else where.options
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

        step = Step(
            context,
            asset_key,
            model_spec,
            model_key,
            severities,
            actuals=actuals,
            redact_rows=redact_rows,
            progress_every_s=progress_every_s,
        )
        run = _run_as_ray_job if launch == "ray_job" else _run_here
        try:
            run(step, getattr(context.resources, ray_cluster), keys, spec_of)
        except SheafError as e:
            raise dg.Failure(str(e), allow_retries=e.retryable) from e
        yield from step.ledger.results(asset_key)
        step.raise_if_failed()
        if step.ledger.blocking:
            raise dg.Failure(
                f"checks failed: {', '.join(step.ledger.blocking)}; see them on the asset's page",
                allow_retries=False,
            )
        yield dg.MaterializeResult(asset_key=asset_key, metadata={_LOGGED_ITS_OWN_EVENTS: True})

    return batch_inference


def _upstream(source_partitions: SourcePartitions | None) -> dict[str, str]:
    if source_partitions is None:
        return {}
    return {SOURCE_PARTITIONS_METADATA: str(source_partitions.partitions_def)}


def _pool(given: str | None, compute: Compute, ray_cluster: str) -> str | None:
    if given is None and compute != "local":
        return ray_cluster
    return given or None


def _described(source: str, sink: str, model: str) -> str:
    return (
        f"One answer to each row of `{source}`, by the model in resource `{model}`, in the same "
        f"order in `{sink}`. Every row is checked before the model runs."
    )


def _batch_spec(what: str, fields: dict[str, Any]) -> BatchSpec:
    try:
        return BatchSpec(**fields)
    except ValidationError as e:
        raise SpecError(f"{what}: {problems_of(e)}") from e


def _run_here(step: Step, cluster: Any, keys: Sequence[str | None], spec_of: SpecOf) -> None:
    """Runs the partitions with this process as the driver."""
    say = progress_lines(
        interrupts_wait()(step.context.log.info),
        every_s=step.progress_every_s,
        files=len(keys),
        noun="partitions",
    )
    config = cluster_config(cluster, step.holder)
    runner = BatchRunner(step.model, config, say, redact_rows=step.redact_rows).for_one_step()
    step.began(keys, None if step.model_key is None else runner.model_identity())
    with (
        logs_told_to(interrupts_wait()(step.context.log.log)),
        closing(  # type: ignore[type-var]
            run_files(runner, step.files(keys, spec_of), len(keys))
        ) as outcomes,
    ):
        for outcome in outcomes:
            step.take(outcome)


def _run_as_ray_job(step: Step, cluster: Any, keys: Sequence[str | None], spec_of: SpecOf) -> None:
    """Runs the partitions with a Ray job as the driver."""
    from sheaf_dagster.definitions.ray_jobs import run_as_ray_job

    where, limits = jobs_address(cluster), cluster_limits(cluster, step.holder)
    files = list(step.files(keys, spec_of))
    if files:
        run_as_ray_job(
            step.context,
            where,
            step.order(limits, files),
            began=lambda model: step.began(keys, model),
            take=step.take,
        )
