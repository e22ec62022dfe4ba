"""What a tick of the arrival sensor costs as the listing grows."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg

import sheaf_dagster as sd
from benchmarks.common import trivial

NEW = 1_000
LIMIT_SECONDS = 60.0
"""Dagster gives a tick this long (DAGSTER_SENSOR_GRPC_TIMEOUT_SECONDS)."""

_LINE = b'{"model_name": "m", "history": [1.0, 2.0], "horizon": 1, "frequency": "1d"}\n'


def arrivals(folder: Path) -> dict[str, Any]:
    """A tick with 1,000, 10,000 and 100,000 files seen, quiet and with 1,000 new ones."""
    logging.getLogger("dagster").setLevel(logging.ERROR)
    figures: dict[str, Any] = {}
    for seen in (1_000, 10_000, 100_000):
        root = folder / f"arrivals-{seen}"
        (root / "in").mkdir(parents=True)

        def put(name: str, where: Path = root / "in") -> None:
            (where / name).write_bytes(_LINE)

        storage = sd.StorageResource(root=str(root))
        figures[f"disk, {seen:,} seen"] = _ticks(root / "home", storage, put, seen, NEW)
    figures["S3, 10,000 seen"] = _on_s3(folder, 10_000)
    slowest = max(f["new_seconds"] for f in figures.values())
    figures["ratios"] = {
        "Dagster's limit over the slowest tick": LIMIT_SECONDS / slowest,
        "quiet tick, 100,000 over 1,000 seen": figures["disk, 100,000 seen"]["quiet_seconds"]
        / figures["disk, 1,000 seen"]["quiet_seconds"],
    }
    for name, value in figures.items():
        print(f"{name:<24}", {k: round(v, 3) for k, v in value.items()}, flush=True)
    return figures


def _on_s3(folder: Path, seen: int) -> dict[str, float]:
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        reach = {"endpoint_url": f"http://{host}:{port}"}
        client = boto3.client(
            "s3",
            aws_access_key_id="test-only",
            aws_secret_access_key="test-only",
            region_name="us-east-1",
            **reach,
        )
        client.create_bucket(Bucket="arrivals")
        storage = sd.StorageResource(
            root="s3://arrivals",
            storage_options={"key": "test-only", "secret": "test-only", **reach},
        )
        return _ticks(
            folder / "arrivals-s3",
            storage,
            lambda name: client.put_object(Bucket="arrivals", Key=f"in/{name}", Body=_LINE),
            seen,
            NEW,
        )
    finally:
        server.stop()


def _ticks(
    home: Path, storage: sd.StorageResource, put: Callable[[str], Any], seen: int, new: int
) -> dict[str, float]:
    """Seconds of a tick as the code server evaluates it, Dagster's own share included.

    Processor seconds are of this process: for S3 they include the server, which is a thread of it.
    """
    files = dg.DynamicPartitionsDefinition(name="files")
    asset = sd.build_batch_inference_asset(
        "predictions",
        source="{root}/in/{partition_key}.jsonl",
        sink="{root}/out/{partition_key}.jsonl",
        partitions_def=files,
        compute="local",
    )
    sensor = sd.build_jsonl_arrival_sensor(
        asset, settle_seconds=0, skip_existing=True, max_files_per_tick=new
    )
    repository = dg.Definitions(
        assets=[asset],
        sensors=[sensor],
        resources={
            "model": sd.ModelResource.from_spec(trivial()),
            "ray_cluster": sd.RayClusterResource(),
            "storage": storage,
        },
    ).get_repository_def()
    evaluated = repository.get_sensor_def(sensor.name)
    cursor: str | None = None

    def tick(instance: dg.DagsterInstance) -> tuple[float, float, Any]:
        nonlocal cursor
        started, cpu = time.perf_counter(), time.process_time()
        with dg.build_sensor_context(
            instance=instance,
            instance_ref=instance.get_ref(),
            cursor=cursor,
            repository_def=repository,
            resources={"storage": storage},
        ) as context:
            result = evaluated.evaluate_tick(context)
        cursor = result.cursor
        return time.perf_counter() - started, time.process_time() - cpu, result

    home.mkdir(parents=True, exist_ok=True)
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        keys = [f"file-{i:07}" for i in range(seen)]
        for key in keys:
            put(f"{key}.jsonl")
        for start in range(0, seen, 5_000):
            instance.add_dynamic_partitions("files", keys[start : start + 5_000])
        first, _, _ = tick(instance)
        quiet, quiet_cpu, _ = tick(instance)
        for i in range(new):
            put(f"new-{i:07}.jsonl")
        with_new, new_cpu, result = tick(instance)
        assert len(result.run_requests) == new
        cursor_after_new = len(result.cursor)
        instance.add_dynamic_partitions("files", [r.partition_key for r in result.run_requests])
        after, _, result = tick(instance)
        assert not result.run_requests
        return {
            "first_seconds": first,
            "quiet_seconds": quiet,
            "quiet_cpu_seconds": quiet_cpu,
            "new_seconds": with_new,
            "new_cpu_seconds": new_cpu,
            "after_new_seconds": after,
            "cursor_bytes_after_new": cursor_after_new,
            "cursor_bytes": len(result.cursor),
        }
