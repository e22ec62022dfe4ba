"""A code location for the daemon test: a toy asset over ten days, files under $SHEAF_TEST_ROOT."""

import os

import dagster as dg

import sheaf_dagster as sd
from tests.toys import doubler

predictions = sd.build_batch_inference_asset(
    "predictions",
    source="{root}/in/{partition_key}.jsonl",
    sink="{root}/out/{partition_key}.jsonl",
    partitions_def=dg.DailyPartitionsDefinition("2026-01-01", end_date="2026-01-11"),
    compute="local",
)
defs = dg.Definitions(
    assets=[predictions],
    resources={
        "model": sd.ModelResource.from_spec(doubler()),
        "ray_cluster": sd.RayClusterResource(),
        "storage": sd.StorageResource(root=os.environ["SHEAF_TEST_ROOT"]),
    },
)
