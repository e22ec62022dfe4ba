"""What a backend must have, and what it is given."""

from __future__ import annotations

from uuid import UUID

import pytest

from sheaf_dagster import ModelBackend, SpecError, register_backend
from sheaf_dagster.backends import resolve_backend
from sheaf_dagster.testing import check_backend
from tests.toys import NumberRequest, NumberResponse

REQUESTS = [NumberRequest(request_id=UUID(int=i), model_name="m", value=i) for i in (1, 2, 3)]


def answer(request: NumberRequest) -> NumberResponse:
    return NumberResponse(request_id=request.request_id, model_name="m", value=-request.value)


class Loaded(ModelBackend):
    """Answers nothing."""

    model_type = "number"

    def load(self) -> None:
        pass


class OneByOne(Loaded):
    def predict(self, request):
        return answer(request)


class InBatches(Loaded):
    def batch_predict(self, requests):
        return [answer(r) for r in requests]


class OfNoType(OneByOne):
    model_type = ""


@pytest.mark.parametrize("cls", [OneByOne, InBatches])
def test_each_of_the_two_methods_is_made_from_the_other(cls):
    backend = cls()

    together = backend.batch_predict(REQUESTS)
    alone = [backend.predict(r) for r in REQUESTS]

    assert together == alone == [answer(r) for r in REQUESTS]
    assert backend.batch_predict([]) == []


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (Loaded, r"class Loaded answers nothing; override predict\(\), or batch_predict\(\)"),
        (OfNoType, "class OfNoType must set the class attribute model_type"),
    ],
)
def test_a_class_that_can_be_no_backend_is_refused_wherever_it_is_named(cls, message):
    with pytest.raises(SpecError, match=message):
        resolve_backend(f"{__name__}:{cls.__name__}")
    with pytest.raises(SpecError, match=message):
        register_backend("of-no-use")(cls)
    with pytest.raises(SpecError, match=message):
        check_backend(cls, REQUESTS)


def test_an_object_that_answers_nothing_says_so_when_it_is_asked():
    backend = Loaded()

    with pytest.raises(SpecError, match="class Loaded answers nothing"):
        backend.predict(REQUESTS[0])
    with pytest.raises(SpecError, match="class Loaded answers nothing"):
        backend.batch_predict(REQUESTS)


def test_a_method_may_belong_to_the_object_alone():
    backend = Loaded()
    backend.batch_predict = lambda requests: [answer(r) for r in requests]

    assert backend.predict(REQUESTS[0]) == answer(REQUESTS[0])
