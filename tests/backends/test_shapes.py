"""The three shapes of a backend, told apart by what its class overrides, and called by hand."""

from __future__ import annotations

import asyncio
import threading
from uuid import UUID

import pytest

from sheaf_dagster import ModelBackend, SpecError
from sheaf_dagster.backends.base import close_backend, shape_of
from sheaf_dagster.backends.registry import check_class
from sheaf_dagster.testing import check_backend
from tests.toys import NumberRequest, NumberResponse

REQUESTS = [NumberRequest(request_id=UUID(int=i), model_name="m", value=i) for i in range(1, 8)]


def answer(request: NumberRequest, value: float) -> NumberResponse:
    return NumberResponse(request_id=request.request_id, model_name="m", value=value)


class Number(ModelBackend):
    model_type = "number"

    def load(self) -> None:
        self.factor = 2.0


class InOneCall(Number):
    def batch_predict(self, requests):
        return [answer(r, self.factor * r.value) for r in requests]


class InStages(Number):
    def prepare(self, request):
        return request.value

    def infer(self, prepared):
        return [self.factor * value for value in prepared]

    def respond(self, requests, outputs):
        return [answer(r, value) for r, value in zip(requests, outputs, strict=True)]


class InFlight(Number):
    max_in_flight = 2

    def __init__(self) -> None:
        self.now = self.most = 0
        self.threads: set[int] = set()

    async def predict_async(self, request):
        self.now += 1
        self.most = max(self.most, self.now)
        self.threads.add(threading.get_ident())
        await asyncio.sleep(0)
        self.now -= 1
        return answer(request, self.factor * request.value)


class Halved(InStages):
    def prepare(self, request):
        return request.value / 2


class Negated(InStages):
    def batch_predict(self, requests):
        return [answer(r, -a.value) for r, a in zip(requests, super().batch_predict(requests))]


class NegatedOneByOne(InFlight):
    def predict(self, request):
        return answer(request, -super().predict(request).value)


class WithASizeOfItsOwn(InOneCall):
    size = 224

    def prepare(self, picture, side):
        return picture


class Unanswered(Number):
    def infer(self, prepared):
        return prepared


@pytest.mark.parametrize(
    ("cls", "shape", "factor"),
    [
        (InOneCall, "call", 2),
        (WithASizeOfItsOwn, "call", 2),
        (InStages, "stages", 2),
        (Halved, "stages", 1),
        (Negated, "call", -2),
        (InFlight, "flight", 2),
        (NegatedOneByOne, "call", -2),
    ],
)
def test_the_most_derived_class_decides_and_all_shapes_answer_when_called(cls, shape, factor):
    backend = cls()
    backend.load()

    together = backend.batch_predict(REQUESTS)
    alone = [backend.predict(r) for r in REQUESTS]
    none = backend.batch_predict([])
    close_backend(backend)

    assert shape_of(backend) == shape
    assert together == alone == [answer(r, factor * r.value) for r in REQUESTS]
    assert none == []


@pytest.mark.parametrize("cls", [InOneCall, InStages, InFlight])
def test_each_shape_keeps_the_rules(cls):
    check_backend(cls, REQUESTS)


def test_rows_in_flight_are_bounded_and_share_one_loop_also_inside_of_another_one():
    backend = InFlight()
    backend.load()

    async def in_a_notebook():
        return backend.batch_predict(REQUESTS)

    answers = asyncio.run(in_a_notebook())
    backend.batch_predict(REQUESTS)
    close_backend(backend)

    assert [a.value for a in answers] == [2 * r.value for r in REQUESTS]
    assert backend.most == 2
    assert len(backend.threads) == 1


def test_of_several_rows_that_fail_in_flight_the_first_one_is_told():
    class Failing(InFlight):
        async def predict_async(self, request):
            for _ in range(int(10 - request.value)):
                await asyncio.sleep(0)  # the later a row, the sooner it fails
            raise ValueError(f"row {request.value:g}")

    backend = Failing()

    with pytest.raises(ValueError, match="row 1"):
        backend.batch_predict(REQUESTS)
    close_backend(backend)


def test_run_async_from_a_coroutine_is_refused_where_it_would_wait_for_ever():
    class Nested(InFlight):
        async def predict_async(self, request):
            return self.run_async(asyncio.sleep(0))

    backend = Nested()

    with pytest.raises(RuntimeError, match="await it there instead"):
        backend.batch_predict(REQUESTS[:1])
    close_backend(backend)


def test_stages_without_the_last_are_refused_where_they_are_named():
    with pytest.raises(SpecError, match=r"Unanswered has infer\(\) and no respond\(\)"):
        check_class(Unanswered, "mine")
