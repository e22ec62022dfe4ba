"""A commit may take as long as it likes: what fails a job is a chunk that stays open."""

from __future__ import annotations

import threading
import time

import pytest

from sheaf_dagster import BatchRunner, BatchSpec, ClusterConfig
from sheaf_dagster.batch.file_run import FileRun
from sheaf_dagster.batch.ray import core_workers
from sheaf_dagster.errors import ClusterError
from tests.conftest import read_rows
from tests.toys import doubler

SECONDS = 13
"""Longer than any time that the code gives workers to say something, or to leave."""


def slow_commits(monkeypatch) -> list[str]:
    """Has a commit take its time once the last worker has left."""
    commit, committed = FileRun.commit, []

    def slow_commit(task: FileRun):
        for thread in threading.enumerate():
            if thread.name == "sheaf-workers":
                thread.join(300)
        time.sleep(SECONDS)
        committed.append(task.spec.sink)
        return commit(task)

    monkeypatch.setattr(FileRun, "commit", slow_commit)
    return committed


@pytest.mark.ray
@pytest.mark.parametrize("engine", ["ray_core", pytest.param("ray_data", marks=pytest.mark.long)])
def test_a_commit_may_outlast_the_workers(
    ray_cluster, s3, write_rows, tmp_path, monkeypatch, engine
):
    committed = slow_commits(monkeypatch)
    source = write_rows(list(range(40)))
    local = BatchSpec(source=source, sink=str(tmp_path / "out.jsonl"), batch_size=5)
    remote = BatchSpec(
        source=source, sink=s3.uri("out.jsonl"), batch_size=5, storage_options=s3.options()
    )

    outcomes = list(
        BatchRunner(doubler(num_cpus=0.5), ClusterConfig(engine=engine)).run_many([local, remote])
    )

    assert [o.error for o in outcomes] == [None, None]
    assert sorted(committed) == sorted([local.sink, remote.sink])
    assert [r["value"] for r in read_rows(local.sink)] == [2 * i for i in range(40)]
    assert s3.get("out.jsonl") == (tmp_path / "out.jsonl").read_bytes()


@pytest.mark.ray
def test_chunks_that_are_open_when_the_last_worker_has_left_fail_the_job(
    ray_cluster, write_rows, tmp_path, monkeypatch
):
    monkeypatch.setattr(core_workers, "shifts", lambda slots, actors: [])
    spec = BatchSpec(source=write_rows([1, 2]), sink=str(tmp_path / "out.jsonl"))

    with pytest.raises(ClusterError, match="Ray ended before all chunks were done"):
        BatchRunner(doubler(), ClusterConfig(engine="ray_core")).run(spec)
