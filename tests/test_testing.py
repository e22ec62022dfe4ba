"""The conformance suite: good backends pass it, and each broken one is caught by its rule."""

from __future__ import annotations

import itertools
import math
import random
from uuid import UUID

import numpy as np
import pytest

from sheaf_dagster import ModelBackend, ResponseColumns, request_column
from sheaf_dagster.contracts import TimeSeriesRequest
from sheaf_dagster.testing import RULES, ConformanceSuite, check_backend, poison_of
from sheaf_dagster.testing.as_columns import columns_of
from tests.toys import NumberRequest, NumberResponse

REQUESTS = [
    NumberRequest(request_id=UUID(int=i + 1), model_name="m", value=value)
    for i, value in enumerate([1.5, -2.0, 7.25])
]
STATE: dict[str, int] = {}
COUNTER = itertools.count()


def answer(request: NumberRequest, value: float) -> NumberResponse:
    return NumberResponse(request_id=request.request_id, model_name=request.model_name, value=value)


class Good(ModelBackend):
    """Ten lines that keep every rule."""

    model_type = "number"

    def __init__(self, factor: float = 2.0) -> None:
        self.factor = factor

    def load(self) -> None:
        self.ready = True

    def predict(self, request):
        return answer(request, request.value * self.factor)


class NoEmptyBatch(Good):
    def batch_predict(self, requests):
        mean = sum(r.value for r in requests) / len(requests)
        return [answer(r, r.value - mean + mean) for r in requests]


class DropsLast(Good):
    def batch_predict(self, requests):
        return [self.predict(r) for r in requests][: max(1, len(requests) - 1)]


class Sorts(Good):
    def batch_predict(self, requests):
        return [self.predict(r) for r in sorted(requests, key=lambda r: r.value)]


class OwnIds(Good):
    def predict(self, request):
        return answer(request, request.value).model_copy(update={"request_id": UUID(int=99)})


class Dictionaries(Good):
    def predict(self, request):
        return super().predict(request).model_dump()


class SeesBatchMates(Good):
    def batch_predict(self, requests):
        total = sum(r.value for r in requests)
        return [answer(r, r.value / (total or 1.0)) for r in requests]


class Steady(Good):
    """Declares what holds for it."""

    batch_invariant = True


class LastBits(SeesBatchMates):
    """Declares what doesn't: its last bits are its mates', far within the tolerance."""

    batch_invariant = True

    def batch_predict(self, requests):
        return [answer(r, r.value * (1 + 1e-15 * len(requests))) for r in requests]


class OrderMatters(Steady):
    def batch_predict(self, requests):
        first = len(requests) > 1 and requests[0].value
        return [answer(r, r.value + (1e-9 if first == 7.25 else 0)) for r in requests]


class SortsColumns(Good):
    takes_columns = True

    def batch_predict(self, requests):
        if isinstance(requests, list):
            return super().batch_predict(requests)
        values = np.sort(request_column(requests, "value"))
        return ResponseColumns(NumberResponse, requests, {"value": values * self.factor})


class TwoModels(Good):
    def batch_predict(self, requests):
        return [answer(r, r.value * 3) for r in requests]


class Remembers(Good):
    def load(self) -> None:
        self.seen = 0

    def predict(self, request):
        self.seen += 1
        return answer(request, self.seen * 1e-6)


class Unseeded(Good):
    def load(self) -> None:
        self.factor = random.random()


class LoadsAgain(Good):
    def batch_predict(self, requests):
        self.load()
        return super().batch_predict(requests)


class BadWarmUp(Good):
    def warmup_requests(self):
        return [object()]


class ChangesRequests(Good):
    def predict(self, request):
        response = super().predict(request)
        request.value = 0.0 if request.note == "changed" else request.value
        request.note = "changed"
        return response


class Poisoned(Good):
    """Adds what is far beyond float32 of one row to its mates' answers, and takes infinity alone."""

    def batch_predict(self, requests):
        if any(math.isinf(r.value) for r in requests):
            raise ValueError("infinite")
        answers = super().batch_predict(requests)
        if max((r.value for r in requests), default=0) > 1e38:
            for answer in answers:
                answer.value = math.inf
        return answers


class TwoShapes(Good):
    """Has other stages than ``batch_predict``."""

    def infer(self, prepared):
        return [-r.value for r in prepared]

    def respond(self, requests, outputs):
        return [
            NumberResponse(request_id=r.request_id, model_name=r.model_name, value=v)
            for r, v in zip(requests, outputs, strict=True)
        ]

    def batch_predict(self, requests):
        return [self.predict(r) for r in requests]


class Unsteady(Good):
    @classmethod
    def identify(cls, **_):
        return f"version {next(COUNTER)}"


class NeedsTheDriver(Good):
    def load(self) -> None:
        self.factor = STATE["factor"]


def test_a_backend_that_keeps_the_rules_passes():
    check_backend(Good, REQUESTS)


def test_the_last_bits_count_only_where_a_backend_says_so():
    check_backend(Steady, REQUESTS, rules=["batch_invariant"])
    check_backend(LastBits, REQUESTS, rules=["single_row"])
    check_backend(SeesBatchMates, REQUESTS, rules=["batch_invariant"])


