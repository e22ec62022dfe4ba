"""Processes beside the model's: what they do, when a worker uses them, and what happens if one fails."""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from copy import copy
from typing import ClassVar

import numpy as np
import psutil
import pytest

import sheaf_dagster as sd
from sheaf_dagster import BatchRunner
from sheaf_dagster.backends.base import without_model
from sheaf_dagster.batch.worker import local_model
from sheaf_dagster.batch.worker.beside import choice
from tests.batch.jobs import here_and_in_workers, spec
from tests.conftest import read_rows
from tests.toys import InStages, InStagesBeside, NumberResponse, shaped
from tests.waiting import wait_until

VALUES = [float(i) for i in range(200)]


def processes() -> list[psutil.Process]:
    """Those beside a model of this process."""
    found = []
    for one in psutil.Process().children():
        try:
            if "beside.child" in " ".join(one.cmdline()):
                found.append(one)
        except psutil.Error:
            continue
    return found


@pytest.fixture(autouse=True)
def _none_is_left():
    yield
    for model in [*local_model._MODELS.values()]:
        if not model.users:
            model.close()
    local_model._MODELS.clear()
    wait_until(lambda: not processes(), "the end of the processes")


class Tells(InStagesBeside):
    """Says in which process each stage ran."""

    def prepare(self, request):
        return os.getpid(), request.value

    def size(self, prepared):
        return 1

    def infer(self, prepared):
        return [(pid, os.getpid(), 2 * value) for pid, value in prepared]

    def respond(self, requests, outputs):
        return [
            NumberResponse(
                request_id=r.request_id,
                model_name=r.model_name,
                value=value,
                note=f"{prepared} {inferred} {os.getpid()}",
            )
            for r, (prepared, inferred, value) in zip(requests, outputs, strict=True)
        ]

    def without_model(self):
        return copy(self)


@here_and_in_workers
def test_all_but_infer_is_done_in_other_processes(write_rows, tmp_path, mode):
    job = spec(write_rows(VALUES), tmp_path, batch_size=4, **mode)

    result = BatchRunner(shaped(Tells)).run(job)

    rows = read_rows(result.sink)
    assert [r["value"] for r in rows] == [2 * v for v in VALUES]
    pids = [tuple(map(int, r["note"].split())) for r in rows]
    assert all(prepared == responded != inferred for prepared, inferred, responded in pids)
    models = {inferred for _, inferred, _ in pids}
    assert len(models) <= (mode.get("num_actors") or 2)
    if mode["compute"] == "local":
        assert models == {os.getpid()}
    assert len({prepared for prepared, _, _ in pids}) > 1
    assert result.workers == len(models)


class InModel(InStagesBeside):
    """Notes the threads of ``infer``; of large arrays, whose sum is the answer."""

    seen: ClassVar[set[int]] = set()

    def load(self):
        super().load()
        self.seen.clear()
        self.own = threading.get_ident()

    def prepare(self, request):
        return np.full(100_000, request.value)

    def size(self, prepared):
        return len(prepared)

    def infer(self, prepared):
        self.seen.add(threading.get_ident())
        assert all(one.flags.writeable for one in prepared)
        return [one[:2].sum() for one in prepared]

    def without_model(self):
        return copy(self)


def test_the_models_own_thread_has_large_arrays_as_they_were_made(write_rows, tmp_path):
    job = spec(write_rows(VALUES), tmp_path, batch_size=4, compute="local")

    result = BatchRunner(shaped(InModel)).run(job)

    assert [r["value"] for r in read_rows(result.sink)] == [2 * v for v in VALUES]
    (model,) = local_model._MODELS.values()
    assert InModel.seen == {model._loaded.backend.own}


class Dies(InStagesBeside):
    """Ends every process but the model's at one row."""

    def load(self):
        super().load()
        self.own = os.getpid()

    def prepare(self, request):
        if request.value == 150 and os.getpid() != self.own:
            os._exit(3)
        return request

    def without_model(self):
        return copy(self)


