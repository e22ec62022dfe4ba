"""The fast codec reads what the general one reads, and writes what it writes, or hands it back."""

from __future__ import annotations

import json
from uuid import UUID, uuid4

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import (
    BaseModel,
    ValidationError,
)

from sheaf_dagster.batch.rows.fast import fast_codec
from sheaf_dagster.batch.rows.general import GeneralCodec
from sheaf_dagster.contracts import TimeSeriesRequest
from tests.batch.rows.contracts import CONTRACTS, GOOD, Everything, line_of

NUMBERS = [
    "0", "-0", "-0.0", "1", "2", "01", "1.", ".5", "+1", "0.99", "1e5", "1E+2", "1e400", "-1e400", "1e-400",
    "5e-324", "2.4703282292062327e-324", "2.2250738585072011e-308", "9007199254740993", "9223372036854775808",
    "-9223372036854775809", "18446744073709551616", "1" * 25, "1" * 400, "0." + "3" * 60, "NaN", "-Infinity",
    "1.7976931348623157e308", "1.7976931348623159e308", "0e999999999999", "1e", "-", "0x1", "1_0",
]  # fmt: skip
WORDS = [
    '""', '"a"', '"ab"', '"abcd"', '"red"', '"everything"', '"time_series"', '"1h"', '"mean"', '"1"', '"1.5"',
    '"true"', '"\\u0000"', '"\\ud800"', '"\\ud83d\\ude00"', '"\\udc00a"', '"é"', '"\U0001f600\U0001f600"', '"\t"',
    '"\x01"', '"\\x"', '"a', "'a'", '"\u2028"', '"2013-03-01"', '"1e3"', '" 1 "',
    *[f'"{u}"' for u in (UUID(int=7), str(UUID(int=10)).upper(), UUID(int=9).hex, f"{{{UUID(int=8)}}}",
                         f"urn:uuid:{UUID(int=6)}", str(UUID(int=5))[:-1])],
]  # fmt: skip
OTHERS = ["true", "false", "null", "nul", "[]", "{}", "[1,2.5]", "[[1],[2]]", "[[]]", '["1"]', "[1,null]",
          "[1,]", "[,1]", '{"a":[1]}', '{"a":[1],"a":[2]}', '{"a":1,}', "[1 2]", "[true]", "[[1,2],[3]]",
          "[" * 300 + "]" * 300, "[NaN]", '{"\\u0061":[0]}', "[1, [2]]"]  # fmt: skip
TOKENS = st.one_of(
    st.sampled_from([*NUMBERS, *WORDS, *OTHERS]),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.integers().map(str),
    st.decimals(allow_nan=False, allow_infinity=False).map(lambda d: f"{d:f}"[:400]),
    st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=4).map(json.dumps),
    st.text(max_size=4).map(json.dumps),
    st.text(alphabet=st.characters(codec="utf-8"), max_size=4).map(
        lambda t: json.dumps(t, ensure_ascii=False)
    ),
)


@st.composite
def lines(draw: st.DrawFn, contract: type[BaseModel]) -> bytes:
    """Rows, nearly rows, and what is left of rows that lost or won a byte."""
    names = st.sampled_from([*contract.model_fields, "unknown"])
    changed = draw(st.lists(st.tuples(names, TOKENS), max_size=5))
    fields = {**GOOD[contract], **dict(changed)}
    pairs = [*fields.items(), *draw(st.lists(st.tuples(names, TOKENS), max_size=1))]
    line = line_of(draw(st.permutations(pairs)), draw(st.sampled_from(["", " ", "\t", "\r"])))
    if draw(st.integers(0, 3)):
        return line
    at = draw(st.integers(0, len(line) - 1))
    new = draw(
        st.sampled_from([b"", b" ", b",", b"}", b'"', b"\\", b"\x00", b"\xff", b"\xe9", b"1"])
    )
    return line[:at] + new + line[at + draw(st.integers(0, 1)) :]


def content(request: BaseModel) -> list[str]:
    """All that a request holds, in order, to the last bit; fresh ids aside."""
    given = request.__pydantic_fields_set__
    own = {k: v for k, v in request.__dict__.items() if k != "request_id" or k in given}
    rest = (given, request.__pydantic_extra__, request.__pydantic_private__, list(request.__dict__))
    return [type(request).__name__, repr(sorted(given)), repr(own), repr(rest[1:])]