def test_an_instance_passes_too():
    check_backend(Good(factor=3.0), REQUESTS)


@pytest.mark.parametrize(
    ("backend", "rule", "message"),
    [
        (NoEmptyBatch, "empty_batch", "ZeroDivisionError"),
        (DropsLast, "count", "2 requests got 1 responses; each must get exactly one"),
        (Sorts, "order", "response 0 answers request 0+-.*02 instead of 0+-.*01"),
        (OwnIds, "order", "copy each id"),
        (Dictionaries, "json", "response 0 is a dict; it must be a pydantic model"),
        (SeesBatchMates, "single_row", r"request 0 gets another answer .* value: 1.0 and 0.22"),
        (LastBits, "batch_invariant", r"request 0 gets other bytes alone than in a batch, .*1\.5"),
        (OrderMatters, "batch_invariant", "request 2 gets other bytes in another order"),
        (
            Poisoned,
            "poison",
            r"request 0 .* beside NumberRequest.*value=1e\+39.*: value: 3.0 and inf",
        ),
        (
            TwoShapes,
            "shapes",
            r"from batch_predict\(\) than from the .* worker calls: value: 3.0 and -1.5",
        ),
        (SortsColumns, "columns", "request 0 .* when it is in columns: value: 3.0 and -4.0"),
        (TwoModels, "predict", "value: 3.0 and 4.5"),
        (Remembers, "repeatable", "another answer when it runs again: response 0, value:"),
        (Unseeded, "seeded", "seed what is random"),
        (LoadsAgain, "load_once", r"load\(\) ran 3 times"),
        (BadWarmUp, "warm_up", "AttributeError: 'object' object has no attribute 'value'"),
        (ChangesRequests, "requests_untouched", "request 0 was changed .*: note: None and 'ch"),
        (Unsteady, "identity", r"identify\(\) returned 'version \d+', then 'version \d+'"),
        (NeedsTheDriver, "travels", "don't work in a fresh worker process: KeyError: 'factor'"),
    ],
)
def test_each_rule_catches_what_breaks_it(backend, rule, message):
    STATE["factor"] = 2
    requests = [r.model_copy() for r in REQUESTS]

    with pytest.raises(AssertionError, match=rf"{rule}: (?s:.*){message}"):
        check_backend(backend, requests, rules=[rule])


def test_only_the_broken_rules_are_named():
    quick = [rule for rule in RULES if rule != "travels"]
    with pytest.raises(AssertionError) as e:
        check_backend(Sorts, REQUESTS, rules=quick)
    assert str(e.value).startswith(f"Sorts breaks 4 of {len(quick)} rules:\n  order: ")
    assert "\n  single_row: " in str(e.value)
    assert "\n  poison: " in str(e.value)
    assert "\n  predict: " in str(e.value)


def test_poison_is_made_of_a_request_as_far_as_the_contract_takes_it():
    row = TimeSeriesRequest(model_name="m", history=[1.0, 2.0, 3.0], horizon=2, frequency="1d")

    histories = [r.history for r in poison_of(row) if r.history != row.history]

    assert [1.0, 1e39, 3.0] in histories
    assert [1.0, math.inf, 3.0] in histories
    assert 120 in map(len, histories)


def test_poison_of_ones_own_takes_its_place():
    mate = REQUESTS[0].model_copy(update={"value": 2e38})

    check_backend(Poisoned, REQUESTS, poison=[], rules=["poison"])
    with pytest.raises(AssertionError, match="poison: request 0"):
        check_backend(Poisoned, REQUESTS, poison=[mate], rules=["poison"])


def test_rows_that_a_worker_would_make_are_not_tried_in_columns():
    assert columns_of([NumberRequest(model_name="m", value=math.nan)] * 2) is None

    series = {"model_name": "m", "horizon": 2, "frequency": "1d"}
    rows = [TimeSeriesRequest(**series, history=h) for h in ([1.0, 2.0], [[1.0, 2.0], [3.0, 4.0]])]
    assert columns_of(rows) is None, "no table holds both"
    assert [*columns_of(rows[:1])] == rows[:1]
    assert columns_of(rows[:1]).column("history").tolist() == [[1.0, 2.0]]


def test_arguments_must_be_json_to_travel():
    with pytest.raises(AssertionError, match="travels: backend_kwargs must hold JSON values only"):
        check_backend(Good, REQUESTS, backend_kwargs={"factor": 2j}, rules=["travels"])


def test_a_class_that_no_module_holds_travels_whole():
    class Local(Good):
        pass

    check_backend(Local, REQUESTS, backend_kwargs={"factor": 4}, rules=["travels"])


@pytest.fixture(scope="module")
def suite():
    with ConformanceSuite(Good, REQUESTS) as suite:
        yield suite
    assert suite.loads == 1


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "travels"])
def test_rules_can_be_tests_of_their_own(suite, rule):
    suite.check(rule)


def test_an_unknown_rule_and_too_few_requests_are_refused(suite):
    with pytest.raises(ValueError, match="no rule 'speed'; there are: empty_batch, count"):
        suite.check("speed")
    with pytest.raises(ValueError, match="at least two requests"):
        check_backend(Good, REQUESTS[:1])
