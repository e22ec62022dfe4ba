"""One limit of GPUs for all jobs on a cluster."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import CancelledError

import pytest

import sheaf_dagster as sd
from sheaf_dagster.batch.ray.gpu_queue import gpu_share
from sheaf_dagster.batch.ray.reservation import describe_capacity
from tests.batch.ray.specs import pool, tasks, wait_until
from tests.conftest import ROOT, read_rows
from tests.toys import doubler


def test_a_job_that_can_never_have_its_turn_is_refused():
    runner = sd.BatchRunner(doubler(num_gpus=1), sd.ClusterConfig(shared_gpu_limit=2))
    with pytest.raises(sd.ClusterCapacityError, match=r"= 3 GPUs, but .*\(shared_gpu_limit\) is 2"):
        runner.run(pool(3))


def test_the_limit_needs_a_cluster_that_others_see_too(write_rows, tmp_path):
    code = """
import sys, sheaf_dagster as sd
from tests.toys import doubler
runner = sd.BatchRunner(doubler(), sd.ClusterConfig(shared_gpu_limit=2))
runner.run(sd.BatchSpec(source=sys.argv[1], sink=sys.argv[2]))
"""
    alone = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    command = [sys.executable, "-c", code, write_rows([1]), str(tmp_path / "out.jsonl")]
    done = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True, check=False)

    assert 'give address="auto", or leave shared_gpu_limit out' in done.stderr


@pytest.mark.ray
def test_jobs_take_turns_and_none_is_overtaken(ray_cluster, caplog):
    caplog.set_level(logging.INFO, "sheaf_dagster")
    got: list[str] = []
    release = {name: threading.Event() for name in ("first", "large", "small")}
    threads: list[threading.Thread] = []

    def take(name: str, gpus: float) -> None:
        config = sd.ClusterConfig(holder=f"asset {name} (run 1)", shared_gpu_limit=3)
        with gpu_share(gpus, config, threading.Event()):
            got.append(name)
            release[name].wait(300)

    def start(name: str, gpus: float, shows) -> None:
        threads.append(threading.Thread(target=take, args=(name, gpus), daemon=True))
        threads[-1].start()
        wait_until(shows, name)

    start("first", 2, lambda: got == ["first"])
    start("large", 2.5, lambda: "before this job: asset first (run 1): 2 GPUs" in caplog.text)
    both = "before this job: asset first (run 1): 2 GPUs; asset large (run 1): 2.5 GPUs"
    # It would fit beside the first one.
    start("small", 0.5, lambda: both in caplog.text)
    assert got == ["first"]
    assert "held by" not in describe_capacity(), "those who wait hold nothing"
    release["first"].set()
    wait_until(lambda: sorted(got[1:]) == ["large", "small"], "both, which fit together")
    for name in ("large", "small"):
        release[name].set()
    for thread in threads:
        thread.join()


@pytest.mark.ray
def test_a_job_that_is_called_off_leaves_the_queue(ray_cluster):
    stop = threading.Event()
    config = sd.ClusterConfig(shared_gpu_limit=1)
    with gpu_share(1, config, threading.Event()):
        stop.set()
        with pytest.raises(CancelledError), gpu_share(1, config, stop):
            pass
    with gpu_share(1, config, threading.Event()):
        pass


HOLDER = """
import sys
from sheaf_dagster import BatchRunner, BatchSpec, ClusterConfig
from tests.toys import doubler
address, source, sink, log = sys.argv[1:]
model = doubler(num_cpus=0, num_gpus=1, batch_seconds=600, call_log=log)
cluster = ClusterConfig(address=address, holder="asset nightly (run 1a2b3c4d)", shared_gpu_limit=2)
BatchRunner(model, cluster).run(
    BatchSpec(source=source, sink=sink, compute="actors", num_actors=2)
)
"""


@pytest.mark.ray
def test_a_job_in_the_queue_names_bad_rows_at_once_and_follows_a_driver_that_dies(
    ray_cluster, write_rows, tmp_path, caplog
):
    import ray

    caplog.set_level(logging.INFO, "sheaf_dagster")
    log = tmp_path / "calls"
    source = write_rows([1, 2, 3])
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-c", HOLDER, address, source, f"{tmp_path}/held.jsonl", log]
    holder = subprocess.Popen(command, cwd=ROOT)
    try:
        wait_until(log.exists, "the holder to be at work")
        model = doubler(num_cpus=0, num_gpus=1)
        runner = sd.BatchRunner(model, sd.ClusterConfig(shared_gpu_limit=2))
        bad = write_rows([1, "two"], "bad.jsonl")

        with pytest.raises(sd.InputValidationError, match="line 2"):
            runner.run(pool(1, source=bad, sink=str(tmp_path / "none.jsonl")))
        assert holder.poll() is None

        results: list[sd.BatchResult] = []
        job = threading.Thread(
            target=lambda: results.append(runner.run(tasks(source, tmp_path))), daemon=True
        )
        job.start()
        wait_until(
            lambda: (
                "wanted: 2 GPUs of 2 that all jobs may hold (shared_gpu_limit); before this job: "
                "asset nightly (run 1a2b3c4d): 2 GPUs" in caplog.text
            ),
            "the job to say what it waits for",
        )
        os.kill(holder.pid, signal.SIGKILL)
        job.join()
        assert [r["value"] for r in read_rows(results[0].sink)] == [2, 4, 6]
    finally:
        holder.kill()
        holder.wait()
