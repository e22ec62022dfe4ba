"""Errors that cross processes arrive as what they were."""

from __future__ import annotations

import inspect
import json
import pickle

import pytest

import sheaf_dagster as sd
from sheaf_dagster import errors
from sheaf_dagster.batch.messages import ErrorMessage, RemoteError
from sheaf_dagster.batch.results import ValidationReport, Violation

OURS = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, sd.SheafError)]

REPORT = ValidationReport(
    source="in.jsonl",
    rows=7,
    source_digest="sha256:00",
    total_violations=1,
    violations=[Violation(line=3, field="value", message="is not a number", excerpt="'x'")],
)


class QuotaError(sd.PredictError):
    """A user's own, with a constructor and attributes of its own."""

    retryable = True

    def __init__(self, tenant: str, seconds: float) -> None:
        super().__init__(f"{tenant} must wait for {seconds:g} s")
        self.tenant = tenant
        self.wait = {"seconds": seconds}
        self.connection = object()


def made(kind: type[sd.SheafError]) -> sd.SheafError:
    if issubclass(kind, sd.InputValidationError):
        return kind("in.jsonl: 1 of 7 rows is invalid", REPORT)
    return kind("in.jsonl, line 3: it failed; look at it")


def travelled(error: BaseException, *place: str) -> Exception:
    """As a worker's errors reach the driver, and a Ray job's its step: over pickle and JSON."""
    message = ErrorMessage.of(error, *place)
    there = pickle.loads(pickle.dumps(message.to_dict()))
    return ErrorMessage.from_dict(json.loads(json.dumps(there))).rebuilt()


@pytest.mark.parametrize("kind", OURS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("place", [(), ("in.jsonl",)], ids=["of a step", "of a chunk"])
def test_every_error_of_ours_arrives_as_it_was(kind, place):
    error = made(kind)

    arrived = travelled(error, *place)

    assert type(arrived) is kind
    assert str(arrived) == str(error)
    assert vars(arrived) == vars(error)
    assert arrived.retryable is error.retryable


@pytest.mark.parametrize("retryable", [True, False])
def test_what_an_error_says_of_itself_goes_before_what_its_class_says(retryable):
    error = sd.SinkError("out.jsonl can't be written")
    error.retryable = retryable
    assert travelled(error).retryable is retryable


def test_a_users_own_error_keeps_its_class_and_what_json_can_say_of_it():
    arrived = travelled(QuotaError("blue", 2.5), "in.jsonl")

    assert type(arrived) is QuotaError
    assert (arrived.tenant, arrived.wait) == ("blue", {"seconds": 2.5})
    assert str(arrived) == "blue must wait for 2.5 s"
    assert arrived.retryable
    assert not hasattr(arrived, "connection")


def test_a_class_that_is_not_there_gives_way_to_the_nearest_that_is():
    class Local(QuotaError):
        pass

    arrived = travelled(Local("blue", 2.5))

    assert type(arrived) is QuotaError
    assert arrived.tenant == "blue"


def test_a_class_in_a_module_that_can_not_be_imported_gives_way_too():
    away = type("Away", (sd.BackendLoadError,), {"__module__": "not_on_this_machine"})

    arrived = travelled(away("the weights are gone"))

    assert type(arrived) is sd.BackendLoadError
    assert str(arrived) == "the weights are gone"


def test_an_error_that_is_not_ours_is_the_models_where_it_met_rows():
    arrived = travelled(ZeroDivisionError("by zero"), "in.jsonl")

    assert type(arrived) is sd.BackendError
    assert str(arrived) == "in.jsonl: ZeroDivisionError: by zero"
    assert "ZeroDivisionError" in str(arrived.__cause__)


def test_an_error_that_is_not_ours_stays_none_of_ours_elsewhere():
    arrived = travelled(ZeroDivisionError("by zero"))

    assert type(arrived) is RemoteError
    assert str(arrived) == "ZeroDivisionError: by zero"


def test_what_is_named_as_a_class_and_is_none_is_not_called():
    message = ErrorMessage(("os:getcwd", "builtins:KeyboardInterrupt"), "in.jsonl: it failed")
    assert type(message.rebuilt()) is RemoteError
