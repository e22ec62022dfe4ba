"""A code location for the tests of backfills: toy assets over days, files under $SHEAF_TEST_ROOT."""

import os

import dagster as dg

import sheaf_dagster as sd
from sheaf_dagster import ModelSpec
from tests.definitions.project import inference_asset
from tests.toys import doubler

ROOT = os.environ.get("SHEAF_TEST_ROOT", "/nowhere")
POWER_CUT = 3.0
"""The value at which a power cut ends a run, once."""

HANGS = 3.0
"""The value at which a run of ``called_off`` hangs."""


def days(number: int) -> dg.DailyPartitionsDefinition:
    return dg.DailyPartitionsDefinition("2026-01-01", end_date=f"2026-01-{number + 1:02}")


def predictions(name: str, number: int, suffix: str = "jsonl", **fields) -> dg.AssetsDefinition:
    return inference_asset(
        name,
        source=f"{{root}}/in/{name}/{{partition_key}}.{suffix}",
        sink=f"{{root}}/out/{name}/{{partition_key}}.{suffix}",
        partitions_def=days(number),
        compute="local",
        **fields,
    )


defs = dg.Definitions(
    assets=[
        predictions("at_once", 10, "parquet"),
        predictions("by_three", 5, backfill_policy=dg.BackfillPolicy.multi_run(3)),
        predictions("one_by_one", 2, backfill_policy=dg.BackfillPolicy.multi_run(1)),
        predictions("cut_short", 6, "parquet", model="power_cut"),
        predictions("called_off", 6, model="hanging"),
        predictions("mended", 5, model="moody", on_error="record"),
    ],
    resources={
        "model": sd.ModelResource.from_spec(doubler()),
        "power_cut": sd.ModelResource.from_spec(
            ModelSpec(
                name="power_cut",
                model_type="number",
                backend="tests.toys:PowerCut",
                backend_kwargs={"at": POWER_CUT, "once": os.path.join(ROOT, "was_cut")},
            )
        ),
        "moody": sd.ModelResource.from_spec(
            ModelSpec(
                name="moody",
                model_type="number",
                backend="tests.toys:Moody",
                backend_kwargs={"moods": os.path.join(ROOT, "moods")},
            )
        ),
        "hanging": sd.ModelResource.from_spec(doubler(hang_on=[HANGS])),
        "ray_cluster": sd.RayClusterResource(),
        "storage": sd.StorageResource(root=ROOT),
    },
)
