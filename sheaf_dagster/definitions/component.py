"""A batch inference asset from a ``defs.yaml``."""

# No postponed annotations here: Dagster reads those of components as they are.
from typing import Annotated, Any, Literal

import dagster as dg
from dagster.components.resolved.core_models import (
    AssetSpecKwargs,
    DailyPartitionsDefinitionModel,
    HourlyPartitionsDefinitionModel,
    OpSpec,
    ResolvedAssetKey,
    TimeWindowPartitionsDefinitionModel,
    WeeklyPartitionsDefinitionModel,
    resolve_asset_spec,
    resolve_partitions_def,
)
from pydantic import Field

from sheaf_dagster.batch.spec import BatchOptions, Compute, FloatType, OnError, Reuse
from sheaf_dagster.definitions.asset import build_batch_inference_asset
from sheaf_dagster.definitions.component_fields import (
    ArrivalsSpec,
    RetryPolicySpec,
    form_of,
    option,
    resource_field,
    says,
)
from sheaf_dagster.definitions.model_asset import build_model_asset
from sheaf_dagster.definitions.options import ReportOptions, StepOptions, changed_options
from sheaf_dagster.definitions.resources import (
    ModelResource,
    RayClusterResource,
    StorageResource,
)
from sheaf_dagster.definitions.scaffolder import BatchInferenceScaffolder
from sheaf_dagster.definitions.sensor import build_jsonl_arrival_sensor
from sheaf_dagster.definitions.sources import SourcePartitions
from sheaf_dagster.errors import SpecError

__all__ = ["BatchInferenceComponent", "BatchInferenceScaffolder"]

_EXAMPLE_ASSET = {
    "key": "forecasts",
    "deps": ["requests"],
    "partitions_def": {"type": "daily", "start_date": "2026-01-01"},
}


_NEITHER = "{{ None }}"
"""In the example, which has every field: of two that exclude each other, the one left out."""


