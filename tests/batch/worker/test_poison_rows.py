"""Rows that fail, run out of memory or kill their process: what they cost, and what is said."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sheaf_dagster as sd
from sheaf_dagster import BatchRunner
from sheaf_dagster.batch.rows.row import Row
from sheaf_dagster.batch.worker.loading import LoadedBackend
from sheaf_dagster.batch.worker.predict import Predictor
from tests.batch.jobs import spec
from tests.conftest import ROOT, read_rows
from tests.crashes import FULL
from tests.toys import Doubler, NumberRequest, doubler, shaped


class Picky(Doubler):
    """Fails on given values; raises what it is told to where a batch is too large."""

    def __init__(self, bad: set[float] = frozenset(), full: Exception | None = None, most: int = 0):
        super().__init__()
        self.bad, self.full, self.most, self.calls = bad, full, most, 0

    def batch_predict(self, requests):
        self.calls += 1
        if self.full is not None and len(requests) > self.most:
            raise self.full
        if any(r.value in self.bad for r in requests):
            raise ValueError("cannot")
        return super().batch_predict(requests)


def predictor(backend, **fields) -> Predictor:
    return Predictor(LoadedBackend(backend, 0.0, 0.0, None), where="in.jsonl", **fields)


def rows_of(count: int) -> list[Row]:
    return [
        Row(i, i + 1, NumberRequest(request_id=UUID(int=i), model_name="m", value=i))
        for i in range(count)
    ]


@settings(max_examples=200)
@given(st.integers(1, 130).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)))))
def test_only_failing_rows_fail_and_each_costs_at_most_twice_the_logarithm(case):
    count, bad = case
    backend = Picky(bad={float(b) for b in bad})

    answers = predictor(backend, on_error="record").run(rows_of(count))

    assert [i for i, a in enumerate(answers) if isinstance(a, bytes)] == sorted(bad)
    assert [a.value for a in answers if not isinstance(a, bytes)] == [
        2.0 * i for i in range(count) if i not in bad
    ]
    assert backend.calls - 1 <= max(len(bad), 0) * (2 * math.ceil(math.log2(max(count, 2))) + 1)


def test_a_few_failing_rows_of_many_cost_few_calls(write_rows, tmp_path):
    calls = tmp_path / "calls"
    values = list(range(1, 4097))
    model = doubler(fail_every=600, call_log=str(calls))

    result = BatchRunner(model).run(
        spec(write_rows(values), tmp_path, batch_size=64, on_error="record", compute="local")
    )

    extra = len(calls.read_text().split()) - 4096 // 64
    assert result.error_rows == 6
    assert extra <= 6 * 2 * math.log2(64)
    assert [r.get("value") for r in read_rows(result.sink)] == [
        None if v % 600 == 0 else 2 * v for v in values
    ]


def torchs_own():
    torch = pytest.importorskip("torch")
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def torchs_on_the_cpu():
    torch = pytest.importorskip("torch")
    try:
        torch.empty(2**60)
    except RuntimeError as e:
        return e


def numpys_own():
    try:
        np.empty(2**50)
    except MemoryError as e:
        return e


@pytest.mark.parametrize(
    "error",
    [
        MemoryError,
        numpys_own,
        pytest.param(torchs_own, marks=pytest.mark.model),
        pytest.param(torchs_on_the_cpu, marks=pytest.mark.model),
        lambda: RuntimeError("CUDA error: out of memory"),
        lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
        lambda: RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate"),
        lambda: RuntimeError("Failed to allocate memory for requested buffer of size 1024"),
    ],
)
def test_running_out_of_memory_halves_the_batch_until_it_fits(error):
    made = error()
    backend = Picky(full=made, most=5)
    runs = predictor(backend, on_error="fail")

    answers = runs.run(rows_of(32))

    assert [a.value for a in answers] == [2.0 * i for i in range(32)]
    assert (runs.halved, backend.calls) == (7, 15)


class Held:
    """A block of a memory that has eight."""

    taken = 0

    def __new__(cls):
        if cls.taken == 8:
            raise MemoryError("CUDA out of memory (pretended)")
        cls.taken += 1
        return super().__new__(cls)

    def __del__(self) -> None:
        Held.taken -= 1


class HoldsMemory(Doubler):
    """Takes a block for each row, which a variable still holds when there are no more."""

    def __init__(self, is_wrapped: bool) -> None:
        super().__init__()
        self.is_wrapped = is_wrapped

    def batch_predict(self, requests):
        try:
            held = []
            for _ in requests:
                held.append(Held())
        except MemoryError as e:
            if self.is_wrapped:
                raise RuntimeError(str(e)) from e
            raise
        return super().batch_predict(requests)


@pytest.mark.parametrize("is_wrapped", [False, True])
def test_the_halves_of_a_batch_have_the_memory_that_it_had(is_wrapped):
    runs = predictor(HoldsMemory(is_wrapped), on_error="fail")

    answers = runs.run(rows_of(32))

    assert [a.value for a in answers] == [2.0 * i for i in range(32)]
    assert (runs.halved, runs.calls) == (3, 7)
    assert Held.taken == 0


class HoldsMemoryInFlight(HoldsMemory):
    """Each row takes two blocks, one after the other, while seven others do."""

    max_in_flight = 8

    async def predict_async(self, request):
        held = [Held()]
        await asyncio.sleep(0.01)
        held.append(Held())
        return Doubler.batch_predict(self, [request])[0]


def test_rows_that_run_out_of_memory_together_hold_nothing_and_count_once(
    write_rows, tmp_path, caplog
):
    values = [float(i) for i in range(64)]
    model = shaped(HoldsMemoryInFlight, is_wrapped=False)

    result = BatchRunner(model).run(spec(write_rows(values), tmp_path, compute="local"))

    assert [r["value"] for r in read_rows(result.sink)] == [2 * v for v in values]
    assert caplog.text.count("going on with") == caplog.text.count("going on with 4") == 1
    assert Held.taken == 0


class SharesErrors(Doubler):
    """Rows get one error together; one of them gives up, and the others try again after that."""

    max_in_flight = 8

    def load(self):
        super().load()
        self.down = None

    async def predict_async(self, request):
        if self.down is None:
            self.down = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_later(0.1, self._fall)
        try:
            await self.down
        except ConnectionError:
            if request.value == 0:
                raise
            await asyncio.sleep(0.5)
        return Doubler.batch_predict(self, [request])[0]

    def _fall(self):
        self.down.set_exception(ConnectionError("gone for a moment"))


def test_an_error_that_rows_share_ends_only_those_that_give_up(write_rows, tmp_path):
    job = spec(
        write_rows([float(i) for i in range(8)]), tmp_path, compute="local", on_error="record"
    )

    result = BatchRunner(shaped(SharesErrors)).run(job)

    first, *others = read_rows(result.sink)
    assert first["error"]["type"] == "ConnectionError"
    assert [r["value"] for r in others] == [2.0 * i for i in range(1, 8)]


def test_a_single_row_that_does_not_fit_is_a_failing_row():
    backend = Picky(full=MemoryError("too large"), most=0)
    with pytest.raises(sd.PredictError, match="line 1: .*MemoryError: too large"):
        predictor(backend, on_error="fail").run(rows_of(4))
    answers = predictor(backend, on_error="record").run(rows_of(2))
    assert all(b'"MemoryError"' in a for a in answers)


@pytest.mark.ray
@pytest.mark.parametrize("compute", ["tasks", "actors"] if FULL else ["tasks"])
def test_a_crash_ends_the_job_with_its_rows_whatever_the_policy(
    ray_cluster, write_rows, tmp_path, compute
):
    # Recording is for errors that a backend raises. A process that dies may have been killed for
    # memory, or by a fault that other rows share: to go on would be to guess.
    fields = {"compute": compute, "num_actors": 1 if compute == "actors" else None}
    with pytest.raises(
        sd.WorkerCrashError, match=r"in.jsonl, the 4 rows from line 9: .*died 4 times"
    ):
        BatchRunner(doubler(segfault_on=9)).run(
            spec(write_rows(list(range(16))), tmp_path, batch_size=4, on_error="record", **fields)
        )
    assert not (tmp_path / "out" / "out.jsonl").exists()


CRASHING = """
import sys
from sheaf_dagster import BatchRunner, BatchSpec
from tests.toys import doubler
spec = BatchSpec(source=sys.argv[1], sink=sys.argv[2], batch_size=4, compute="local")
BatchRunner(doubler(segfault_on=9)).run(spec)
"""


def test_a_crash_without_ray_takes_the_process_along_and_leaves_what_was_done(write_rows, tmp_path):
    source = write_rows(list(range(40)))
    sink = tmp_path / "out" / "out.jsonl"
    died = subprocess.run(
        [sys.executable, "-c", CRASHING, source, str(sink)], cwd=ROOT, check=False
    )
    parts = list(Path(tmp_path / "out").glob(".out.jsonl.sheaf/run-*/part-*"))
    assert died.returncode == -11
    assert not sink.exists()
    assert len(parts) == 2
