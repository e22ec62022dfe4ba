"""A batch job as a Dagster asset, for one partition or a range of them in one step."""

# No postponed annotations here: Dagster reads those of the step function as they are.
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import dagster as dg

from sheaf_dagster.batch.model_spec import ModelSpec
from sheaf_dagster.batch.rows.columns import check_float_type
from sheaf_dagster.batch.spec import BatchOptions, Compute, Only
from sheaf_dagster.definitions.capacity import BUILT_METADATA, built_metadata
from sheaf_dagster.definitions.checks import check_specs
from sheaf_dagster.definitions.config import BatchConfig, run_config
from sheaf_dagster.definitions.inside import LOGGED_ITS_OWN_EVENTS
from sheaf_dagster.definitions.options import ReportOptions, StepOptions, changed_options
from sheaf_dagster.definitions.places import Places
from sheaf_dagster.definitions.sources import SourcePartitions
from sheaf_dagster.definitions.step import Step
from sheaf_dagster.definitions.step_plan import SpecOf
from sheaf_dagster.errors import SheafError, SpecError

__all__ = ["build_batch_inference_asset"]


def build_batch_inference_asset(
    key: str | Sequence[str] | dg.AssetKey | dg.AssetSpec,
    *,
    source: str,
    sink: str,
    batch_size: int | Literal["auto"] | None = None,
    compute: Compute | None = None,
    num_actors: int | None = None,
    deps: Iterable[Any] | None = None,
    partitions_def: dg.PartitionsDefinition | None = None,
    batch: BatchOptions | None = None,
    step: StepOptions | None = None,
    report: ReportOptions | Literal["html"] | None = None,
    model: str = "model",
    ray_cluster: str = "ray_cluster",
    storage: str = "storage",
    source_partitions: SourcePartitions | None = None,
    model_asset: Any = None,
) -> dg.AssetsDefinition:
    """Builds an asset that runs a file of requests through a model, for each partition.

    A range of partitions runs as one job, and each worker loads the model once. Each partition is
    materialised as soon as its file is committed, with its own metadata and data version. If some
    partitions fail, the others stay materialised, and only the failed ones need another run.

    When Dagster re-executes or retries a run, it passes all of the run's partitions again. The
    asset then skips a partition if an earlier attempt of the run has committed it, its source,
    model and batch layout are unchanged, and no check holds it back. A run that is no retry always
    runs its partitions.

    Pass an ``AssetSpec`` to set what any asset has: group_name, owners, tags, kinds, metadata,
    description, code_version, automation_condition and so on::

        build_batch_inference_asset(
            dg.AssetSpec("forecasts", group_name="demand", owners=["team:planning"]),
            source="{root}/requests/{partition_key}.jsonl",
            sink="{root}/forecasts/{partition_key}.jsonl",
            partitions_def=dg.DailyPartitionsDefinition("2026-01-01"),
            batch=BatchOptions(on_error="record"),
            step=StepOptions(retry_policy=dg.RetryPolicy(max_retries=2)),
        )

    Args:
        key: Key of the asset, or its ``AssetSpec``.
        source: Template of the file of requests. ``{root}`` is the storage's root and
            ``{partition_key}`` the partition. For multi-dimensional partitions ``{name}`` is the
            key of one dimension; partitions that differ only in other dimensions share the file.
        sink: Template of the file of responses.
        batch_size: Rows in one ``batch_predict`` call. ``"auto"``: each worker finds the batch size
            with the most rows per second that fits in memory. Short for the field of ``batch``.
        compute: ``tasks``, ``actors`` or ``local``. Short for the field of ``batch``.
        num_actors: Size of the actor pool. Required with ``compute="actors"``. Short for the field
            of ``batch``.
        deps: The upstream assets.
        partitions_def: The partitions, if any: time windows, static, dynamic or multi-dimensional.
        batch: How a job runs. By default ``BatchOptions()``.
        step: How Dagster runs the step. By default ``StepOptions()``.
        report: What is shown, and how severe the checks are. ``"html"`` is short for
            ``ReportOptions(report="html")``.
        model: Key of the ``ModelResource``.
        ray_cluster: Key of the ``RayClusterResource``.
        storage: Key of the ``StorageResource``.
        source_partitions: Partitions of the source, if they differ from those of the sink. The
            upstream files of one partition are read as one file, in key order, and
            ``{partition_key}`` in ``source`` is their key.
        model_asset: The asset that ``build_model_asset`` returned for the same model resource, or
            its key. When the model changes, Dagster then shows the partitions of the earlier model
            as stale.

    Returns:
        The asset, with its checks.

    Raises:
        SpecError: An argument can't work, or is given twice; the message names it.
    """
    step = step or StepOptions()
    shown = report if isinstance(report, ReportOptions) else ReportOptions(report=report)
    given = key if isinstance(key, dg.AssetSpec) else dg.AssetSpec(key)
    if partitions_def is not None and given.partitions_def is not None:
        raise SpecError(
            f"asset {_name(given)}: partitions_def is given as an argument and in the AssetSpec; give it once"
        )
    places = Places(source, sink, partitions_def or given.partitions_def, source_partitions)
    written = {"batch_size": batch_size, "compute": compute, "num_actors": num_actors}
    options = _options(f"asset {_name(given)}", batch, written)
    places.check_reuse(options)
    check_float_type(options, sink)
    model_key = None if model_asset is None else dg.AssetDep.from_coercible(model_asset).asset_key
    spec = given.replace_attributes(
        deps=[*given.deps, *(deps or ()), *([] if model_key is None else [model_key])],
        description=given.description or _described(places, model),
        kinds={"ray", *given.kinds},
        metadata={
            **places.metadata,
            BUILT_METADATA: built_metadata(options, model, ray_cluster),
            **given.metadata,
        },
        partitions_def=places.partitions_def,
    )
    partitioned = spec.partitions_def is not None

    def batch_inference(context: dg.AssetExecutionContext) -> Iterator[Any]:
        where = getattr(context.resources, storage)
        try:
            path = f"run config, ops.{context.op.name}.config"
            changes = run_config(path, context.op_execution_context.op_config).changes()
            at = places.reading(changes.pop("source", places.source))
            only: Only | None = changes.pop("only", None)
            chosen = changed_options(path, options, changes)
            spec_of: SpecOf = partial(
                at.spec_of,
                options=chosen,
                only=only,
                root=where.base,
                storage_options=(
                    where.options_by_name if step.launch == "ray_job" else where.options
                ),
                instance=context.instance,
            )
            model_spec: ModelSpec = getattr(context.resources, model).to_spec()
        except SheafError as e:
            raise dg.Failure(str(e), allow_retries=False) from e
        keys: list[str | None] = list(context.partition_keys) if partitioned else [None]
        execution = Step(context, spec.key, model_spec, model_key, step, shown, chosen)
        try:
            plan = execution.plan(keys, spec_of, only)
            recorder = execution.run(plan, getattr(context.resources, ray_cluster))
        except SheafError as e:
            raise dg.Failure(str(e), allow_retries=e.retryable) from e
        recorder.tell_spent()
        yield from recorder.check_results()
        recorder.raise_if_failed()
        yield dg.MaterializeResult(asset_key=spec.key, metadata={LOGGED_ITS_OWN_EVENTS: True})

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)  # backfill_policy, on every call
        return dg.multi_asset(
            name=spec.key.to_python_identifier(),
            specs=[spec],
            check_specs=check_specs(
                spec.key, spec.partitions_def if shown.checks_by_partition else None
            ),
            backfill_policy=(step.backfill_policy or dg.BackfillPolicy.single_run())
            if partitioned
            else None,
            retry_policy=step.retry_policy,
            pool=step.pool_of(options, ray_cluster),
            op_tags=step.op_tags,
            required_resource_keys={model, ray_cluster, storage},
            # No argument of the function: a wrong value would end the step before that is called.
            config_schema=BatchConfig.to_fields_dict(),
        )(batch_inference)


def _name(spec: dg.AssetSpec) -> str:
    return spec.key.to_user_string()


def _options(what: str, batch: BatchOptions | None, written: dict[str, Any]) -> BatchOptions:
    batch = batch or BatchOptions()
    written = {name: value for name, value in written.items() if value is not None}
    for name in written.keys() & batch.model_fields_set:
        raise SpecError(f"{what}: {name} is an argument and a field of batch; leave one out")
    return changed_options(what, batch, written)


def _described(places: Places, model: str) -> str:
    return (
        f"One answer to each row of `{places.source}`, given by the model in resource `{model}` and "
        f"written to `{places.sink}` in the same order. Every row is validated before the model runs."
    )