@dg.scaffold_with(BatchInferenceScaffolder)
class BatchInferenceComponent(dg.Component, dg.Model, dg.Resolvable):
    """Runs a file of requests through a model, for each partition, as one asset.

    Every row is validated before the model is loaded. Answers keep the order of the rows. The output
    appears whole or not at all. See ``build_batch_inference_asset``.

    Write the model, the cluster and the storage here, or give the key of a resource of the project,
    which several components can share. ``asset`` takes what any asset takes (key, deps,
    partitions_def, group_name, automation_condition …). ``op`` takes the pool, tags and backfill
    policy of the asset's step. ``arrivals`` adds a sensor.
    """

    asset: Annotated[
        dg.AssetSpec,
        dg.Resolver(
            resolve_asset_spec,
            model_field_type=AssetSpecKwargs.model(),
            description="Arguments that any asset takes: key, deps, partitions_def, group_name …",
            examples=[_EXAMPLE_ASSET],
        ),
    ]
    source: Annotated[
        str,
        says(
            'Template of the file of requests, such as "{root}/requests/{partition_key}.jsonl".',
            "{root}/requests/{partition_key}.jsonl",
        ),
    ]
    sink: Annotated[
        str,
        says(
            'Template of the file of responses, such as "{root}/forecasts/{partition_key}.jsonl".',
            "{root}/forecasts/{partition_key}.jsonl",
        ),
    ]
    source_partitions: Annotated[
        Any,
        dg.Resolver(
            resolve_partitions_def,
            model_field_type=HourlyPartitionsDefinitionModel
            | DailyPartitionsDefinitionModel
            | WeeklyPartitionsDefinitionModel
            | TimeWindowPartitionsDefinitionModel,
            description="Time windows of the source, if they differ from the asset's, such as type: hourly. "
            "The files whose windows begin in one partition are read as one file. Can't be "
            "combined with arrivals.",
            # The asset's own: dg's example has every attribute, arrivals among them.
            examples=[_EXAMPLE_ASSET["partitions_def"]],
        ),
    ] = None
    batch_size: Annotated[int | Literal["auto"], option("batch_size", 64)] = 32
    compute: Annotated[Compute, option("compute", "actors")] = "tasks"
    num_actors: Annotated[int | None, option("num_actors", 2)] = None
    on_error: Annotated[OnError, option("on_error", "record")] = "fail"
    on_invalid: Annotated[OnError, option("on_invalid", "record")] = "fail"
    max_error_rows: Annotated[int | None, option("max_error_rows", _NEITHER)] = None
    max_error_fraction: Annotated[float | None, option("max_error_fraction", 0.01)] = None
    batch_timeout: Annotated[float | None, option("batch_timeout", 60.0)] = None
    batch_budget: Annotated[int | Literal["auto"] | None, option("batch_budget", _NEITHER)] = None
    strict: Annotated[bool, option("strict")] = False
    keep: Annotated[list[str], option("keep", ["sku", "store"])] = Field(default_factory=list)
    bucket_by: Annotated[str | None, option("bucket_by", "horizon")] = None
    columns: Annotated[dict[str, str] | None, option("columns", {"history": "sales"})] = None
    fields: Annotated[dict[str, Any] | None, option("fields", {"horizon": 7})] = None
    float_type: Annotated[FloatType, option("float_type", "float64")] = "float64"
    resume: Annotated[bool, option("resume")] = True
    receipt: Annotated[bool, option("receipt")] = False
    reuse: Annotated[Reuse | None, option("reuse", "previous")] = None
    reuse_from: Annotated[str | None, option("reuse_from", _NEITHER)] = None
    price_per_million: Annotated[
        dict[str, float] | None,
        option("price_per_million", {"prompt": 0.5, "completion": 1.5}),
    ] = None
    max_cost: Annotated[float | None, option("max_cost", 20.0)] = None
    max_tokens_total: Annotated[int | None, option("max_tokens_total", 50_000_000)] = None
    launch: Annotated[
        Literal["step", "ray_job"],
        says("step: the step drives Ray itself. ray_job: the step submits a Ray job.", "step"),
    ] = "step"
    redact_rows: Annotated[
        bool,
        says("Keep row values out of errors, metadata, previews and reports."),
    ] = False
    report: Annotated[
        Literal["html"] | None,
        says(
            "html: write a page about each partition beside its sink. Needs sheaf_dagster[html].",
            "html",
        ),
    ] = None
    model_resource: Annotated[
        Any,
        resource_field(
            ModelResource,
            "The model, or the key of a ModelResource.",
            form_of(ModelResource),
            "model",
            {"name": "ets", "model_type": "time_series", "backend": "statsforecast"},
        ),
    ] = "model"
    model_asset: Annotated[
        ResolvedAssetKey | None,
        says(
            "Key of an asset that stands for the model. It tells Dagster which answers come "
            "from an earlier model. If the model is written here, the component adds this "
            "asset; otherwise the project must have it.",
            "forecaster",
        ),
    ] = None
    ray_cluster: Annotated[
        Any,
        resource_field(
            RayClusterResource,
            "The Ray cluster and its limits, or the key of a RayClusterResource.",
            form_of(RayClusterResource),
            "ray_cluster",
            {"cpu_limit": 8},
        ),
    ] = "ray_cluster"
    storage: Annotated[
        Any,
        resource_field(
            StorageResource,
            "Where the files are, or the key of a StorageResource. Write credentials as {env: "
            "NAME}.",
            form_of(StorageResource, ("s3",)),
            "storage",
            {"root": "s3://my-bucket/prefix"},
        ),
    ] = "storage"
    retry_policy: Annotated[
        RetryPolicySpec | None,
        says(
            "Retries of the step, for errors that a retry can fix.",
            {"max_retries": 3, "delay": 30.0, "backoff": "exponential"},
        ),
    ] = None
    check_severities: Annotated[
        dict[str, Literal["WARN", "ERROR"]] | None,
        says(
            "Severity by check, such as {no_row_failed: ERROR}. A check that fails with ERROR "
            "holds back downstream assets.",
            {"no_row_failed": "ERROR"},
        ),
    ] = None
    checks_by_partition: Annotated[
        bool,
        says(
            "Also record the result of each check at each partition (a preview feature of "
            "Dagster).",
            True,
        ),
    ] = False
    op: Annotated[
        OpSpec | None,
        says("Pool, tags and backfill policy of the asset's step.", {"pool": "forecasts"}),
    ] = None
    arrivals: Annotated[
        ArrivalsSpec | None,
        says("Adds a sensor that runs the asset for each file that lands.", {"running": True}),
    ] = None

    @classmethod
    def get_spec(cls) -> dg.ComponentTypeSpec:
        """The entry in the catalogue of components."""
        return dg.ComponentTypeSpec(
            description="Offline model inference over a file of requests, for each partition, on Ray.",
            tags=["ray", "machine-learning"],
        )

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Builds the asset with its checks, the resources written here, and the sensor if there is one."""
        spec, op = self.asset, self.op or OpSpec()
        if op.name or op.description:
            raise SpecError(
                f"asset {spec.key.to_user_string()}: op takes pool, tags and backfill_policy; the "
                "step has the asset's name and description"
            )
        prefix = spec.key.to_python_identifier()
        resources: dict[str, Any] = {}

        def key_of(what: str, value: Any) -> str:
            if isinstance(value, str):
                return value
            # A key of its own, so that components don't take each other's.
            resources[f"{prefix}__{what}"] = value
            return f"{prefix}__{what}"

        storage = key_of("storage", self.storage)
        model = key_of("model", self.model_resource)
        windows = None if self.source_partitions == spec.partitions_def else self.source_partitions
        fields = BatchOptions.model_fields.keys() & type(self).model_fields.keys()
        options = {name: getattr(self, name) for name in fields}
        asset = build_batch_inference_asset(
            spec,
            source=self.source,
            sink=self.sink,
            batch=changed_options(f"asset {spec.key.to_user_string()}", BatchOptions(), options),
            step=StepOptions(
                launch=self.launch,
                retry_policy=self.retry_policy.policy() if self.retry_policy else None,
                backfill_policy=op.backfill_policy,
                pool=op.pool,
                op_tags=op.tags,
            ),
            report=ReportOptions(
                report=self.report,
                redact_rows=self.redact_rows,
                check_severities={
                    name: dg.AssetCheckSeverity[value]
                    for name, value in (self.check_severities or {}).items()
                },
                checks_by_partition=self.checks_by_partition,
            ),
            model=model,
            ray_cluster=key_of("ray_cluster", self.ray_cluster),
            storage=storage,
            source_partitions=SourcePartitions(windows) if windows else None,
            model_asset=self.model_asset,
        )
        assets = [asset]
        if self.model_asset is not None and model in resources:
            assets.append(
                build_model_asset(self.model_asset, model=model, group_name=spec.group_name)
            )
        sensors = [self._sensor(self.arrivals, asset, storage)] if self.arrivals else []
        return dg.Definitions(assets=assets, sensors=sensors, resources=resources)

    @staticmethod
    def _sensor(
        arrivals: ArrivalsSpec, asset: dg.AssetsDefinition, storage: str
    ) -> dg.SensorDefinition:
        status = dg.DefaultSensorStatus
        return build_jsonl_arrival_sensor(
            asset,
            arrivals.source,
            files_per_run=arrivals.files_per_run,
            settle_seconds=arrivals.settle_seconds,
            storage=storage,
            minimum_interval_seconds=arrivals.minimum_interval_seconds,
            default_status=status.RUNNING if arrivals.running else status.STOPPED,
        )
