"""Ctrl-C and termination: Ray's work stops within seconds, and what is done can be resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from sheaf_dagster import BatchRunner, BatchSpec, ClusterCapacityError
from sheaf_dagster.batch.ray import workforce
from tests.conftest import ROOT, read_rows
from tests.crashes import Job, driving, workers_of
from tests.definitions.project import Project
from tests.toys import doubler

pytestmark = pytest.mark.ray

SOON = 12.0
"""Seconds: what is stuck is given five of them."""


def soon_after(start: float) -> float:
    """How long a job that began then may take to end: a busy machine took longer to start it, too."""
    return max(SOON, 3 * (time.monotonic() - start))


def gone(loads: Path, since: float) -> float:
    """How long it took until no worker of the job was left."""
    while workers_of(loads) and time.monotonic() - since < 200:
        time.sleep(0.05)
    return time.monotonic() - since


@pytest.mark.parametrize(
    ("compute", "engine", "batch_seconds"),
    [
        pytest.param("tasks", "ray_data", 0.5, marks=pytest.mark.long),
        ("actors", "ray_core", 600.0),
    ],
)
def test_ctrl_c_stops_the_work_and_keeps_what_is_done(
    two_nodes,
    write_rows,
    tmp_path,
    compute,
    engine,
    batch_seconds,
):
    loads, first = tmp_path / "loads", tmp_path / "first"
    first.touch()
    job = Job(
        model=doubler(slow_while=str(first), slow_seconds=batch_seconds, load_log=str(loads)),
        spec=BatchSpec(
            source=write_rows(list(range(400))),
            sink=str(tmp_path / "out" / "out.jsonl"),
            batch_size=4,
            compute=compute,
            num_actors=2 if compute == "actors" else None,
        ),
        address=two_nodes.address,
        engine=engine,
    )
    enough = 10 if batch_seconds < 1 else 0
    start = time.monotonic()
    with driving(job) as driver:
        assert driver.wait_for(lambda: workers_of(loads) and len(job.parts()) >= enough)

        soon = soon_after(start)
        driver.kill(signal.SIGINT)
        began = time.monotonic()
        driver.process.wait(timeout=200)

        assert time.monotonic() - began < soon
        assert gone(loads, began) < soon
    assert not Path(job.spec.sink).exists()
    first.unlink()
    if enough:
        left = sum(job.parts())
        with driving(job) as again:
            result = again.result()
        assert result["resumed_rows"] == left >= 4 * enough
        assert len(read_rows(job.spec.sink)) == 400
        assert os.listdir(tmp_path / "out") == ["out.jsonl"]


def test_a_driver_that_lives_on_gets_its_workers_back(ray_cluster, write_rows, tmp_path):
    # A notebook: the iterator is closed while a batch of ten minutes is in the model.
    loads = tmp_path / "loads"
    runner = BatchRunner(doubler(batch_seconds=600, load_log=str(loads)), on_progress=None)
    specs = [
        BatchSpec(source=write_rows(v, name=n), sink=str(tmp_path / f"{n}.out"), batch_size=1)
        for n, v in (("empty", []), ("long", [1, 2]))
    ]
    start = time.monotonic()
    outcomes = runner.run_many(specs)
    assert next(outcomes).ok
    while not workers_of(loads):
        time.sleep(0.05)
    busy = workers_of(loads)

    soon = soon_after(start)
    began = time.monotonic()
    outcomes.close()

    assert time.monotonic() - began < soon
    assert busy
    assert gone(loads, began) < soon


TERMINATED = """
import json, signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)
from tests.definitions.project import Project
project = Project(Path(sys.argv[1]), None, json.loads(sys.argv[2]), compute="tasks")
project.run(only=True)
"""


def test_dagsters_termination_stops_ray_and_a_rerun_resumes(write_rows, tmp_path):
    loads, first = tmp_path / "loads", tmp_path / "first"
    first.touch()
    arguments = {"slow_while": str(first), "slow_seconds": 0.5, "load_log": str(loads)}
    project = Project(tmp_path, None, arguments, compute="local")
    project.write("all", list(range(400)))
    # The default launcher ends a run's process with the signal of Ctrl-C.
    start = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, "-c", TERMINATED, str(tmp_path), json.dumps(arguments)], cwd=ROOT,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    aside = tmp_path / "out" / ".all.jsonl.sheaf"
    while len(list(aside.glob("run-*/part-*"))) < 5 and child.poll() is None:
        time.sleep(0.05)

    soon = 2 * soon_after(start)  # with a Ray of its own to take down
    child.send_signal(signal.SIGINT)
    began = time.monotonic()
    child.wait(timeout=200)

    assert time.monotonic() - began < soon
    assert gone(loads, began) < soon
    first.unlink()
    done = 4 * len(list(aside.glob("run-*/part-*")))
    result = project.run(only=True)
    assert result.success
    (record,) = project.records()
    assert record.asset_materialization.metadata["resumed_rows"].value == done >= 20


def test_nothing_reads_on_when_ray_goes_down(write_rows, tmp_path, monkeypatch):
    # Whatever is asked of Ray after that starts a new one, which nobody would stop.
    reading: list[bool] = []

    def feeder_alive() -> bool:
        return any(t.name == "sheaf-feeder" for t in threading.enumerate())

    @contextmanager
    def session(config):
        reading.append(feeder_alive())
        try:
            yield True
        finally:
            reading.append(feeder_alive())

    def no_room(*_):
        raise ClusterCapacityError("no room")

    monkeypatch.setattr(workforce, "surely_fits_here", lambda *_: True)
    monkeypatch.setattr(workforce, "ray_session", session)
    monkeypatch.setattr(workforce, "verify_capacity", no_room)
    spec = BatchSpec(source=write_rows([1]), sink=str(tmp_path / "out.jsonl"))

    with pytest.raises(ClusterCapacityError, match="no room"):
        BatchRunner(doubler()).run(spec)

    assert reading == [True, False]