class NotToBeSent(Dies):
    """Makes what can't be pickled, at one row."""

    def prepare(self, request):
        return (lambda: 0) if request.value == 150 else request

    def size(self, prepared):
        return 1

    def infer(self, prepared):
        return [300.0 if callable(one) else 2 * one.value for one in prepared]

    def without_model(self):
        return copy(self)


class NotToBeSentBack(Dies):
    """Makes of rows what can't be pickled."""

    def prepare(self, request):
        return request

    def infer(self, prepared):
        return [lambda value=one.value: 2 * value for one in prepared]

    def respond(self, requests, outputs):
        return super().respond(requests, [one() for one in outputs])

    def without_model(self):
        return copy(self)


@pytest.mark.parametrize("on_error", ["fail", "record"])
@pytest.mark.parametrize(
    ("cls", "why"),
    [
        (Dies, r"it ended \(exit status 3\)"),
        (NotToBeSent, "local object"),
        (NotToBeSentBack, "local object"),
    ],
)
def test_where_a_process_fails_threads_go_on(write_rows, tmp_path, caplog, cls, why, on_error):
    job = spec(write_rows(VALUES), tmp_path, batch_size=4, compute="local", on_error=on_error)

    with caplog.at_level(logging.WARNING):
        result = BatchRunner(shaped(cls)).run(job)

    assert [r["value"] for r in read_rows(result.sink)] == [2 * v for v in VALUES]
    assert result.error_rows == 0
    assert (
        len([r for r in caplog.records if "a process that prepares its rows failed" in r.message])
        == 1
    )
    assert re.search(f"threads do it from here on.*{why}", caplog.text)
    wait_until(lambda: not processes(), "the end of the others")

    BatchRunner(shaped(cls)).run(job.model_copy(update={"resume": False}))
    assert not processes(), "they are not tried again"


class Loud(InStagesBeside):
    """Runs out of memory with more than two rows, which is logged where the stages run."""

    def without_model(self):
        return copy(self)


def test_what_is_logged_there_is_logged_here(write_rows, tmp_path, caplog):
    job = spec(write_rows(VALUES), tmp_path, batch_size=4, compute="local")

    with caplog.at_level(logging.WARNING):
        result = BatchRunner(shaped(Loud, memory_rows=2, stage="infer")).run(job)

    assert [r["value"] for r in read_rows(result.sink)] == [2 * v for v in VALUES]
    assert result.halved_batches == 50
    assert "out of memory with 4 rows (RuntimeError); trying 2" in caplog.text


class Gives(InStagesBeside):
    """Waits in ``infer`` while a file is there."""

    def __init__(self, path: str, **kwargs) -> None:
        super().__init__(**kwargs)
        self.path = path

    def infer(self, prepared):
        with open(f"{self.path}.seen", "w"):
            pass
        while os.path.exists(self.path):
            time.sleep(0.01)
        time.sleep(0.05)
        return InStages.infer(self, prepared)

    def without_model(self):
        return copy(self)


def test_a_job_that_is_called_off_ends_its_processes_and_the_next_goes_on(write_rows, tmp_path):
    job = spec(write_rows(VALUES), tmp_path, batch_size=4, compute="local")
    held = tmp_path / "held"
    held.touch()
    model = shaped(Gives, path=str(held), stage="none")

    def release() -> None:
        wait_until((tmp_path / "held.seen").exists, "the first batch")
        held.unlink()

    thread = threading.Thread(target=release)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        BatchRunner(model, on_progress=_interrupt).run(job)
    thread.join()
    wait_until(lambda: not processes(), "the end of the processes")

    result = BatchRunner(model).run(job)

    assert [r["value"] for r in read_rows(result.sink)] == [2 * v for v in VALUES]


def _interrupt(progress) -> None:
    if progress.rows_done:
        raise KeyboardInterrupt


# -- what a worker chooses --------------------------------------------------------------------------


