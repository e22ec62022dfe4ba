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
from tests.batch.ray.specs import pool, tasks
from tests.conftest import ROOT, read_rows
from tests.toys import doubler
from tests.waiting import wait_until


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


class Jobs:
    """Jobs in threads, each of which holds its share until it is released."""

    def __init__(self):
        self.got: list[str] = []
        self._release: dict[str, threading.Event] = {}
        self._threads: list[threading.Thread] = []

    def start(self, name, gpus, limit, shows):
        self._release[name] = threading.Event()
        thread = threading.Thread(target=self._take, args=(name, gpus, limit), daemon=True)
        self._threads.append(thread)
        thread.start()
        wait_until(shows, name)

    def _take(self, name, gpus, limit):
        config = sd.ClusterConfig(holder=f"asset {name} (run 1)", shared_gpu_limit=limit)
        with gpu_share(gpus, config, threading.Event()):
            self.got.append(name)
            self._release[name].wait(300)

    def release(self, *names):
        for name in names:
            self._release[name].set()

    def join(self):
        for thread in self._threads:
            thread.join()


@pytest.mark.ray
def test_jobs_take_turns_and_none_is_overtaken(ray_cluster, caplog):
    caplog.set_level(logging.INFO, "sheaf_dagster")
    jobs = Jobs()
    jobs.start("first", 2, 3, lambda: jobs.got == ["first"])
    first = "ahead of it: asset first (run 1): 2 GPUs"
    jobs.start("large", 2.5, 3, lambda: first in caplog.text)
    # It would fit beside the first one.
    jobs.start("small", 0.5, 3, lambda: f"{first}; asset large (run 1): 2.5 GPUs" in caplog.text)
    assert jobs.got == ["first"]
    assert "held by" not in describe_capacity(), "those who wait hold nothing"
    jobs.release("first")
    wait_until(lambda: sorted(jobs.got[1:]) == ["large", "small"], "both, which fit together")
    jobs.release("large", "small")
    jobs.join()


@pytest.mark.ray
def test_a_limit_that_another_instance_has_or_that_was_lowered_counts_what_is_held(
    ray_cluster, caplog
):
    caplog.set_level(logging.INFO, "sheaf_dagster")
    jobs = Jobs()
    jobs.start("wide", 3, 4, lambda: jobs.got == ["wide"])
    wide = "ahead of it: asset wide (run 1): 3 GPUs"
    jobs.start(
        "lowered",
        1,
        2,
        lambda: (
            f"wants 1 GPU of the 2 that all jobs may hold (shared_gpu_limit); {wide}" in caplog.text
        ),
    )
    # By its own limit it would fit beside the one that holds GPUs, and not beside both.
    jobs.start(
        "later",
        1,
        4,
        lambda: (
            f"of the 4 that all jobs may hold (shared_gpu_limit); {wide}; asset lowered (run 1): 1 GPU"
            in caplog.text
        ),
    )
    assert jobs.got == ["wide"]
    jobs.release("wide")
    wait_until(lambda: sorted(jobs.got[1:]) == ["later", "lowered"], "both, which fit together")
    jobs.release("later", "lowered")
    jobs.join()


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
                "this job wants 2 GPUs of the 2 that all jobs may hold (shared_gpu_limit); ahead of it: "
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
