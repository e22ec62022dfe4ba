"""Jobs over several nodes: real raylets, each with processes and ports of its own."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.batch.ray.drivers import end, start
from tests.conftest import read_rows
from tests.ray_head import RayHead, in_full

# A cluster that does not come up is started again, twice.
pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayHead]:
    """A head that runs drivers alone, and two nodes of one CPU each."""
    head = RayHead(num_cpus=0)
    try:
        head.add_node(1)
        yield head
    finally:
        head.stop()


def wait_for(path: Path, lines: int, driver: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while not (path.exists() and len(path.read_text().split()) >= lines):
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < deadline, f"gave up waiting for {path}"
        time.sleep(0.1)


@pytest.mark.long
@pytest.mark.parametrize(
    ("compute", "engine"),
    [
        ("tasks", "ray_data"),
        pytest.param("tasks", "ray_core", marks=in_full),
        pytest.param("actors", "ray_data", marks=in_full),
        pytest.param("actors", "ray_core", marks=in_full),
    ],
)
def test_a_job_goes_on_when_a_node_is_lost(cluster, write_rows, tmp_path, compute, engine):
    calls, loads = tmp_path / "calls", tmp_path / "loads"
    node = cluster.add_node(1)
    driver = start(
        cluster,
        source=write_rows(list(range(400))),
        sink=str(tmp_path / "out.jsonl"),
        batch_size=4,
        compute=compute,
        num_actors=2 if compute == "actors" else None,
        cluster={"engine": engine},
        model={"batch_seconds": 0.05, "call_log": str(calls), "load_log": str(loads)},
    )
    wait_for(loads, 2, driver)  # one on each node
    wait_for(calls, 8, driver)

    cluster.kill_node(node)
    result, _ = end(driver)

    assert result.get("rows") == 400, result
    assert [r["value"] for r in read_rows(tmp_path / "out.jsonl")] == [2 * i for i in range(400)]
    assert [p.name for p in tmp_path.glob(".out*")] == []


@pytest.mark.long
@pytest.mark.parametrize("compute", ["tasks", "actors"])
def test_a_worker_leaves_a_node_that_will_be_taken_away_and_nothing_is_run_twice(
    cluster, write_rows, tmp_path, compute
):
    calls, loads = tmp_path / "calls", tmp_path / "loads"
    known = cluster.alive_nodes()
    node = cluster.add_node(1)
    (node_id,) = cluster.alive_nodes() - known
    driver = start(
        cluster,
        source=write_rows(list(range(300))),
        sink=str(tmp_path / "out.jsonl"),
        batch_size=4,
        compute=compute,
        num_actors=2 if compute == "actors" else None,
        cluster={"engine": "ray_core"},
        model={"batch_seconds": 1.0, "call_log": str(calls), "load_log": str(loads)},
    )
    wait_for(loads, 2, driver)  # one on each node
    wait_for(calls, 4, driver)

    cluster.drain_node(node_id)
    result, err = end(driver)
    cluster.kill_node(node)

    assert "1 node(s) of the cluster will be taken away soon" in err
    assert result.get("rows") == 300, (result, err[-2000:])
    assert len(calls.read_text().split()) == 75, "each batch once"
    # A task gives its place back after half a minute, and the next may be another process.
    assert result["workers"] == 2 or (compute == "tasks" and result["workers"] > 2)
    assert [r["value"] for r in read_rows(tmp_path / "out.jsonl")] == [2 * i for i in range(300)]


@in_full
def test_a_chunk_outlives_more_nodes_than_it_may_kill_workers(write_rows, tmp_path):
    losses = 5
    loads = tmp_path / "loads"
    head = RayHead(num_cpus=0)
    try:
        node = head.add_node(1)
        driver = start(
            head,
            source=write_rows([1, 2, 3]),
            sink=str(tmp_path / "out.jsonl"),
            # One chunk, and no answer before so many workers have begun it.
            model={"together": losses + 1, "load_log": str(loads)},
        )
        for number in range(losses):
            wait_for(loads, number + 1, driver)
            head.kill_node(node)
            node = head.add_node(1)
        result, _ = end(driver)
    finally:
        head.stop()

    assert result.get("rows") == 3, result
    assert len(loads.read_text().split()) == losses + 1


@pytest.mark.long
def test_a_node_that_cannot_see_a_local_path_is_named_as_the_reason(
    cluster, tmp_path, tmp_path_factory, write_rows
):
    source = write_rows(list(range(200)))
    loads = tmp_path_factory.mktemp("seen") / "loads"
    node = cluster.add_node(1, hidden=tmp_path)
    try:
        result, err = end(
            start(
                cluster,
                source=source,
                sink=str(tmp_path / "out.jsonl"),
                batch_size=1,
                compute="actors",
                num_actors=2,
                model={"batch_seconds": 0.05, "load_log": str(loads)},
            )
        )
    finally:
        cluster.kill_node(node)

    assert result["error"] == "SourceError", (result, err[-2000:])
    assert f"can't see {source}, which was there for the driver" in result["message"]
    assert "s3://" in result["message"]
    assert not (tmp_path / "out.jsonl").exists()
