"""What fits where, and who gets it when two jobs want the same."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading

import pytest

import sheaf_dagster as sd
from sheaf_dagster.batch.ray import pool_watch
from sheaf_dagster.batch.ray import worker as ray_worker
from sheaf_dagster.batch.ray.capacity import WorkerPlan, demand_of, places, shortage
from sheaf_dagster.batch.ray.cluster import _no_note_on_tokens
from sheaf_dagster.batch.ray.reservation import describe_capacity, reserved_pool
from tests.batch.ray.specs import pool, tasks
from tests.conftest import ROOT, read_rows
from tests.toys import doubler
from tests.waiting import wait_until


@pytest.mark.parametrize(
    ("demand", "node", "room"),
    [
        ({"GPU": 1, "CPU": 2}, {"GPU": 4, "CPU": 5}, 2),
        ({"GPU": 0.5}, {"GPU": 2}, 4),
        ({"GPU": 0.4}, {"GPU": 2}, 4),  # two on each device; a fifth would need two of them
        ({"GPU": 0.1}, {"GPU": 1}, 10),
        ({"GPU": 2}, {"GPU": 3}, 1),
        ({"memory": 4 * 2**30}, {"memory": 10 * 2**30, "CPU": 1}, 2),
        ({"tpu_slice": 1}, {"GPU": 8}, 0),
    ],
)
def test_workers_that_a_node_has_room_for(demand, node, room):
    assert places(demand, node) == room


@pytest.mark.parametrize(
    ("limit", "answers"),
    [
        ({}, "[True, True, False]"),
        ({"RAY_OVERRIDE_RESOURCES": '{"CPU": 1}'}, "[False, False, False]"),  # left to the cluster
    ],
)
def test_work_begins_before_ray_is_up_only_where_the_cpus_that_ray_will_count_do(limit, answers):
    # In a process without a Ray, on a machine of which Ray counts fewer CPUs than it has.
    code = """
