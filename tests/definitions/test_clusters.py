"""What may stand under the ray_cluster key."""

from __future__ import annotations

import json
import socket
import threading

import dagster as dg
import pytest
import ray
from dagster_ray import Lifecycle, LocalRay

import sheaf_dagster as sd
from sheaf_dagster.definitions import dashboard
from sheaf_dagster.definitions.clusters import (
    JobsAddress,
    cluster_config,
    cluster_limits,
    jobs_address,
)
from tests.definitions.cluster_project import Head
from tests.definitions.project import Project, failure


def head(**fields) -> Head:
    return Head(dashboard_port=8299, lifecycle=Lifecycle(connect=False), **fields)


def test_ours_gives_address_limits_and_a_name_to_wait_for():
    ours = sd.RayClusterResource(address="head:6379", gpu_limit=2, autoscaling=True)

    here, there = cluster_config(ours, "asset a"), cluster_limits(ours, "asset a")

    assert (here.address, here.gpu_limit, here.autoscaling) == ("head:6379", 2, True)
    assert here.holder == "asset a"
    assert (there.address, there.gpu_limit) == (None, 2), "a Ray job finds its own cluster"


def test_a_ray_job_needs_a_dashboard(monkeypatch):
    with pytest.raises(sd.SpecError, match=r'RayClusterResource\(dashboard="http://HEAD:8265"\)'):
        jobs_address(sd.RayClusterResource(address="head:6379"))
    monkeypatch.setenv("THE_HEADER", "Bearer abc")
    where = jobs_address(
        sd.RayClusterResource(
            dashboard="http://head:8265", headers={"Authorization": {"env": "THE_HEADER"}}
        )
    )
    assert where.headers == {"Authorization": "Bearer abc"}
    assert "abc" not in repr(where)


def test_clusters_of_dagster_ray_take_ray_jobs():
    where = jobs_address(
        head(ray_init_options={"runtime_env": {"pip": ["x"]}}, env_vars={"A": "b"})
    )
    assert where.url == "http://127.0.0.1:8299"
    assert where.runtime_env == {"pip": ["x"], "env_vars": {"A": "b"}}


def test_a_kuberay_cluster_takes_ray_jobs_once_it_is_up():
    from dagster_ray.kuberay import KubeRayCluster

    cluster = KubeRayCluster(lifecycle=Lifecycle(connect=False))
    with pytest.raises(sd.SpecError, match="let its lifecycle create the cluster and wait for it"):
        jobs_address(cluster)

    cluster._host = "raycluster-head-svc.ray.svc"  # what its wait() finds out

    assert jobs_address(cluster).url == "http://raycluster-head-svc.ray.svc:8265"
    with pytest.raises(sd.SpecError, match=r'KubeRayCluster at ray://.*launch="ray_job"'):
        cluster_config(cluster, "asset a")


def test_a_step_is_no_driver_of_a_cluster_that_only_ray_client_reaches():
    with pytest.raises(sd.SpecError, match=r'Head at ray://127.0.0.1:10001\. .*launch="ray_job"'):
        cluster_config(head(), "asset a")
    assert cluster_config(LocalRay(), "asset a").address is None


def test_anything_else_is_refused_by_name():
    class Other(dg.ConfigurableResource):
        pass

    with pytest.raises(sd.SpecError, match="ray_cluster is a Other; give it a RayClusterResource"):
        cluster_config(Other(), "asset a")


def test_a_secret_of_the_models_arguments_does_not_travel(tmp_path):
    project = Project(
        tmp_path, backend_kwargs={"hf_token": "ijklmnop"}, launch="ray_job", compute="tasks"
    )
    project.defs.resources["ray_cluster"] = sd.RayClusterResource(dashboard="http://127.0.0.1:9")

    result = project.run()

    assert "hf_token of backend_kwargs would be sent to the cluster as plain text" in failure(
        result
    )
    assert "ijklmnop" not in failure(result)


@pytest.mark.parametrize(
    ("listening", "why"), [(True, "it doesn't answer"), (False, "it can't be reached")]
)
def test_a_dashboard_that_is_silent_or_not_there_is_an_error_that_can_be_retried(
    listening, why, tmp_path
):
    project = Project(tmp_path, launch="ray_job", compute="tasks")
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, and never answers
        port = server.getsockname()[1] if listening else 9
        project.defs.resources["ray_cluster"] = sd.RayClusterResource(
            dashboard=f"http://127.0.0.1:{port}", connect_timeout_s=0.3
        )

        result = project.run()

    assert not result.success
    expected = f"no Ray job could be submitted to http://127.0.0.1:{port}: {why} (tried for 0.3 s)"
    assert expected in failure(result)
    assert "RAY_AUTH_TOKEN" in failure(result)


def test_a_dashboard_that_falls_silent_later_is_waited_for_no_longer_than_its_patience(monkeypatch):
    monkeypatch.setattr(dashboard, "PATIENCE_SECONDS", 0.3)
    version = json.dumps({"ray_version": ray.__version__, "version": "4"}).encode()
    with socket.create_server(("127.0.0.1", 0)) as server:
        held = []

        def say_the_version() -> None:
            while True:
                held.append(server.accept()[0])
                if b"GET /api/version" not in held[-1].recv(65536):
                    return
                head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(version)}\r\n\r\n"
                held[-1].sendall(head.encode() + version)

        thread = threading.Thread(target=say_the_version)
        thread.start()
        jobs = dashboard.Dashboard(JobsAddress(f"http://127.0.0.1:{server.getsockname()[1]}"))
        for request in (jobs.get_job_status, jobs.stop_job):
            with pytest.raises(ConnectionError, match="doesn't answer"):
                request("job")
        thread.join()
        for connection in held:
            connection.close()
