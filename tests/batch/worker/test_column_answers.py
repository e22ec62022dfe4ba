"""Answers in columns that don't fit their rows are refused, whatever the model made of these."""

from __future__ import annotations

import numpy as np
import pytest

import sheaf_dagster as sd
from sheaf_dagster import ResponseColumns, request_column
from tests.batch.column_jobs import (
    FORMATS,
    Doubler,
    DoublerInLists,
    assert_same,
    numbers,
    run,
    source,
)
from tests.toys import NumberResponse


class TooShort(Doubler):
    def in_columns(self, requests):
        value = request_column(requests, "value")
        return ResponseColumns(NumberResponse, requests, {"value": value[1:]})


class Backward(Doubler):
    def in_columns(self, requests):
        value = request_column(requests, "value")
        return ResponseColumns(NumberResponse, requests[::-1], {"value": value[::-1]})


class Late(Doubler):
    """Answers the batch before."""

    def in_columns(self, requests):
        before, self.before = getattr(self, "before", requests), requests
        if len(before) != len(requests):
            before = before[: len(requests)]
        return ResponseColumns(NumberResponse, before, {"value": request_column(before, "value")})


class OfOtherIds(Doubler):
    def in_columns(self, requests):
        ids = request_column(requests, "request_id")[::-1]
        return ResponseColumns(
            NumberResponse, requests, {"value": 1.0, "request_id": ids}, copied=["request_id"]
        )


class TooFew(Doubler):
    def in_columns(self, requests):
        return ResponseColumns(NumberResponse, requests[1:], {"value": 1.0})


class NoResponses(Doubler):
    def in_columns(self, requests):
        return request_column(requests, "value")


@pytest.mark.parametrize("on_error", ["record", "fail"])
@pytest.mark.parametrize("sink", FORMATS)
@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    ("cls", "said"),
    [
        (TooShort, r"s 1–8: TooShort, ResponseColumns: column 'value' has 7 values for 8 requests"),
        (Backward, r" 1: Backward answered request .* instead of"),
        (Late, r" [19]: Late answered request .* instead of"),
        (OfOtherIds, r" 1: OfOtherIds answered request .* instead of"),
        (TooFew, r"s 1–8: TooFew.batch_predict returned 7 responses for 8 requests"),
        (NoResponses, r"s 1–8: NoResponses.batch_predict returned ndarray; it must return a list"),
    ],
)
def test_answers_that_dont_fit_their_rows_are_refused(cls, said, suffix, sink, on_error, tmp_path):
    path = source(tmp_path, suffix, numbers(20))

    with pytest.raises(sd.ResponseMismatchError, match=rf"in.{suffix}, (row|line){said}"):
        run(cls, path, tmp_path / f"out.{sink}", on_error=on_error)
    assert not (tmp_path / f"out.{sink}").exists()


class Selected(Doubler):
    """Answers the requests of its own list, in their order."""

    def in_columns(self, requests):
        own = list(requests)
        return ResponseColumns(
            NumberResponse,
            own,
            {"value": 2 * request_column(own, "value"), "batch": request_column(own, "group")},
            copied=["note"],
        )


class Sorted(Doubler):
    """Has the model look at the rows in another order, and puts the answers back."""

    def in_columns(self, requests):
        order = np.argsort(-request_column(requests, "value"))
        answers = Selected.in_columns(self, [requests[int(i)] for i in order])
        back = np.argsort(order)
        return [answers[int(i)] for i in back]


@pytest.mark.parametrize("cls", [Selected, Sorted])
@pytest.mark.parametrize("sink", FORMATS)
def test_requests_in_a_list_of_the_models_own_are_answered_too(cls, sink, tmp_path):
    path = source(tmp_path, "parquet", numbers())

    assert_same((cls, DoublerInLists), path, tmp_path / f"out.{sink}")
