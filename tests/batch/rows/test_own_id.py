"""Whether kept answers have the ids of their rows, seen without reading these."""

from __future__ import annotations

import pytest

from sheaf_dagster.batch.rows.own_id import have_own_ids, with_own_id
from sheaf_dagster.batch.rows.requests import RowContract
from sheaf_dagster.contracts.registry import contract_for
from sheaf_dagster.contracts.time_series import TimeSeriesRequest, TimeSeriesResponse

A, B = (f"00000000-0000-4000-8000-{n:012}" for n in (1, 2))
FIELDS = b'"model_type": "time_series", "model_name": "m", "history": [1.0], "horizon": 1, "frequency": "1h"'
ANSWER = b'{"request_id":"%b","model_name":"m","mean":[1.0],"horizon":1,"frequency":"1h"}'


def line(start, end=b""):
    return b"{%b, %b%b}" % (start, FIELDS, end)


def have(row, answer):
    return have_own_ids([row], [answer], TimeSeriesRequest, TimeSeriesResponse)


@pytest.mark.parametrize(
    "row", [line(b'"request_id": "%b"' % A.encode()), line(b'"request_id":"%b"' % A.encode())]
)
def test_an_id_that_both_begin_with_is_seen(row):
    assert have(row, ANSWER % A.encode())
    assert not have(row, ANSWER % B.encode())


ROWS = {
    "no id": line(b'"name": "n"'),
    "null": line(b'"request_id": null'),
    "another id at the end": line(
        b'"request_id": "%b"' % A.encode(), b', "request_id": "%b"' % B.encode()
    ),
    "another id, its name in numbers": line(
        b'"request_id": "%b"' % A.encode(), b', "request\\u005fid": "%b"' % B.encode()
    ),
    "written otherwise": line(b'"request_id": "%b"' % A.upper().replace("-", "").encode()),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_a_row_that_may_have_another_id_is_read(row):
    assert not have(row, ANSWER % A.encode())


def test_what_is_seen_is_what_reading_the_rows_gives():
    """Whatever stands at the beginning of a row and of its answer."""
    contract = RowContract.of(contract_for("time_series"))
    for row in (line(b'"request_id": "%b"' % id.encode()) for id in (A, B)):
        for answer in (ANSWER % A.encode(), ANSWER % B.encode()):
            (named,) = contract.named([(1, row)], 0)
            own = with_own_id(answer, named.request, TimeSeriesRequest, TimeSeriesResponse)
            assert have(row, answer) == (own == answer)


def test_the_ids_of_other_contracts_are_read():
    chat = contract_for("openai_batch")
    row = b'{"custom_id": "a", "body": {}}'
    assert not have_own_ids([row], [row], chat.request, chat.response)
