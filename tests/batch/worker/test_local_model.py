"""A model of this process: loaded once, called from one thread, shared by the jobs of several."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import pytest

import sheaf_dagster as sd
from sheaf_dagster import BatchRunner, BatchSpec
from sheaf_dagster.batch.worker.model_thread import CallTooLongError, ModelThread
from tests.conftest import read_rows
from tests.toys import Doubler, NumberResponse


class Watched(sd.ModelBackend):
    """Notes which threads call it, whether two do at a time, and whether it was closed."""

    model_type = "number"
    threads: ClassVar[set[int]] = set()
    faults: ClassVar[list[str]] = []
    loads: ClassVar[list[str]] = []
    closed: ClassVar[list[str]] = []
    predicting = threading.Event()
    go_on = threading.Event()

    def __init__(self, name: str = "a", wait: bool = False) -> None:
        self.name = name
        self.wait = wait
        self.busy = False
        self.gone = False

    def load(self) -> None:
        self.loads.append(self.name)
        self.state = threading.local()
        self.state.set_in_load = True

    def batch_predict(self, requests):
        if self.busy:
            self.faults.append("two calls at a time")
        if self.gone:
            self.faults.append("called after close()")
        if not getattr(self.state, "set_in_load", False):
            self.faults.append("another thread than load()'s")
        self.busy = True
        self.threads.add(threading.get_ident())
        self.predicting.set()
        if self.wait:
            self.go_on.wait(300)
        time.sleep(0.001)
        self.busy = False
        if self.gone:
            self.faults.append("closed while it was called")
        return [
            NumberResponse(request_id=r.request_id, model_name=r.model_name, value=2 * r.value)
            for r in requests
        ]

    def close(self) -> None:
        if not getattr(self.state, "set_in_load", False):
            self.faults.append("closed from another thread than load()'s")
        self.gone = True
        self.closed.append(self.name)


class Late(Watched):
    """Can't be loaded at the first try."""

    def load(self) -> None:
        super().load()
        if len(self.loads) == 1:
            raise OSError("the weights are on their way")


@pytest.fixture(autouse=True)
def nothing_seen():
    for seen in (Watched.threads, Watched.faults, Watched.loads, Watched.closed):
        seen.clear()
    Watched.predicting.clear()
    Watched.go_on.clear()


def watched(key: str, num_gpus: float = 0, **kwargs) -> sd.ModelSpec:
    """A model of its own for each test: loaded models stay in the process."""
    return sd.ModelSpec(
        name=key,
        model_type="number",
        backend=f"{__name__}:Watched",
        backend_kwargs=kwargs,
        resources=sd.ResourceConfig(num_cpus=1, num_gpus=num_gpus),
    )


def job(write_rows, tmp_path, name: str, rows: int = 40, **fields) -> BatchSpec:
    source = write_rows(list(range(rows)), name=f"{name}.jsonl")
    sink = str(tmp_path / "out" / f"{name}.jsonl")
    return BatchSpec(source=source, sink=sink, batch_size=4, compute="local", **fields)


@pytest.mark.parametrize("limit", [None, 60.0], ids=["without a limit", "batch_timeout"])
def test_every_call_comes_from_the_thread_that_loaded_the_model(write_rows, tmp_path, limit):
    model = watched(f"one thread {limit}")

    for name in ("first", "second"):
        BatchRunner(model).run(job(write_rows, tmp_path, name, batch_timeout=limit))

    assert Watched.faults == []
    assert Watched.loads == ["a"]
    assert len(Watched.threads) == 1


@pytest.mark.parametrize("limit", [None, 60.0], ids=["without a limit", "batch_timeout"])
def test_jobs_in_several_threads_share_a_model_and_take_turns(write_rows, tmp_path, limit):
    model = watched(f"several jobs {limit}")
    jobs = [job(write_rows, tmp_path, f"file {i}", batch_timeout=limit) for i in range(6)]

    with ThreadPoolExecutor(len(jobs)) as threads:
        results = list(threads.map(BatchRunner(model, on_progress=None).run, jobs))

    assert Watched.faults == []
    assert Watched.loads == ["a"]
    assert len(Watched.threads) == 1
    assert [[r["value"] for r in read_rows(r.sink)] for r in results] == [
        [2 * i for i in range(40)]
    ] * len(jobs)


@pytest.mark.parametrize("num_gpus", [0, 1], ids=["on the CPU", "on a GPU"])
def test_a_model_that_makes_room_is_closed_when_its_job_is_through(write_rows, tmp_path, num_gpus):
    busy = watched(f"busy {num_gpus}", num_gpus, name="busy", wait=True)
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(BatchRunner(busy).run, job(write_rows, tmp_path, "busy"))
        assert Watched.predicting.wait(300)
        for i in range(5):
            other = watched(f"other {num_gpus} {i}", num_gpus, name=f"other {i}")
            BatchRunner(other).run(job(write_rows, tmp_path, f"other {i}"))
        early = "busy" in Watched.closed
        Watched.go_on.set()
        running.result()

    assert not early
    assert "busy" in Watched.closed
    assert Watched.faults == []


def test_a_model_that_fails_to_load_is_tried_again_by_the_next_job(write_rows, tmp_path):
    model = watched("late").model_copy(update={"backend": f"{__name__}:Late"})

    with pytest.raises(sd.BackendLoadError, match="the weights are on their way"):
        BatchRunner(model).run(job(write_rows, tmp_path, "first"))
    result = BatchRunner(model).run(job(write_rows, tmp_path, "second"))

    assert result.rows == 40
    assert Watched.faults == []


class HangsOnce(Doubler):
    """Stays in a call that can't be interrupted."""

    held = threading.Event()

    def batch_predict(self, requests):
        if any(r.value == 3 for r in requests):
            self.held.wait(300)
        return super().batch_predict(requests)


def test_jobs_behind_a_call_that_got_stuck_go_on_with_a_model_loaded_anew(write_rows, tmp_path):
    loads = tmp_path / "loads"
    model = sd.ModelSpec(
        name="stuck",
        model_type="number",
        backend=f"{__name__}:HangsOnce",
        backend_kwargs={"load_log": str(loads)},
    )
    stuck = job(write_rows, tmp_path, "stuck", rows=8, batch_timeout=0.5, on_error="record")
    fine = BatchSpec(
        source=write_rows([5] * 200, name="fine.jsonl"),
        sink=str(tmp_path / "out" / "fine.jsonl"),
        batch_size=1,
        compute="local",
    )

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(BatchRunner(model, on_progress=None).run, stuck)
        second = threads.submit(BatchRunner(model, on_progress=None).run, fine)
        results = first.result(), second.result()
    HangsOnce.held.set()

    assert [r.error_rows for r in results] == [1, 0]
    assert len(loads.read_text().split()) == 3, "once, and after each of two calls that hung"


def test_an_interrupt_that_comes_as_a_call_ends_hits_no_other():
    thread = ModelThread()
    hit = []

    for i in range(300):
        started = time.perf_counter()
        try:
            thread.call(lambda: [None for _ in range(2000)], seconds=0.00002 * (i % 10))
        except CallTooLongError:
            hit.append(i)
        assert thread.call(lambda i=i: i) == i
        assert time.perf_counter() - started < 60

    assert not thread.lost
    thread.end()


def test_a_call_from_the_models_own_thread_is_made_at_once():
    thread = ModelThread()
    try:
        inner = thread.call(lambda: thread.call(threading.current_thread))
        assert inner is thread.call(threading.current_thread)
        assert inner is not threading.current_thread()
    finally:
        thread.end()
