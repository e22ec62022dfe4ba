"""Files of requests that somebody drops into a folder: each is forecast as it lands."""

import os
from pathlib import Path

import dagster as dg

import sheaf_dagster as sd

__all__ = ["build_inbox"]


def build_inbox(
    root: Path,
) -> tuple[dg.AssetsDefinition, dg.SensorDefinition, sd.StorageResource]:
    """The asset, its sensor and the storage that both use.

    The inbox is ``inbox/`` below ``root``, or what ``SHEAF_EXAMPLE_INBOX`` names, such as
    ``s3://my-bucket/inbox`` with credentials where AWS's own tools find them. Forecasts go to
    ``forecasts/`` below it.
    """
    asset = sd.build_batch_inference_asset(
        dg.AssetSpec(
            "inbox_forecasts",
            group_name="inbox",
            description="Forecasts of each file of requests that lands in the inbox.",
        ),
        source="{root}/{partition_key}.jsonl",
        sink="{root}/forecasts/{partition_key}.jsonl",
        partitions_def=dg.DynamicPartitionsDefinition(name="inbox_files"),
        storage="inbox",
        compute="local",  # a file at a time, in seconds: no Ray to wait for
    )
    sensor = sd.build_jsonl_arrival_sensor(
        asset,
        storage="inbox",
        files_per_run=20,
        settle_seconds=2,
        minimum_interval_seconds=5,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    where = os.environ.get("SHEAF_EXAMPLE_INBOX") or str(root / "inbox")
    return asset, sensor, sd.StorageResource(root=where)