import multiprocessing, os
multiprocessing.cpu_count, os.cpu_count = lambda: 3, lambda: 64
from sheaf_dagster import BatchOptions, ClusterConfig
from sheaf_dagster.batch.ray.capacity import WorkerPlan
from sheaf_dagster.batch.ray.cluster import surely_fits_here
from tests.toys import doubler
pool = lambda n: BatchOptions(compute="actors", num_actors=n)
plan = lambda n: WorkerPlan.of(doubler().resources, pool(n))
print([surely_fits_here(plan(n), ClusterConfig()) for n in (1, 3, 4)])
"""
    machine = {"RAY_USE_MULTIPROCESSING_CPU_COUNT": "1", "RAY_ADDRESS": "", **limit}

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, **machine},
        capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert done.stdout.strip() == answers


def test_a_shortage_names_what_is_short():
    two = {"GPU": 2, "CPU": 16, "memory": 8 * 2**30}
    assert shortage({"GPU": 1}, 4, [two, two], "actors") is None
    assert "3 actors × 2 GPU = 6 GPUs, but the Ray cluster has 4 GPUs in 2 node(s)" in shortage(
        {"GPU": 2, "CPU": 1}, 3, [two, two], "actors"
    )
    assert "1 worker(s) of 3 GPUs each don't fit the cluster's 2 node(s)" in shortage(
        {"GPU": 3}, 1, [two, two], "actors"
    )
    assert "2 actors × 12 GiB memory = 24 GiB memory, but the Ray cluster has 16 GiB" in shortage(
        {"memory": 12 * 2**30}, 2, [two, two], "actors"
    )
    assert "1 actor × 1 tpu_slice = 1 tpu_slice, but the Ray cluster has 0" in shortage(
        {"tpu_slice": 1}, 1, [two], "actors"
    )


def test_limits_are_checked_without_a_cluster():
    runner = sd.BatchRunner(doubler(num_gpus=0.5), sd.ClusterConfig(gpu_limit=1))
    with pytest.raises(sd.ClusterCapacityError, match=r"3 actors × 0.5 GPU = 1.5 GPUs, but"):
        runner.run(pool(3))
    runner = sd.BatchRunner(doubler(num_cpus=2), sd.ClusterConfig(cpu_limit=3))
    with pytest.raises(sd.ClusterCapacityError, match=r"2 actors × 2 CPU = 4 CPUs, .*cpu_limit"):
        runner.run(pool(2))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_gpus": 1.5}, "a fraction of one GPU or a whole number"),
        ({"custom": {"GPU": 1}}, "GPU is reserved by num_gpus"),
        ({"custom": {"disk": -1}}, "disk must not be negative"),
    ],
)
def test_resources_that_ray_cannot_reserve_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        sd.ResourceConfig(**fields)


def test_ray_client_addresses_are_refused_by_name(monkeypatch, write_rows, tmp_path):
    with pytest.raises(ValueError, match='"host:6379".*launch="ray_job".*RayRunLauncher'):
        sd.ClusterConfig(address="ray://head:10001")
    with pytest.raises(ValueError, match="is a Ray Client address"):
        sd.RayClusterResource(address="ray://head:10001")


@pytest.mark.ray
def test_pools_are_reserved_whole_and_in_turn(ray_cluster, caplog):
    def take(name: str, gpus: int) -> None:
        config = sd.ClusterConfig(holder=name)
        plan = WorkerPlan.of(sd.ResourceConfig(num_cpus=0, num_gpus=1), pool(gpus))
        with reserved_pool(plan, config, "ray_core", threading.Event()):
            got.append(name)
            release[name].wait(300)

    def start(name: str, gpus: int, shows) -> None:
        threads.append(threading.Thread(target=take, args=(name, gpus)))
        threads[-1].start()
        wait_until(shows, name)

    got: list[str] = []
    release = {name: threading.Event() for name in ("first", "large", "small")}
    threads: list[threading.Thread] = []
    caplog.set_level(logging.INFO, "sheaf_dagster")

    start("first", 3, lambda: got == ["first"])
    start("large", 4, lambda: "also waiting: large: 4 GPUs" in describe_capacity())
    # One GPU is free, but "small" would push in before "large", which came first.
    start("small", 1, lambda: "jobs that came first have priority: large: 4 GPUs" in caplog.text)
    assert got == ["first"]
    release["first"].set()
    wait_until(lambda: len(got) > 1, "the large pool")
    assert got == ["first", "large"]
    assert "held by: large: 4 GPUs" in describe_capacity()
    release["large"].set()
    wait_until(lambda: "small" in got, "the small pool")
    release["small"].set()
    for thread in threads:
        thread.join()
    wait_until(lambda: "held by" not in describe_capacity(), "all to be given back")


HOLDER = """
import sys
from sheaf_dagster import BatchRunner, BatchSpec, ClusterConfig
from tests.toys import doubler
address, source, sink, log = sys.argv[1:]
model = doubler(num_cpus=0, num_gpus=1, batch_seconds=600, call_log=log)
cluster = ClusterConfig(address=address, holder="asset nightly (run 1a2b3c4d)")
BatchRunner(model, cluster).run(
    BatchSpec(source=source, sink=sink, compute="actors", num_actors=3)
)
"""


@pytest.mark.ray
def test_a_job_waits_for_another_driver_names_it_and_follows_it_when_it_dies(
    ray_cluster, write_rows, tmp_path, caplog
):
    import ray

    source = write_rows([1, 2, 3])
    address = ray.get_runtime_context().gcs_address
    log = tmp_path / "calls"
    command = [sys.executable, "-c", HOLDER, address, source, f"{tmp_path}/held.jsonl", log]
    holder = subprocess.Popen(command, cwd=ROOT)
    try:
        wait_until(log.exists, "the holder to be at work")
        model = doubler(num_cpus=0, num_gpus=2)
        spec = pool(1, source=source, sink=str(tmp_path / "out.jsonl"))
        impatient = sd.ClusterConfig(wait_for_capacity_s=0.5)

        # It doesn't get the one GPU that is left, and says who has the others.
        with pytest.raises(
            sd.ClusterBusyError,
            match=r"no capacity within 0.5 s .*0 of 1 actors up.*free: 1 GPU.*"
            r"held by: asset nightly \(run 1a2b3c4d\): 3 GPUs",
        ) as caught:
            sd.BatchRunner(model, impatient).run(spec)
        assert caught.value.retryable
        with pytest.raises(sd.ClusterBusyError, match=r"no task could start yet; free: 1 GPU"):
            sd.BatchRunner(model, impatient).run(tasks(source, tmp_path))

        # A killed driver's pool is taken back, and the job that waited for it runs.
        os.kill(holder.pid, signal.SIGKILL)
        with caplog.at_level(logging.INFO, "sheaf_dagster"):
            result = sd.BatchRunner(model).run(spec)
        assert [r["value"] for r in read_rows(result.sink)] == [2, 4, 6]
    finally:
        holder.kill()
        holder.wait()


class Rival:
    """Another job's: waits for a device from the moment that the first row is answered."""

    def __init__(self, calls) -> None:
        self._calls = calls
        self._gone = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        import ray

        while not self._calls.exists() and not self._gone.wait(0.02):
            pass
        actor = ray.remote(num_cpus=0, num_gpus=1)(threading.Event).remote()
        self._gone.wait(300)
        ray.kill(actor)

    def __enter__(self) -> Rival:
        self.thread.start()
        return self

    def leave(self) -> None:
        self._gone.set()

    def __exit__(self, *_) -> None:
        self.leave()
        self.thread.join()