def agree(contract: type[BaseModel], line: bytes) -> bool:
    """Whether a short cut was taken; fails where it leads elsewhere than pydantic."""
    fast = fast_codec(contract)
    given = fast.fields(line)
    try:
        expected = GeneralCodec(contract).read(line)
    except (ValidationError, RecursionError):
        assert given is None, line
        return False
    read = fast.read(line)
    if given is not None:
        assert content(fast.read(line, given)) == content(expected), line
    if read is not None:
        assert content(read) == content(expected), line
        assert read.model_copy() == read
    assert read is not None or given is None
    return read is not None


@pytest.mark.parametrize("contract", CONTRACTS)
def test_it_agrees_with_pydantic_on_any_line(contract):
    taken = [0, 0]

    @settings(max_examples=300)
    @given(lines(contract))
    def holds(line):
        taken[agree(contract, line)] += 1

    holds()
    assert min(taken) > 5  # both ways were gone


@pytest.mark.parametrize("contract", CONTRACTS)
def test_lines_are_taken_together_only_where_each_would_be(contract):
    taken = [0, 0]

    @settings(max_examples=150)
    @given(lines(contract), st.integers(0, 3), st.booleans())
    def holds(line, place, is_named):
        named = {"request_id": f'"{UUID(int=place)}"'} if is_named else {}
        fast = fast_codec(contract)
        some = [line_of([*GOOD[contract].items(), *with_id(i)]) for i in range(3)]
        some.insert(place, line_of([*GOOD[contract].items(), *named.items()]) if place else line)
        each = [(fast.fields(one) or {}).get("request_id") for one in some]
        together = fast.accepts_all(some, np.frombuffer(b"".join(some), np.uint8))
        assert together is None or together == each, some
        assert together is None or all(type(one) is UUID for one in each), some
        taken[together is not None] += 1

    holds()
    assert taken[0] > 5
    # Where a validator must see each row, none is ever taken.
    one = fast_codec(contract).fields(line_of([*GOOD[contract].items(), *with_id(1)]))
    assert (taken[1] > 5) is (one is not None)


def with_id(number: int) -> list[tuple[str, str]]:
    return [("request_id", f'"{UUID(int=number)}"')]


@pytest.mark.parametrize(
    ("rest", "is_taken"),
    [
        (b"", True),
        (b',"horizon":3', False),  # stands twice
        (b',"horzon":3', False),  # unknown
        (b',"model_type":"time_series"', True),
        (b',"feature_ref":null', True),
        (b',"num_samples":"a:b"', False),
    ],
)
def test_one_line_with_a_name_too_many_is_found_among_others(rest, is_taken):
    lines = [line_of([*GOOD[TimeSeriesRequest].items(), *with_id(i)]) + b"\n" for i in range(64)]
    lines[40] = lines[40].replace(b"}\n", rest + b"}\n")

    ids = fast_codec(TimeSeriesRequest).accepts_all(lines, np.frombuffer(b"".join(lines), np.uint8))

    assert ids == ([UUID(int=i) for i in range(64)] if is_taken else None)


@settings(max_examples=500)
@given(
    st.one_of(
        st.floats(allow_nan=False, allow_infinity=False).map(repr),
        st.from_regex(r"-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,3})?", fullmatch=True),
    )
)  # fmt: skip
@example("9007199254740993.00000000000000000000000000000001")
@example("1.00000000000000011102230246251565404236316680908203125")
@example(
    "179769313486231580793728971405303415079934132710037826936173778980444968292764750946649.0"
)
def test_numbers_are_the_same_to_the_last_bit(text):
    line = line_of(
        [("whole", "1"), ("model_name", '"m"'), ("number", text), ("numbers", f"[{text}]")]
    )

    agree(Everything, line)


@pytest.mark.parametrize("contract", CONTRACTS)
def test_plain_rows_take_it(contract):
    assert agree(contract, line_of(list(GOOD[contract].items())))


def test_all_kinds_at_once():
    fields = {
        "request_id": f'"{uuid4()}"', "model_type": '"everything"', "model_name": '"m"', "whole": "-7",
        "number": "3", "share": "0.25", "small": "-4", "word": '"wört"', "short": '"\U0001f600ab"', "yes": "false",
        "colour": '"blue"', "level": "2", "kind": '"b"', "digit": "2", "either": "1.0", "label": "true",
        "numbers": "[1,2.5]", "few": "[1]", "table": '{"a":[1],"b":[]}', "nested": "[]",
        "id": f'"{uuid4()}"', "when": "null",
    }  # fmt: skip

    assert agree(Everything, line_of(list(fields.items())))
