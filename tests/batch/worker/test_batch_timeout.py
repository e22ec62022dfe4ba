"""Backends that hang: stopped, named with their rows, and got over where that is wanted."""

from __future__ import annotations

import threading

import pytest

import sheaf_dagster as sd
from sheaf_dagster import BatchRunner
from sheaf_dagster.batch.worker import model_thread
from tests.batch.jobs import MODES, leftovers, spec
from tests.conftest import read_rows
from tests.crashes import FULL
from tests.toys import doubler


def limit_in(where: dict) -> float:
    """Seconds: threads and processes of a busy machine may not be given a turn for a while."""
    return 1.5 if where["compute"] == "local" else 2.5


local_or_tasks = pytest.mark.parametrize("mode", MODES[:2], indirect=True)


@local_or_tasks
def test_a_backend_that_hangs_is_stopped_and_its_rows_are_named(mode, write_rows, tmp_path):
    model = doubler(hang_on=[21])
    limit = limit_in(mode)
    job = spec(write_rows(list(range(40))), tmp_path, batch_size=4, batch_timeout=limit, **mode)

    with pytest.raises(
        sd.BatchTimeoutError,
        match=rf"in.jsonl, lines 21–24: Doubler gave no answer within batch_timeout={limit:g} s",
    ):
        BatchRunner(model).run(job)

    assert "out.jsonl" not in leftovers(tmp_path)


def test_rows_that_hang_are_recorded_and_the_rest_is_answered(mode, write_rows, tmp_path):
    calls = tmp_path / "calls"
    values = list(range(40))
    model = doubler(hang_on=[9, 11], call_log=str(calls))
    job = spec(
        write_rows(values),
        tmp_path,
        batch_size=4,
        batch_timeout=limit_in(mode),
        on_error="record",
        **mode,
    )

    result = BatchRunner(model).run(job)

    rows = read_rows(result.sink)
    assert result.error_rows == 2
    assert [r["error"]["type"] for r in rows if "error" in r] == ["BatchTimeoutError"] * 2
    assert [r.get("value") for r in rows] == [None if v in (9, 11) else 2 * v for v in values]
    assert leftovers(tmp_path) == ["out.jsonl"]
    if mode["compute"] == "local":
        assert len(calls.read_text().split()) == 10 + 4


@pytest.mark.parametrize("mode", MODES[: 3 if FULL else 1], indirect=True)
def test_a_backend_that_hangs_on_everything_ends_the_job(mode, write_rows, tmp_path):
    calls = tmp_path / "calls"
    model = doubler(hang_on=list(range(8)), call_log=str(calls))
    job = spec(
        write_rows(list(range(8))),
        tmp_path,
        batch_timeout=limit_in(mode),
        on_error="record",
        **mode,
    )

    with pytest.raises(sd.BatchTimeoutError, match="hung on each of the 4 rows before this one"):
        BatchRunner(model).run(job)

    assert calls.read_text().split() == ["8", "1", "1", "1", "1"]


@pytest.mark.ray
@pytest.mark.skipif(not FULL, reason="four deaths of seconds each; make test-crashes runs it")
def test_a_library_that_locks_the_interpreter_is_stopped_too(
    ray_cluster, write_rows, tmp_path, monkeypatch
):
    model = doubler(hang_on=[1], hang_how="locked")
    job = spec(write_rows([0, 1, 2]), tmp_path, batch_timeout=0.1, batch_size=1)

    # It can't say what hung, so its chunk is found as that of a backend that kills its worker is.
    with pytest.raises(sd.WorkerCrashError, match=r"the 1 rows from line 2: .*died 4 times"):
        BatchRunner(model).run(job)


def _our_threads() -> set[threading.Thread]:
    """Those of the library; a server of another test's may be starting some of its own."""
    return {t for t in threading.enumerate() if t.name.startswith("sheaf")}


def test_python_code_that_hangs_leaves_no_thread_and_keeps_the_model(
    write_rows, tmp_path, monkeypatch
):
    # It ends the moment that it is given a turn; a thread that can't be ended is left sooner.
    monkeypatch.setattr(model_thread, "_INTERRUPT_SECONDS", 30.0)
    loads = tmp_path / "loads"
    model = doubler(hang_on=[3], hang_how="spin", load_log=str(loads))
    job = spec(
        write_rows(list(range(6))), tmp_path, batch_timeout=1.0, on_error="record", compute="local"
    )

    BatchRunner(model).run(job.model_copy(update={"row_limit": 3}))
    before = _our_threads()  # the model's own thread is one of them
    result = BatchRunner(model).run(job)

    assert result.error_rows == 1
    assert before
    assert _our_threads() <= before
    assert len(loads.read_text().split()) == 1


@local_or_tasks
def test_a_fast_backend_is_not_disturbed_by_a_limit(mode, write_rows, tmp_path):
    values = list(range(100))
    job = spec(write_rows(values), tmp_path, batch_size=4, batch_timeout=30, **mode)
    result = BatchRunner(doubler(fail_on=7)).run(job.model_copy(update={"on_error": "record"}))
    assert [r.get("value") for r in read_rows(result.sink)] == [
        None if v == 7 else 2 * v for v in values
    ]
