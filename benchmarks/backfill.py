"""A range of partitions as one run against a run each."""

from __future__ import annotations

import json
import logging
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import dagster as dg

import sheaf_dagster as sd
from benchmarks.common import start_ray, trivial

LOAD_SECONDS = 2.0
ROWS = 182


def backfill(folder: Path) -> dict[str, Any]:
    """N partitions as one run against N runs of one, with a model that takes 2 s to load."""
    import ray

    warnings.simplefilter("ignore")
    logging.getLogger("dagster").setLevel(logging.ERROR)
    start_ray()
    try:
        one_10 = _run(folder / "a", 10, as_one=True, load=LOAD_SECONDS)
        each_10 = _run(folder / "b", 10, as_one=False, load=LOAD_SECONDS)
        one_300 = _run(folder / "c", 300, as_one=True, load=0.0)
    finally:
        ray.shutdown()
    figures = {
        "10 as one run": {"seconds": one_10},
        "10 runs of one": {"seconds": each_10},
        "300 as one run": {"seconds": one_300, "seconds_per_partition": one_300 / 300},
        "ratios": {
            "10 runs over one run": each_10 / one_10,
            "cost a partition, run each over 300 as one (2 s load in both)": (each_10 / 10)
            / ((one_300 + LOAD_SECONDS) / 300),
        },
    }
    for name, value in figures.items():
        print(f"{name:<24}", {k: round(v, 3) for k, v in value.items()}, flush=True)
    return figures


def _run(root: Path, count: int, *, as_one: bool, load: float) -> float:
    (root / "in").mkdir(parents=True)
    keys = [f"p{i:03}" for i in range(count)]
    row = {"model_name": "m", "history": [1.0, 2, 3] * 9, "horizon": 7, "frequency": "1d"}
    for key in keys:
        (root / "in" / f"{key}.jsonl").write_text((json.dumps(row) + "\n") * ROWS)
    asset = sd.build_batch_inference_asset(
        "predictions",
        source="{root}/in/{partition_key}.jsonl",
        sink="{root}/out/{partition_key}.jsonl",
        partitions_def=dg.StaticPartitionsDefinition(keys),
        compute="actors",
        num_actors=1,
    )
    defs = dg.Definitions(
        assets=[asset],
        resources={
            "model": sd.ModelResource.from_spec(trivial(load_seconds=load)),
            "ray_cluster": sd.RayClusterResource(),
            "storage": sd.StorageResource(root=str(root)),
        },
        loggers={},
    )
    job = defs.resolve_implicit_global_asset_job_def()
    quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    with tempfile.TemporaryDirectory() as home, dg.DagsterInstance.local_temp(home) as instance:
        started = time.perf_counter()
        if as_one:
            tags = {
                "dagster/asset_partition_range_start": keys[0],
                "dagster/asset_partition_range_end": keys[-1],
            }
            runs = [job.execute_in_process(instance=instance, tags=tags, run_config=quiet)]
        else:
            runs = [
                job.execute_in_process(instance=instance, partition_key=k, run_config=quiet)
                for k in keys
            ]
        seconds = time.perf_counter() - started
    assert all(r.success for r in runs)
    assert len(list((root / "out").glob("*.jsonl"))) == count
    return seconds