@pytest.fixture
def short_leaves(ray_cluster, monkeypatch):
    """Tasks give their place back after a second, and four of the cluster's devices are free."""
    import ray

    wait_until(lambda: ray.available_resources().get("GPU") == 4, "the last job's devices")
    monkeypatch.setattr(ray_worker, "_TASK_SECONDS", 1.0)
    monkeypatch.setattr(pool_watch, "_CHANGE_SECONDS", 4.0)
    monkeypatch.setattr(pool_watch, "TELL_EVERY_SECONDS", 0.5)


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.parametrize("engine", ["ray_core", "ray_data"])
def test_a_job_whose_place_was_taken_between_two_leaves_does_not_wait_for_ever(
    short_leaves, write_rows, tmp_path, engine
):
    calls = tmp_path / "calls"
    model = doubler(num_cpus=0, num_gpus=4, batch_seconds=0.1, call_log=str(calls))
    source = write_rows(list(range(400)))
    spec = tasks(source, tmp_path).model_copy(update={"batch_size": 1})
    cluster = sd.ClusterConfig(engine=engine, wait_for_capacity_s=4)

    with (
        Rival(calls),
        pytest.raises(
            sd.ClusterBusyError,
            match=r"no worker had a place for 4 s \(wait_for_capacity_s\): no task has a place "
            r"any more; wanted: 4 GPUs; free: 3 GPUs.*finished chunks are kept",
        ) as caught,
    ):
        sd.BatchRunner(model, cluster).run(spec)

    assert caught.value.retryable
    assert list(tmp_path.glob(".tasks.jsonl.sheaf/run-*/part-*")), "what is done is kept"


@pytest.mark.ray
def test_a_job_does_not_take_its_own_worker_which_is_starting_for_a_holder(
    short_leaves, write_rows, tmp_path
):
    model = doubler(num_cpus=0, num_gpus=4)
    model.backend = "tests.slow_to_import:SlowToImport"
    impatient = sd.ClusterConfig(engine="ray_core", wait_for_capacity_s=0.5)

    result = sd.BatchRunner(model, impatient).run(tasks(write_rows([1, 2]), tmp_path))

    assert result.rows == 2


@pytest.mark.ray
def test_a_job_says_what_it_waits_for_when_a_worker_died_and_its_place_was_taken(
    short_leaves, write_rows, tmp_path, caplog
):
    calls = tmp_path / "calls"
    model = doubler(
        num_cpus=0,
        num_gpus=4,
        batch_seconds=0.2,
        call_log=str(calls),
        exit_on=4,
        exit_once=str(tmp_path / "died"),
    )
    spec = tasks(write_rows(list(range(8))), tmp_path).model_copy(update={"batch_size": 1})
    cluster = sd.ClusterConfig(engine="ray_core")
    caplog.set_level(logging.INFO, "sheaf_dagster")

    with Rival(calls) as rival:
        told = threading.Thread(
            target=lambda: (
                wait_until(lambda: "no task has a place any more" in caplog.text, "the log"),
                rival.leave(),
            )
        )
        told.start()
        result = sd.BatchRunner(model, cluster).run(spec)
        told.join()

    assert (tmp_path / "died").exists()
    assert "waiting for capacity: no task has a place any more; wanted: 4 GPUs" in caplog.text
    assert [r["value"] for r in read_rows(result.sink)] == [2 * i for i in range(8)]


@pytest.mark.ray
def test_memory_and_custom_resources_are_part_of_the_sum(ray_cluster, tmp_path):
    model = doubler()
    model.resources = sd.ResourceConfig(memory_gb=10_000, custom={"tpu_slice": 2})
    assert demand_of(model.resources) == {"CPU": 1, "memory": 10_000 * 2**30, "tpu_slice": 2}
    with pytest.raises(sd.ClusterCapacityError, match="1 actor × 10000 GiB memory|tpu_slice"):
        sd.BatchRunner(model).run(pool(1, source="nowhere", sink=str(tmp_path / "o")))


def test_a_private_ray_says_nothing_of_tokens_and_all_else(caplog):
    setup = pytest.importorskip("ray._private.authentication.authentication_token_setup")

    caplog.set_level("DEBUG", logger=setup.logger.name)  # whatever an earlier ray.init has set
    heard: list[logging.LogRecord] = []
    own = logging.Handler()  # whether Ray's loggers hand on to caplog's depends on that, too
    own.emit = heard.append
    setup.logger.addHandler(own)

    with _no_note_on_tokens():
        setup._warn_token_auth_enabled()
        setup._warn_token_auth_disabled()
    kept = [r.getMessage() for r in heard]
    setup._warn_token_auth_enabled()
    setup.logger.removeHandler(own)

    assert [text[:32] for text in kept] == ["Token authentication is disabled"]
    assert len(heard) == 2
