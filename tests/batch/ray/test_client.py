"""What a worker and the driver tell the coordinator is heard."""

from __future__ import annotations

import pytest

from sheaf_dagster.batch.ray import client
from sheaf_dagster.batch.ray.client import start_coordinator
from sheaf_dagster.batch.ray.records import ValidationWork
from sheaf_dagster.errors import ClusterError
from tests.waiting import wait_until

pytestmark = pytest.mark.ray


def test_a_call_that_a_broken_connection_took_with_it_is_made_again(ray_cluster, monkeypatch):
    import ray

    monkeypatch.setattr(client, "_AGAIN_SECONDS", 0.0)
    made = []

    def call():
        made.append(len(made))
        if len(made) < 3:
            raise ray.exceptions.ActorUnavailableError("connection reset", None)
        return ray.put(None)

    client._surely(call)

    assert made == [0, 1, 2]


def test_a_coordinator_that_is_dead_is_not_called_for_ever(ray_cluster):
    import ray

    driver = start_coordinator(1, "toy")
    worker = driver.for_workers()
    sitting = worker.enter(0)
    driver.kill()

    sitting.wait_for_abort()
    sitting.leave()
    with pytest.raises(ray.exceptions.ActorDiedError):
        sitting.take()
    with pytest.raises(ClusterError, match=r"(?s)coordinator on the cluster is gone: .*run again"):
        driver.take_reports()


def test_whoever_waits_for_reports_hears_that_the_last_worker_has_left(ray_cluster):
    driver = start_coordinator(1, "toy")
    driver.all_left()
    assert driver.take_reports() == []


def test_findings_of_a_worker_that_is_gone_are_none(ray_cluster):
    import ray

    @ray.remote(num_cpus=0)
    class Worker:
        def validate(self, coordinator, work):
            coordinator.validated(work, ["found"])

    driver = start_coordinator(1, "toy")
    worker = Worker.remote()
    first, second, third = (driver.validate(ValidationWork(i, [])) for i in range(3))
    for i in range(2):
        ray.get(worker.validate.remote(driver.for_workers(), ValidationWork(i, [])))
    assert first.get() == ["found"]

    wait_until(lambda: second.is_there, "the answer")
    ray.kill(worker)
    driver.withdraw([2])

    wait_until(lambda: second.get() is None, "Ray knows that the worker is gone")
    assert third.get() is None
