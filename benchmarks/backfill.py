"""A range of partitions as one run against a run each, and what a small partition costs."""

# No postponed annotations here: Dagster reads those of the step function as they are.

import json
import logging
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

import sheaf_dagster as sd
from benchmarks.common import respond, start_ray, trivial

LOAD_SECONDS = 2.0
ROWS = 182
BATCH = 32
KEY = dg.AssetKey("predictions")
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@dataclass(frozen=True)
class Backfill:
    """What one took, and what it left in the event log."""

    seconds: float
    loads: int
    logged: list[dg.AssetMaterialization]


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
        events = _events_alone(one_300.logged)
        by_hand = _by_hand_on_ray(folder / "c", 300)
    finally:
        ray.shutdown()
    figures = {
        "10 as one run": {"seconds": one_10.seconds, "loads": one_10.loads},
        "10 runs of one": {"seconds": each_10.seconds, "loads": each_10.loads},
        "300 as one run": {
            "seconds": one_300.seconds,
            "loads": one_300.loads,
            "seconds_per_partition": one_300.seconds / 300,
        },
        # The 300 once more, by what can be measured without us.
        "a partition of 300": {
            "seconds": one_300.seconds / 300,
            "dagster_alone": events / 300,
            "by_hand_on_ray": by_hand / 300,
            "our_own": (one_300.seconds - events - by_hand) / 300,
        },
        "ratios": {
            "10 runs over one run": each_10.seconds / one_10.seconds,
            "loads, 10 runs over one run": each_10.loads / one_10.loads,
            "cost a partition, run each over 300 as one (2 s load in both)": (each_10.seconds / 10)
            / ((one_300.seconds + LOAD_SECONDS) / 300),
        },
    }
    for name, value in figures.items():
        print(f"{name:<24}", {k: round(v, 4) for k, v in value.items()}, flush=True)
    return figures


def _run(root: Path, count: int, *, as_one: bool, load: float) -> Backfill:
    (root / "in").mkdir(parents=True)
    keys = [f"p{i:03}" for i in range(count)]
    row = {"model_name": "m", "history": [1.0, 2, 3] * 9, "horizon": 7, "frequency": "1d"}
    for key in keys:
        (root / "in" / f"{key}.jsonl").write_text((json.dumps(row) + "\n") * ROWS)
    loads = root / "loads"
    asset = sd.build_batch_inference_asset(
        KEY,
        source="{root}/in/{partition_key}.jsonl",
        sink="{root}/out/{partition_key}.jsonl",
        partitions_def=dg.StaticPartitionsDefinition(keys),
        compute="actors",
        num_actors=1,
        batch_size=BATCH,
    )
    defs = dg.Definitions(
        assets=[asset],
        resources={
            "model": sd.ModelResource.from_spec(trivial(load_seconds=load, load_log=str(loads))),
            "ray_cluster": sd.RayClusterResource(),
            "storage": sd.StorageResource(root=str(root)),
        },
        loggers={},
    )
    job = defs.resolve_implicit_global_asset_job_def()
    with _instance() as instance:
        started = time.perf_counter()
        if as_one:
            runs = [
                job.execute_in_process(instance=instance, tags=_whole_range(keys), run_config=QUIET)
            ]
        else:
            runs = [
                job.execute_in_process(instance=instance, partition_key=k, run_config=QUIET)
                for k in keys
            ]
        seconds = time.perf_counter() - started
        records = instance.fetch_materializations(KEY, limit=count + 1).records
    assert all(r.success for r in runs)
    assert len(list((root / "out").glob("*.jsonl"))) == count == len(records)
    logged = [r.asset_materialization for r in records if r.asset_materialization is not None]
    return Backfill(seconds, len(loads.read_text().split()), logged)


def _events_alone(logged: list[dg.AssetMaterialization]) -> float:
    """Seconds of a run that does nothing but log the same materialisations to the same storage."""
    keys = sorted(str(m.partition) for m in logged)

    @dg.multi_asset(
        specs=[dg.AssetSpec(KEY, skippable=True)],
        partitions_def=dg.StaticPartitionsDefinition(keys),
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def log_them(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult]:
        for materialization in logged:
            context.log_event(materialization)
        yield from ()

    job = dg.Definitions(assets=[log_them], loggers={}).resolve_implicit_global_asset_job_def()
    with _instance() as instance:
        started = time.perf_counter()
        run = job.execute_in_process(instance=instance, tags=_whole_range(keys), run_config=QUIET)
        seconds = time.perf_counter() - started
        records = instance.fetch_materializations(KEY, limit=len(logged) + 1).records
    assert run.success
    assert len(records) == len(logged)
    return seconds


def _by_hand_on_ray(root: Path, count: int) -> float:
    """Seconds of one Ray actor that is called once a file: parse, run, write, and no more."""
    import ray

    from sheaf_dagster.contracts import TimeSeriesRequest, TimeSeriesResponse

    @ray.remote(num_cpus=1)
    class Worker:
        def run(self, source: str, sink: str) -> int:
            parse = TimeSeriesRequest.__pydantic_validator__.validate_json
            dump = TimeSeriesResponse.__pydantic_serializer__.to_json
            with open(source, "rb") as f:
                rows = [parse(line) for line in f]
            with open(sink, "wb") as out:
                out.writelines(dump(respond(r, TimeSeriesResponse)) + b"\n" for r in rows)
            return len(rows)

    sources = sorted((root / "in").glob("*.jsonl"))
    (root / "by_hand").mkdir()
    started = time.perf_counter()
    worker = Worker.remote()
    rows = [
        ray.get(worker.run.remote(str(source), str(root / "by_hand" / source.name)))
        for source in sources
    ]
    seconds = time.perf_counter() - started
    ray.kill(worker)
    assert rows == [ROWS] * count
    return seconds


def _whole_range(keys: list[str]) -> dict[str, str]:
    return {
        "dagster/asset_partition_range_start": keys[0],
        "dagster/asset_partition_range_end": keys[-1],
    }


@contextmanager
def _instance() -> Iterator[dg.DagsterInstance]:
    with tempfile.TemporaryDirectory() as home, dg.DagsterInstance.local_temp(home) as instance:
        yield instance
