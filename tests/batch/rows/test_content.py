"""Which lines have the same content."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from sheaf_dagster.batch.rows.content import content_digest
from sheaf_dagster.contracts import OpenAIBatchRequest
from tests.toys import NumberRequest

digest = content_digest(NumberRequest)

SAME = [
    ('{"a":1,"b":[1,2.50,{"x":"é","y":null}]}', ' { "b" : [1, 2.50,\t{"y":null, "x":"\\u00e9"}] , "a":1}\r'),
    ('{"a":"x","request_id":"1"}', '{"a":"x"}'),
    ('{"a":"x","request\\u005fid":"1"}', '{"\\u0061":"\\u0078"}'),
    ('{"a":[[1],[]]}', '{"a": [ [1 ], [ ]]}'),
    ('{"a":NaN,"b":1}', '{"b":1, "a":NaN}'),
    ('{"a":"\\ud800","b":1}', '{"b": 1,"a":"\\ud800"}'),
    ('{"a":1,"a":2}', '{"a":2}'),
    ('{"model_type":"number","model_name":"m","value":1}', '{"value":1.0,"model_name":"m","model_type":"number"}'),
    ("no JSON", " no JSON\r"),
]  # fmt: skip

DIFFERENT = [
    ('{"a":1}', '{"a":1.0}'),
    ('{"a":1}', '{"a":"1"}'),
    ('{"a":[1,2]}', '{"a":[12]}'),
    ('{"a":"x y"}', '{"a":"xy"}'),
    ('{"a":["x y"]}', '{"a":["xy"]}'),
    ('{"a":{"request_id":"1"}}', '{"a":{}}'),
    ('{"a":12345678901234567890123}', '{"a":12345678901234567890124}'),
    ('{"a":[{"b":12345678901234567890123}]}', '{"a":[{"b":12345678901234567890124}]}'),
    ('{"a":NaN}', '{"a":null}'),
    ('{"a":[{"b":1e400}]}', '{"a":[{"b":1e401}]}'),
    ('{"a":[{"b":12345678901234567890}]}', '{"a":[{"b":{"\\u0000":"12345678901234567890"}}]}'),
    ('{"a":1,"b":2}', '{"a":2,"b":1}'),
    ('{"a":null}', "{}"),
    ("[1]", "1"),
    ("no JSON", "no  JSON"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_it_is_the_same_however_it_is_written(one, other):
    assert digest(one.encode()) == digest(other.encode())


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_it_is_another_where_a_value_is(one, other):
    assert digest(one.encode()) != digest(other.encode())


def test_digits_beyond_a_float_count_where_the_contract_reads_them():
    class Priced(BaseModel):
        price: Decimal

    one, other = (b'{"price":0.12345678901234567%d}' % last for last in (1, 2))

    assert digest(one) == digest(other)  # to a float both are the same
    assert content_digest(Priced)(one) != content_digest(Priced)(other)
    assert content_digest(Priced)(one) == content_digest(Priced)(one.replace(b":", b" : "))


class Objects(BaseModel):
    """Takes objects as they are."""

    inner: dict[str, Any] = {}


class Anything(BaseModel, extra="allow"):
    """Keeps what it doesn't know."""


@pytest.mark.parametrize("contract", [Objects, Anything, OpenAIBatchRequest])
@pytest.mark.parametrize("more", [1, 12345678901234567890123])
def test_an_order_that_a_model_may_see_counts(contract, more):
    one = {"inner": {"x": 1, "y": {"a": 1, "b": [{"c": 1, "d": 2}]}}, "more": more}
    inside = {"inner": {"x": 1, "y": {"a": 1, "b": [{"d": 2, "c": 1}]}}, "more": more}
    outside = dict(reversed(one.items()))

    def of(row: dict, digest=content_digest(contract)) -> bytes:
        return digest(json.dumps(row).encode())

    assert of(one) == of(outside) != of(inside)
    assert of(one, digest) == of(inside, digest)


def test_who_asks_is_part_of_the_whole():
    lines = [b'{"custom_id":"a","url":"u"}', b'{"url":"u","custom_id":"b"}']

    assert len({*map(content_digest(OpenAIBatchRequest), lines)}) == 1
    assert len({*map(content_digest(OpenAIBatchRequest, whole=True), lines)}) == 2


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(
    row=st.dictionaries(st.text().filter(lambda name: name != "request_id"), JSON, max_size=4),
    other=st.dictionaries(st.text(), JSON, max_size=4),
)
def test_spelling_never_matters_and_values_always_do(row, other):
    text = json.dumps(row).encode()
    turned = dict(reversed(row.items()), request_id="x")
    respelled = json.dumps(turned, ensure_ascii=False, indent=1).encode("utf-8", "surrogatepass")

    assert digest(text) == digest(respelled)
    same = json.dumps(row, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (digest(text) == digest(json.dumps(other).encode())) == same
