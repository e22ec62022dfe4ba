"""A run's process dies, and its step's process doesn't know."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress

import dagster as dg
import psutil
import pytest

from tests.conftest import ROOT, read_rows
from tests.definitions.project import DAYS, Project, failure
from tests.waiting import wait_until


@pytest.fixture
def children() -> Iterator[list[psutil.Process]]:
    """Processes to end: Dagster's own, which waits for ever to tell its dead parent the rest."""
    found: list[psutil.Process] = []
    yield found
    for process in found:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def test_a_retry_beside_a_step_that_lives_on_never_mixes_with_it(tmp_path, children):
    project = Project(tmp_path, DAYS, on_disk=True)
    keys = DAYS.get_partition_keys()
    for day, key in enumerate(keys):
        project.write(key, [100 * day + i for i in range(12)])
    (tmp_path / "gate").touch()
    run = subprocess.Popen(
        [sys.executable, "-m", "tests.definitions.orphan_project"],
        cwd=ROOT,
        env={**os.environ, "SHEAF_TEST_ROOT": str(tmp_path)},
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: len(project.records()) >= 3, "three days")
        children += psutil.Process(run.pid).children(recursive=True)
    finally:
        run.kill()
        run.wait()
    (run_id,) = {r.run_id for r in project.records()}
    other = Project(tmp_path, DAYS, {"batch_seconds": 0.01}, on_disk=True)

    beside = other.run(keys[0], keys[-1], only=True, parent=run_id)

    # What the old step is at is refused and may be tried again; the rest is done once.
    assert not beside.success
    assert "is being written by another job" in failure(beside)
    (tmp_path / "gate").unlink()
    ends = {dg.DagsterEventType.STEP_SUCCESS, dg.DagsterEventType.STEP_FAILURE}
    wait_until(lambda: project.instance.all_logs(run_id, of_type=ends), "the step that lives on")
    last = other.run(keys[0], keys[-1], only=True, parent=beside.run_id)
    assert last.success
    assert {r.partition_key for r in project.records()} == set(keys)
    for day, key in enumerate(keys):
        rows = read_rows(tmp_path / "out" / f"{key}.jsonl")
        assert [r["value"] for r in rows] == [2 * (100 * day + i) for i in range(12)]
    assert sorted(os.listdir(tmp_path / "out")) == [f"{key}.jsonl" for key in keys]