class Measured(InStages):
    """Holds the interpreter lock for so long to prepare a row, and sleeps on the device."""

    def __init__(self, locked: float = 0.0, device: float = 0.0, sending: float = 0.0) -> None:
        super().__init__()
        self.locked, self.device, self.sending = locked, device, sending

    def prepare(self, request):
        until = time.thread_time() + self.locked
        while time.thread_time() < until:
            pass
        return Slow(request.value, self.sending)

    def size(self, prepared):
        return 1

    def infer(self, prepared):
        time.sleep(self.device * len(prepared))
        return [2 * one.value for one in prepared]

    def without_model(self):
        return copy(self)


class Slow:
    """Takes so long to be sent."""

    def __init__(self, value: float, seconds: float) -> None:
        self.value, self.seconds = value, seconds

    def __reduce__(self):
        time.sleep(self.seconds)
        return Slow, (self.value, self.seconds)


@pytest.fixture
def _short_looks(monkeypatch):
    for name, seconds in (("LOOK", 0.3), ("TRY", 0.5), ("SETTLE", 0.1)):
        monkeypatch.setattr(choice, f"_{name}_SECONDS", seconds)


@pytest.mark.usefixtures("_short_looks")
@pytest.mark.parametrize(
    ("times", "started", "kept"),
    [
        pytest.param({"locked": 0.004, "device": 0.002}, True, True, id="locks"),
        pytest.param({"device": 0.02}, False, False, id="nothing to gain"),
        pytest.param(
            {"locked": 0.001, "device": 0.001, "sending": 0.02}, True, False, id="slow to send"
        ),
    ],
)
def test_a_worker_measures_whether_processes_pay(write_rows, tmp_path, times, started, kept):
    rows = [float(i % 50) for i in range(3000 if started else 200)]
    job = spec(write_rows(rows), tmp_path, batch_size=4, compute="local")

    result = BatchRunner(shaped(Measured, num_cpus=2, **times)).run(job)

    assert [r["value"] for r in read_rows(result.sink)] == [2 * v for v in rows]
    (model,) = local_model._MODELS.values()
    beside = model._loaded.beside
    assert (beside._starting is not None) == started
    assert beside._kept == kept
    assert bool(processes()) == kept


def test_one_cpu_is_not_shared_by_processes(write_rows, tmp_path, monkeypatch):
    monkeypatch.setattr("sheaf_dagster.batch.local._available_cpus", lambda: 1)
    job = spec(write_rows(VALUES), tmp_path, batch_size=4, compute="local")

    BatchRunner(shaped(Measured, locked=0.001)).run(job)

    (model,) = local_model._MODELS.values()
    assert model._loaded.beside._refused


class Copies(InStages):
    def without_model(self):
        return copy(self)


class OnlyInfers(Copies):
    def infer(self, prepared):
        return super().infer(prepared)


class PreparesItsOwnWay(Copies):
    def prepare(self, request):
        return super().prepare(request)


def test_a_subclass_that_prepares_its_own_way_must_speak_for_itself():
    assert without_model(InStages()) is None
    assert isinstance(without_model(Copies()), Copies)
    assert isinstance(without_model(OnlyInfers()), OnlyInfers)
    assert without_model(PreparesItsOwnWay()) is None
    own = Copies()
    own.prepare = lambda request: request
    assert without_model(own) is None


def test_a_class_of_a_notebook_travels(write_rows, tmp_path):
    class Local(InStagesBeside):
        def prepare(self, request):
            return os.getpid(), request

        def size(self, prepared):
            return 1

        def infer(self, prepared):
            assert all(pid != os.getpid() for pid, _ in prepared)
            return [2 * one.value for _, one in prepared]

        def without_model(self):
            return copy(self)

    sd.register_backend("of-a-notebook")(Local)
    job = spec(write_rows(VALUES), tmp_path, batch_size=4, compute="local")
    model = shaped("call").model_copy(update={"backend": "of-a-notebook"})

    result = BatchRunner(model).run(job)

    assert [r["value"] for r in read_rows(result.sink)] == [2 * v for v in VALUES]
