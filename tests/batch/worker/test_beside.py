"""Processes beside the model's: what they do, when a worker uses them, and what happens if one fails."""

from __future__ import annotations

import gzip
import json
import logging
import os
import re
import threading
import time
import traceback
from copy import copy
from functools import partial
from typing import ClassVar, Literal

import fsspec
import numpy as np
import psutil
import pytest

import sheaf_dagster as sd
from sheaf_dagster import BatchRunner
from sheaf_dagster.backends.base import without_model
from sheaf_dagster.batch.worker import local_model
from sheaf_dagster.batch.worker.beside import choice
from sheaf_dagster.batch.worker.beside.errors import as_error, told_error
from sheaf_dagster.batch.worker.beside.link import as_sent
from sheaf_dagster.batch.worker.pipeline import run_chunks
from sheaf_dagster.storage import Location, store_at
from tests.batch.jobs import here_and_in_workers, spec
from tests.conftest import read_rows
from tests.toys import InStages, InStagesBeside, NumberRequest, NumberResponse, shaped
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
    assert (result.workers, result.processes) == (len(models), 2)


@pytest.mark.parametrize(
    "options",
    [
        {"bucket_by": "group"},
        {"batch_budget": 150},
        {"keep": ["region"]},
        {"on_invalid": "record"},
        {"sink_suffix": "parquet"},
        {"source_suffix": "jsonl.gz"},
        {"reuse": "previous"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_the_output_is_the_same_to_the_byte_as_by_threads(tmp_path, options):
    options = dict(options)
    rows = [
        {"model_type": "number", "model_name": "m", "value": v % 41, "group": int(v) % 3}
        | {"note": f"n{v}", "region": "north" if v % 2 else "south"}
        for v in VALUES
    ]
    lines = [json.dumps(row) + "\n" for row in rows]
    if options.get("on_invalid"):
        lines[57] = '{"model_type": "number", "model_name": "m", "value": "many"}\n'
    source = tmp_path / f"in.{options.pop('source_suffix', 'jsonl')}"
    opened = gzip.open if source.suffix == ".gz" else open
    suffix = options.pop("sink_suffix", "jsonl")

    written = []
    for cls in (InStages, InStagesBeside):
        sink = tmp_path / cls.__name__ / f"out.{suffix}"
        job = sd.BatchSpec(
            source=str(source), sink=str(sink), batch_size=4, compute="local", **options
        )
        with opened(source, "wt") as f:
            f.writelines(lines)
        result = BatchRunner(shaped(cls)).run(job)
        if options.get("reuse"):  # other values on some lines: only these are run
            with opened(source, "wt") as f:
                f.writelines(json.dumps(row | {"value": 7.5}) + "\n" for row in rows[::5])
                f.writelines(lines[1:])
            result = BatchRunner(shaped(cls)).run(job)
            assert result.reused_rows > 100
        written.append((sink.read_bytes(), result.output_rows, result.error_rows))

    assert written[0] == written[1]
    assert len(processes()) == 2


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
        return threading.Lock() if request.value == 150 else request

    def size(self, prepared):
        return 1

    def infer(self, prepared):
        return [2 * getattr(one, "value", 150.0) for one in prepared]

    def without_model(self):
        return copy(self)


class NotToBeSentBack(Dies):
    """Makes of rows what can't be pickled."""

    def prepare(self, request):
        return request

    def infer(self, prepared):
        return [(2 * one.value, threading.Lock()) for one in prepared]

    def respond(self, requests, outputs):
        return super().respond(requests, [value for value, _ in outputs])

    def without_model(self):
        return copy(self)


@pytest.mark.parametrize("on_error", ["fail", "record"])
@pytest.mark.parametrize(
    ("cls", "why"),
    [
        (Dies, r"it ended \(exit status 3\)"),
        (NotToBeSent, "cannot pickle '_thread.lock' object"),
        (NotToBeSentBack, "cannot pickle '_thread.lock' object"),
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


# -- one run after another ----------------------------------------------------------------------------


class Quotes(InStagesBeside):
    """Writes how it is told things: the contract's default, a variable, a logger."""

    def prepare(self, request):
        logging.getLogger("of.a.user").info("row %g", request.value)
        return request.value * getattr(request, "scale", 1.0), os.environ.get("SHEAF_TEST", "")

    def size(self, prepared):
        return 1

    def infer(self, prepared):
        return [*prepared]

    def respond(self, requests, outputs):
        return [
            NumberResponse(request_id=r.request_id, model_name=r.model_name, value=v, note=note)
            for r, (v, note) in zip(requests, outputs, strict=True)
        ]

    def without_model(self):
        return copy(self)


def scaled(default: float) -> type[NumberRequest]:
    """A contract as a notebook registers it, again and again."""

    class Scaled(NumberRequest):
        model_type: Literal["scaled"] = "scaled"
        scale: float = default

    return Scaled


def test_each_run_has_its_own_contract_and_variables(write_rows, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(Quotes, "model_type", "scaled")
    model = shaped(Quotes).model_copy(update={"model_type": "scaled"})
    source = write_rows(VALUES, model_type="scaled")
    job = spec(source, tmp_path, batch_size=4, compute="local", resume=False)
    found = []
    for scale, told in ((1.0, "old"), (3.0, "new"), (2.0, None)):
        sd.register_contract("scaled", scaled(scale), NumberResponse)
        monkeypatch.delenv("SHEAF_TEST", raising=False)
        if told is not None:
            monkeypatch.setenv("SHEAF_TEST", told)
        with caplog.at_level(logging.INFO):
            result = BatchRunner(model).run(job)
        rows = read_rows(result.sink)
        assert [r["value"] for r in rows] == [scale * v for v in VALUES]
        found.append({r["note"] for r in rows})

    assert found == [{"old"}, {"new"}, {""}]
    assert "row 150" in [r.message for r in caplog.records if r.name == "of.a.user"]
    assert len(local_model._MODELS) == 1


def test_each_run_leaves_out_what_it_is_to(tmp_path):
    source = tmp_path / "in.jsonl"
    text = '{"model_type": "number", "model_name": "m", "value": %s}\n'
    source.write_text("".join(text % v for v in (*range(50), '"SECRET"', *range(50))))
    job = spec(source, tmp_path, batch_size=4, compute="local", resume=False, on_invalid="record")

    said = []
    for redact in (False, True):
        result = BatchRunner(shaped(InStagesBeside), redact_rows=redact).run(job)
        said.append(read_rows(result.sink)[50]["error"]["message"])

    assert ["SECRET" in one for one in said] == [True, False]
    assert len(processes()) == 2


class Slowly(InStagesBeside):
    def infer(self, prepared):
        time.sleep(0.02)
        return InStages.infer(self, prepared)

    def without_model(self):
        return copy(self)


@pytest.fixture
def chunks_of(write_rows, tmp_path, monkeypatch):
    """Runs a job; gives what runs its chunks once more, as a worker on Ray does."""

    def run(cls: type):
        seen = []

        def spy(context, loaded, todo, **kwargs):
            todo = list(todo)
            seen.append((context, loaded, [work for few in todo for work in few]))
            return run_chunks(context, loaded, todo, **kwargs)

        monkeypatch.setattr("sheaf_dagster.batch.local.run_chunks", spy)
        BatchRunner(shaped(cls)).run(
            spec(write_rows(VALUES), tmp_path, batch_size=4, compute="local")
        )
        ((context, loaded, chunks),) = seen
        os.makedirs(chunks[0][0].store.folder.uri, exist_ok=True)
        return partial(run_chunks, context, loaded), chunks

    return run


def test_a_run_after_one_that_was_stopped_has_all_of_its_chunks(chunks_of):
    run, chunks = chunks_of(Slowly)
    everything = [chunk.index for _, chunk in chunks]
    for _ in range(3):
        flag = threading.Event()
        stopped = []
        for report in run([chunks], flag.is_set):
            stopped.append(report.chunk)
            flag.set()
        assert 0 < len(stopped) < len(chunks)

        assert sorted(report.chunk for report in run([chunks])) == everything
    assert len(processes()) == 2


class DiesLate(InStagesBeside):
    """Ends its process at the last row, once the model's says so."""

    def load(self):
        super().load()
        self.own = os.getpid()

    def prepare(self, request):
        if request.value == VALUES[-1] and os.getpid() != self.own and "SHEAF_DIE" in os.environ:
            time.sleep(0.5)
            os._exit(3)
        return request

    def without_model(self):
        return copy(self)


def test_a_process_that_fails_while_the_source_waits_for_its_chunk(chunks_of, monkeypatch):
    run, chunks = chunks_of(DiesLate)
    monkeypatch.setenv("SHEAF_DIE", "1")
    held: set[int] = set()
    changed = threading.Condition()

    def seat():
        """Ends as the coordinator's does: not while a chunk may come back."""
        for one in chunks:
            with changed:
                held.add(one[1].index)
            yield [one]
        with changed:
            assert changed.wait_for(lambda: not held, 300)

    got = []
    for report in run(seat()):
        got.append(report.chunk)
        with changed:
            held.discard(report.chunk)
            changed.notify_all()

    assert sorted(got) == [chunk.index for _, chunk in chunks]


def test_an_error_of_the_source_ends_the_run(chunks_of):
    run, chunks = chunks_of(InStagesBeside)

    def source():
        yield chunks[:5]
        raise ConnectionError("the coordinator is gone")

    with pytest.raises(ConnectionError, match="the coordinator is gone"):
        list(run(source()))
    wait_until(lambda: not processes(), "the end of the processes")


def test_an_error_of_the_source_is_raised_though_a_process_failed_before(chunks_of):
    run, chunks = chunks_of(InStagesBeside)
    reported = []

    def source():
        yield chunks[:5]
        wait_until(lambda: len(reported) == 5, "the reports")
        for one in processes():
            one.kill()
        wait_until(lambda: not processes(), "the end of the processes")
        time.sleep(0.5)  # by now threads wait for more
        raise ConnectionError("the coordinator is gone")

    with pytest.raises(ConnectionError, match="the coordinator is gone"):
        for report in run(source()):
            reported.append(report.chunk)


@pytest.mark.parametrize(
    ("uri", "options", "known"),
    [
        ("s3://bucket/a.jsonl", {}, True),
        ("a.jsonl", {}, True),
        ("memory://a.jsonl", {}, False),
        ("http://127.0.0.1:9/a.jsonl", {}, True),
        ("simplecache://a.jsonl", {"target_protocol": "memory"}, False),
    ],
)
def test_what_other_processes_see(uri, options, known):
    assert store_at(Location.of(uri, options)).known_elsewhere is known


def test_rows_that_other_processes_do_not_see_are_left_to_threads(tmp_path):
    memory = fsspec.filesystem("memory")
    text = "".join(f'{{"model_type": "number", "model_name": "m", "value": {v}}}\n' for v in VALUES)
    memory.pipe("/beside/in.jsonl", text.encode())
    job = sd.BatchSpec(
        source="memory://beside/in.jsonl",
        sink="memory://beside/out.jsonl",
        batch_size=4,
        compute="local",
    )

    BatchRunner(shaped(InStagesBeside)).run(job)

    lines = memory.cat("/beside/out.jsonl").splitlines()
    assert [json.loads(line)["value"] for line in lines] == [2 * v for v in VALUES]


class Busy(TimeoutError):
    """Has more than a text."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


class Raises(InStagesBeside):
    def infer(self, prepared):
        if any(one.value in (33, 77) for one in prepared):
            raise Busy("no more today", 7)
        return InStages.infer(self, prepared)

    def without_model(self):
        return copy(self)


@pytest.mark.parametrize("how", ["fail", "record"])
def test_an_error_of_infer_is_as_in_threads(write_rows, tmp_path, how):
    job = spec(write_rows(VALUES), tmp_path, batch_size=4, compute="local", on_error=how)
    runner = BatchRunner(shaped(Raises))

    if how == "fail":
        with pytest.raises(sd.PredictError, match="line 34: .*Busy: no more today") as caught:
            runner.run(job)
        assert 'raise Busy("no more today", 7)' in "".join(traceback.format_exception(caught.value))
        return
    rows = read_rows(runner.run(job).sink)
    failed = [i for i, r in enumerate(rows) if "error" in r]
    assert failed == [33, 77]
    assert {rows[i]["error"]["type"] for i in failed} == {"Busy"}
    assert rows[33]["error"]["message"] == "no more today"


@pytest.mark.parametrize(
    "error", [Busy("no more", 7), KeyError("a"), OSError(2, "no such", "f"), ValueError("x")]
)
def test_errors_arrive_as_they_were(error):
    told = as_sent(told_error(error, redact=False))

    other = as_error(told)

    assert type(other).__name__ == type(error).__name__
    assert str(other) == str(error)
    assert isinstance(other, next(c for c in type(error).__mro__ if c.__module__ == "builtins"))
    assert getattr(other, "code", None) == getattr(error, "code", None)


def test_of_an_error_that_holds_much_only_its_text_is_sent():
    error = Busy("no more", 7)
    error.batch = [np.zeros(100_000)]

    told = told_error(error, redact=False)

    assert told.itself is None
    assert (told.name, told.text, told.attributes) == ("Busy", "no more", {"code": 7})


def test_a_budget_that_does_not_fit_is_lowered_in_all_processes(write_rows, tmp_path):
    rows = [float(i % 7) for i in range(400)]
    job = spec(
        write_rows(rows), tmp_path, batch_budget=80, compute="local", batch_size=8, resume=False
    )
    runner = BatchRunner(shaped(InStagesBeside, memory_rows=3, stage="none"))

    first, again = runner.run(job), runner.run(job)

    assert first.halved_batches > 0
    assert again.halved_batches == 0
    assert [r["value"] for r in read_rows(again.sink)] == [2 * v for v in rows]


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
    for name, seconds in (("LOOK", 0.3), ("TRY", 1.0), ("SETTLE", 0.2)):
        monkeypatch.setattr(choice, f"_{name}_SECONDS", seconds)


@pytest.mark.usefixtures("_short_looks")
@pytest.mark.parametrize(
    ("times", "started", "kept"),
    [
        pytest.param({"locked": 0.004, "device": 0.002}, True, True, id="locks"),
        pytest.param({"device": 0.05}, False, False, id="nothing to gain"),
        pytest.param(
            {"locked": 0.001, "device": 0.001, "sending": 0.02}, True, False, id="slow to send"
        ),
    ],
)
def test_a_worker_measures_whether_processes_pay(write_rows, tmp_path, times, started, kept):
    rows = [float(i % 50) for i in range(3000 if started else 80)]
    job = spec(write_rows(rows), tmp_path, batch_size=4, compute="local")

    for _ in range(20):  # on a busy machine a job is over before they are tried
        result = BatchRunner(shaped(Measured, num_cpus=2, **times)).run(job)
        (model,) = local_model._MODELS.values()
        beside = model._loaded.beside
        if beside._kept or beside._refused or not started:
            break
        job = job.model_copy(update={"resume": False})

    assert [r["value"] for r in read_rows(result.sink)] == [2 * v for v in rows]
    assert (beside._starting is not None) == started
    assert beside._kept == kept
    assert bool(processes()) == kept
    if not started:
        assert result.processes == 0


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
