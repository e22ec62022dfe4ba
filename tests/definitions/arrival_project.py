"""A code location for the daemon test: files that land, and an asset that follows them."""

import os

import dagster as dg

import sheaf_dagster as sd
from tests.toys import doubler

files = dg.DynamicPartitionsDefinition(name="files")
predictions = sd.build_batch_inference_asset(
    "predictions",
    source="{root}/in/{partition_key}.parquet",
    sink="{root}/out/{partition_key}.parquet",
    partitions_def=files,
    compute="local",
)
follower = sd.build_batch_inference_asset(
    dg.AssetSpec("follower", automation_condition=dg.AutomationCondition.eager()),
    deps=[predictions],
    source="{root}/out/{partition_key}.parquet",
    sink="{root}/follower/{partition_key}.jsonl",
    partitions_def=files,
    compute="local",
)
folders = sd.build_batch_inference_asset(
    "folders",
    source="{root}/folders/{partition_key}/",
    sink="{root}/of_folders/{partition_key}.parquet",
    partitions_def=dg.DynamicPartitionsDefinition(name="folders"),
    compute="local",
)


def arrivals_of(asset: dg.AssetsDefinition) -> dg.SensorDefinition:
    return sd.build_jsonl_arrival_sensor(
        asset,
        files_per_run=10,
        settle_seconds=0,
        minimum_interval_seconds=1,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )


defs = dg.Definitions(
    assets=[predictions, follower, folders],
    sensors=[
        arrivals_of(predictions),
        arrivals_of(folders),
        dg.AutomationConditionSensorDefinition(
            "automation",
            target=[follower],
            minimum_interval_seconds=1,
            default_status=dg.DefaultSensorStatus.RUNNING,
        ),
    ],
    resources={
        "model": sd.ModelResource.from_spec(doubler()),
        "ray_cluster": sd.RayClusterResource(),
        "storage": sd.StorageResource(root=os.environ["SHEAF_TEST_ROOT"]),
    },
    executor=dg.in_process_executor,
)
