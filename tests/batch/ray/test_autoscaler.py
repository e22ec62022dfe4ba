"""Jobs on a cluster that Ray's own autoscaler makes grow and shrink."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.batch.ray.drivers import end, start
from tests.conftest import read_rows
from tests.ray_head import RayHead, in_full
from tests.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900), in_full]


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayHead]:
    """A head that runs drivers alone; there may be two nodes more, of one CPU each."""
    head = RayHead(num_cpus=0, grows_by=2)
    yield head
    head.stop()


@pytest.mark.parametrize("engine", ["ray_core", "ray_data"])
@pytest.mark.parametrize("compute", ["actors", "tasks"])
def test_a_cluster_grows_for_a_job_and_shrinks_after_it(
    cluster, write_rows, tmp_path, compute, engine
):
    wait_until(lambda: len(cluster.alive_nodes()) == 1, "one node alone")
    driver = start(
        cluster,
        source=write_rows(list(range(120))),
        sink=str(tmp_path / "out.jsonl"),
        batch_size=4,
        compute=compute,
        num_actors=2 if compute == "actors" else None,
        cluster={"autoscaling": True, "engine": engine, "cpu_limit": 2},
        model={"batch_seconds": 1.0, "load_log": str(tmp_path / "loads")},
    )
    result, err = end(driver)

    assert result.get("rows") == 120, (result, err[-3000:])
    assert result["workers"] == 2
    assert [r["value"] for r in read_rows(tmp_path / "out.jsonl")] == [2 * i for i in range(120)]
    wait_until(lambda: len(cluster.alive_nodes()) == 1, "one node alone")


def test_a_quota_that_is_never_given_ends_the_job_and_is_named(cluster, write_rows, tmp_path):
    driver = start(
        cluster,
        source=write_rows([1, 2, 3]),
        sink=str(tmp_path / "out.jsonl"),
        compute="actors",
        num_actors=3,
        cluster={"autoscaling": True, "wait_for_capacity_s": 20},
        model={"load_log": str(tmp_path / "loads")},
    )
    result, _ = end(driver)

    assert result["error"] == "ClusterBusyError"
    assert "no capacity within 20 s (wait_for_capacity_s)" in result["message"]
    assert "wanted at once: 3 CPUs" in result["message"]
    assert not (tmp_path / "out.jsonl").exists()
