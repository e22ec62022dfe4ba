"""That the device has work: what runs beside what, in which threads, and what is reported of it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from typing import ClassVar

import pytest

from sheaf_dagster import BatchRunner, PredictError
from tests.batch.jobs import spec
from tests.conftest import read_rows
from tests.toys import InFlight, InStages, shaped

PATIENCE = 300.0
"""Seconds after which something that was to happen beside something else has not."""


def of(cls: type, num_cpus: float = 1, **kwargs):
    return shaped("call", num_cpus, **kwargs).model_copy(
        update={"backend": f"{cls.__module__}:{cls.__name__}"}
    )


class Threads(InStages):
    """Notes which threads do what; holds each stage until the others have been seen beside it."""

    seen: ClassVar[dict[str, set[int]]] = {}
    beside: ClassVar[Counter[str]] = Counter()

    def load(self):
        super().load()
        type(self).seen = {"load": {threading.get_ident()}, "prepare": set(), "infer": set()}
        self.seen["respond"] = set()
        self.lock = threading.Lock()
        self.calls = 0
        self.pair = threading.Barrier(2)
        self.prepared_later = threading.Event()

    def prepare(self, request):
        self.seen["prepare"].add(threading.get_ident())
        if request.value < 2:
            self.pair.wait(PATIENCE)  # two threads prepare at a time
        if request.value == 20:
            self.prepared_later.set()
        return request

    def infer(self, prepared):
        assert self.lock.acquire(blocking=False), "two calls of infer at a time"
        self.seen["infer"].add(threading.get_ident())
        # A row of another chunk is prepared while the first batch is on the device.
        assert self.prepared_later.wait(PATIENCE)
        self.calls += 1
        self.lock.release()
        return [2 * r.value for r in prepared]

    def respond(self, requests, outputs):
        self.seen["respond"].add(threading.get_ident())
        return super().respond(requests, outputs)


def test_rows_are_prepared_ahead_in_threads_across_chunks_and_answered_in_another(
    write_rows, tmp_path
):
    values = [float(i) for i in range(64)]
    job = spec(write_rows(values), tmp_path, batch_size=4, compute="local")

    result = BatchRunner(of(Threads, num_cpus=2)).run(job)

    seen = Threads.seen
    assert [r["value"] for r in read_rows(result.sink)] == [2 * v for v in values]
    assert result.chunks == 16
    assert seen["infer"] == seen["load"]
    assert len(seen["prepare"]) >= 2
    assert len(seen["respond"]) == 1
    assert not seen["infer"] & (seen["prepare"] | seen["respond"])


class Heavy(InStages):
    """Prepares sixteen megabytes a row, and notes how many rows lie prepared."""

    most: ClassVar[int] = 0

    def load(self):
        super().load()
        self.lying = 0
        self.lock = threading.Lock()

    def prepare(self, request):
        with self.lock:
            self.lying += 1
            type(self).most = max(self.most, self.lying)
        return bytearray(16 * 2**20)

    def size(self, prepared):
        return 1

    def infer(self, prepared):
        with self.lock:
            self.lying -= len(prepared)
        return [0.0] * len(prepared)


def test_what_lies_prepared_is_bounded_by_memory(write_rows, tmp_path):
    job = spec(write_rows([1.0] * 200), tmp_path, batch_size=4, compute="local")

    BatchRunner(of(Heavy)).run(job)

    assert Heavy.most <= 256 // 16 + 3 * 4


class Full(InFlight):
    """Answers a row only once as many are under way as may be, or all that are left."""

    most_seen: ClassVar[int] = 0
    rows: ClassVar[int] = 100

    def load(self):
        super().load()
        self.begun = self.under_way = 0
        self.more = asyncio.Event()

    async def predict_async(self, request):
        self.begun += 1
        self.under_way += 1
        type(self).most_seen = max(self.most_seen, self.under_way)
        self.more.set()
        wanted = min(self.rows, int(request.value) + self.max_in_flight)
        async with asyncio.timeout(PATIENCE):
            while self.begun < wanted:
                self.more.clear()
                await self.more.wait()  # in this task: nothing comes between the two
        self.under_way -= 1
        return await super().predict_async(request)


class GoesOn(InStages):
    """Notes when a batch begins, and when it is waited for."""

    log: ClassVar[list[tuple[str, float]]] = []

    def load(self):
        super().load()
        self.log.clear()
        self.prepared = 0.0
        self.later = threading.Condition()

    def prepare(self, request):
        with self.later:
            self.prepared = max(self.prepared, request.value)
            self.later.notify_all()
        return request

    def infer(self, prepared):
        first = prepared[0].value
        with self.later:  # the next batches are there
            assert self.later.wait_for(lambda: self.prepared >= min(first + 12, 199), PATIENCE)
        self.log.append(("begun", first))

        def outputs():
            self.log.append(("ended", first))
            return [2 * r.value for r in prepared]

        return outputs


def test_a_device_that_goes_on_has_its_next_batch_before_the_last_is_waited_for(
    write_rows, tmp_path
):
    values = [float(i) for i in range(200)]
    job = spec(write_rows(values), tmp_path, batch_size=4, compute="local")

    result = BatchRunner(of(GoesOn)).run(job)

    assert [r["value"] for r in read_rows(result.sink)] == [2 * v for v in values]
    log = GoesOn.log
    in_order = [float(i) for i in range(0, 200, 4)]
    for what in ("begun", "ended"):
        assert [first for said, first in log if said == what] == in_order
    at = {event: i for i, event in enumerate(log)}
    ahead = [at["begun", n + 4] < at["ended", n] for n in in_order[:-1]]
    assert sum(ahead) > len(ahead) / 2
    assert all(at["begun", n + 8] > at["ended", n] for n in in_order[:-2])  # one batch, no more
    assert 0 < result.device_busy_fraction <= 1


class FailsTwice(GoesOn):
    """Fails at a row once it is waited for, and at a later one before that."""

    def prepare(self, request):
        super().prepare(request)
        if request.value == 25:
            raise ValueError("can't be prepared")
        return request

    def infer(self, prepared):
        outputs = super().infer(prepared)
        if prepared[0].value != 20:
            return outputs
        with self.later:  # what becomes of the next batch is known before
            self.later.wait(0.5)
        return lambda: 1 / 0


def test_of_two_rows_that_fail_the_first_is_named(write_rows, tmp_path):
    values = [float(i) for i in range(200)]
    job = spec(write_rows(values), tmp_path, batch_size=4, compute="local")

    with pytest.raises(PredictError, match=r"line 21: .*ZeroDivisionError"):
        BatchRunner(of(FailsTwice)).run(job)


class GoesOnAtTimes(InStages):
    """Every second batch is done at once, after a while in which the one before it goes on."""

    def infer(self, prepared):
        outputs = [2 * r.value for r in prepared]
        if prepared[0].value % 8:
            time.sleep(0.02)
            return outputs
        return lambda: outputs


def test_time_in_which_two_batches_were_under_way_counts_once(write_rows, tmp_path):
    values = [float(i) for i in range(200)]
    job = spec(write_rows(values), tmp_path, batch_size=4, compute="local")

    result = BatchRunner(of(GoesOnAtTimes)).run(job)

    assert [r["value"] for r in read_rows(result.sink)] == [2 * v for v in values]
    assert 25 * 0.02 <= result.predict_seconds <= result.inference_seconds


@pytest.mark.parametrize("batch_size", [3, 64])
def test_the_window_is_full_until_the_last_row_across_batches_and_chunks(
    write_rows, tmp_path, batch_size
):
    values = [float(i) for i in range(100)]
    job = spec(write_rows(values), tmp_path, batch_size=batch_size, compute="local")
    # By a name of its own it is loaded anew: a model that this process has counts on.
    model = of(Full, most=10).model_copy(update={"name": f"batches_of_{batch_size}"})
    Full.most_seen = 0

    result = BatchRunner(model).run(job)

    assert [r["value"] for r in read_rows(result.sink)] == [2 * v for v in values]
    assert Full.most_seen == 10
    assert result.in_flight_mean > 1


def test_what_is_reported_is_what_was_measured(write_rows, tmp_path):
    source = write_rows([1.0, 2.0, 3.0] * 50)

    def result(shape: str):
        return BatchRunner(shaped(shape)).run(spec(source, tmp_path, compute="local", resume=False))

    call, stages, flight = map(result, ("call", "stages", "flight"))

    assert (call.device_busy_fraction, call.in_flight_mean, call.padding_fraction) == (None,) * 3
    assert 0 < stages.device_busy_fraction <= 1
    assert stages.in_flight_mean is None
    # Batches of 32 rows of sizes 2, 3 and 4, the last one of 22: each as large as its largest.
    assert stages.padding_fraction == pytest.approx(1 - 3 / 4, abs=0.01)
    assert 0 < flight.device_busy_fraction <= 1
    assert 0 < flight.in_flight_mean <= 8
    assert flight.padding_fraction is None
