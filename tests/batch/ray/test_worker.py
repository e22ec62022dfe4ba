"""What a worker tells the coordinator is heard."""

from __future__ import annotations

import pytest

from sheaf_dagster.batch.ray import worker as ray_worker

pytestmark = pytest.mark.ray


def test_a_call_that_a_broken_connection_took_with_it_is_made_again(ray_cluster, monkeypatch):
    import ray

    monkeypatch.setattr(ray_worker, "_AGAIN_SECONDS", 0.0)
    made = []

    def call():
        made.append(len(made))
        if len(made) < 3:
            raise ray.exceptions.ActorUnavailableError("connection reset", None)
        return ray.put(None)

    ray_worker._heard(call)

    assert made == [0, 1, 2]


def test_a_coordinator_that_is_dead_is_not_called_for_ever(ray_cluster):
    import ray

    from sheaf_dagster.batch.ray.startup import start_coordinator

    control = start_coordinator(1, "toy")
    ray.get(control.workers.remote())
    ray.kill(control, no_restart=True)

    with pytest.raises(ray.exceptions.ActorDiedError):
        ray_worker._heard(control.aborted.remote)
