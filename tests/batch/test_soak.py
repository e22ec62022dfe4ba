"""Thousands of small jobs in one process: nothing grows."""

from __future__ import annotations

import gc
import json
import os
import threading
import time
from pathlib import Path

import psutil
import pytest

from sheaf_dagster import BatchRunner, BatchSpec, ClusterConfig
from tests.conftest import read_rows
from tests.toys import doubler

SECONDS = float(os.environ.get("SHEAF_SOAK_SECONDS", "4"))
"""How long each soak lasts; ``make test-soak`` gives it four minutes."""

MAX_GROWTH_MB = 8.0
"""Of memory between the first fifth and the last one. An allocator doesn't give all back at once."""


def state() -> dict[str, float]:
    gc.collect()
    me = psutil.Process()
    return {
        "memory_mb": me.memory_info().rss / 2**20,
        "handles": me.num_fds(),
        "threads": threading.active_count(),
    }


def log(name: str, **figures) -> None:
    if path := os.environ.get("SHEAF_SOAK_LOG"):
        with open(path, "a") as f:
            f.write(json.dumps({"soak": name, **figures}) + "\n")


def test_small_jobs_in_this_process_leave_nothing_behind(write_rows, tmp_path):
    good, bad = write_rows([1, 2, 3]), write_rows(["x"], name="bad.jsonl")
    runner = BatchRunner(doubler(fail_on=99, batch_seconds=0.0), on_progress=None)
    failing = write_rows([1, 99], name="failing.jsonl")
    states, jobs, began = [], 0, time.monotonic()

    while time.monotonic() - began < SECONDS or len(states) < 10:
        for i in range(10):
            specs = [
                BatchSpec(source=s, sink=str(tmp_path / "out" / f"{i}"), compute="local")
                for s in (good, bad, failing)
            ]
            outcomes = list(runner.run_many(specs))
            jobs += len(outcomes)
            assert [o.ok for o in outcomes] == [True, False, False]
        states.append(state())

    early, late = states[len(states) // 5], states[-1]
    log("local", jobs=jobs, early=early, late=late)
    assert late["handles"] <= early["handles"]
    assert late["threads"] <= early["threads"]
    assert late["memory_mb"] - early["memory_mb"] < MAX_GROWTH_MB


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.parametrize("engine", ["ray_core", "ray_data"])
def test_small_jobs_on_ray_leave_nothing_behind(ray_cluster, write_rows, tmp_path, engine):
    import ray
    from ray._private.state import actors

    sources = [write_rows([i, i + 1], name=f"in/{i}.jsonl") for i in range(40)]
    runner = BatchRunner(doubler(), ClusterConfig(engine=engine), on_progress=None)
    states, jobs, began = [], 0, time.monotonic()

    while time.monotonic() - began < SECONDS or len(states) < 3:
        specs = [
            BatchSpec(source=s, sink=str(tmp_path / "out" / Path(s).name), batch_size=1)
            for s in sources
        ]
        outcomes = list(runner.run_many(specs))
        assert all(o.ok for o in outcomes)
        jobs += len(outcomes)
        figures = state()
        total = ray.cluster_resources()["object_store_memory"]
        free = ray.available_resources().get("object_store_memory", 0.0)
        alive = [a for a in actors().values() if a["State"] == "ALIVE"]
        states.append({**figures, "actors": len(alive), "store_mb": (total - free) / 2**20})

    early, late = states[len(states) // 5], states[-1]
    log(engine, jobs=jobs, early=early, late=late)
    assert len(read_rows(tmp_path / "out" / "0.jsonl")) == 2
    assert late["actors"] <= early["actors"]
    assert late["store_mb"] < early["store_mb"] + 1
    assert late["handles"] <= early["handles"] + 2
    assert late["threads"] <= early["threads"] + 2
    assert late["memory_mb"] - early["memory_mb"] < 3 * MAX_GROWTH_MB
