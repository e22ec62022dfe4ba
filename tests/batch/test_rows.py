"""From responses to lines: a batch at a time, by the rule for one."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ConfigDict, Field, PlainSerializer, field_serializer

from sheaf_dagster import BaseResponse
from sheaf_dagster.batch.rows import response_lines

WORDS = st.sampled_from(["", "null", "NaN", "Infinity", "NIl", '":null,"', "ünï\n\u2028", "a" * 50])
NUMBERS = st.one_of(
    st.floats(), st.sampled_from([math.nan, math.inf, -math.inf]), st.integers(-9, 9)
)
VALUES = st.recursive(
    st.one_of(st.none(), NUMBERS, WORDS, st.booleans()),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(WORDS, inner, max_size=3)),
    max_leaves=8,
)


class Plain(BaseResponse):
    """As most contracts: numbers, and fields that may be left out."""

    model_type: str = "any"
    value: Any
    note: str | None = None
    other: Any = None


class Open(Plain):
    """Keeps fields that it doesn't know."""

    model_config = ConfigDict(extra="allow", frozen=True)


class Constants(Plain):
    """Has pydantic write NaN and Infinity."""

    model_config = ConfigDict(ser_json_inf_nan="constants")


class Array(Plain):
    """Holds an array, which no ``==`` may touch."""

    array: Any = None

    @field_serializer("array")
    def _list(self, array: Any) -> Any:
        return None if array is None else array.tolist()


@st.composite
def responses(draw) -> Plain:
    kind = draw(st.sampled_from([Plain, Open, Constants, Array]))
    fields = {
        "request_id": UUID(int=draw(st.integers(0, 3))),
        "model_name": draw(WORDS),
        "value": draw(VALUES),
        "note": draw(st.none() | WORDS),
        "other": draw(VALUES),
    }
    if kind is Open:
        fields["extra"] = draw(VALUES)
    if kind is Array:
        numbers = draw(st.none() | st.lists(NUMBERS, min_size=2, max_size=4))
        fields["array"] = None if numbers is None else np.array(numbers, dtype=float)
    return kind(**fields)


def finite(value: Any) -> tuple[Any, int]:
    """A value with null for what JSON has no number for, and how many of those there were."""
    if isinstance(value, float) and not math.isfinite(value):
        return None, 1
    if isinstance(value, dict):
        pairs = {k: finite(v) for k, v in value.items()}
        return {k: v for k, (v, _) in pairs.items()}, sum(n for _, n in pairs.values())
    if isinstance(value, list):
        items = [finite(v) for v in value]
        return [v for v, _ in items], sum(n for _, n in items)
    return value, 0


def strictly(line: bytes) -> Any:
    def refuse(word: str) -> Any:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(line, parse_constant=refuse)


@settings(max_examples=400)
@given(st.lists(responses(), max_size=6))
def test_lines_of_a_batch_are_those_of_its_responses_and_every_lost_number_is_counted(batch):
    expected = [finite({**r.model_dump(), "request_id": str(r.request_id)}) for r in batch]

    lines, lost = response_lines(batch)

    assert [strictly(line) for line in lines] == [value for value, _ in expected]
    assert lost == sum(n for _, n in expected)
    alone = [response_lines([r]) for r in batch]
    assert lines == [line for (line,), _ in alone]
    assert not any(b"\n" in line for line in lines)


def never_null(value: Any) -> str:
    return value or ""


class Excluded(Plain):
    debug: Any = Field(default=None, exclude=True)


class SometimesExcluded(Plain):
    debug: Any = Field(default=None, exclude_if=lambda value: value is None)


class Serialized(Plain):
    debug: Any = None

    @field_serializer("debug")
    def _never_null(self, debug: Any) -> str:
        return never_null(debug)


class SerializedByItsType(Plain):
    debug: Annotated[str | None, PlainSerializer(never_null)] = None


@pytest.mark.parametrize("kind", [Excluded, SometimesExcluded, Serialized, SerializedByItsType])
def test_a_lost_number_is_not_set_off_against_a_field_that_is_not_written(kind):
    (line,), lost = response_lines(
        [kind(request_id=UUID(int=0), model_name="m", value=math.nan, note="n", other=1)]
    )

    assert strictly(line)["value"] is None
    assert lost == 1


def test_one_rows_lost_number_is_not_set_off_against_anothers_empty_field():
    class Quiet(Plain):
        @field_serializer("note")
        def _never_null(self, note: str | None) -> str:
            return note or ""

    ids = {"request_id": UUID(int=0), "model_name": "m"}
    batch = [Quiet(**ids, value=1.0, other=1), Quiet(**ids, value=math.nan, note="n", other=1)]

    lines, lost = response_lines(batch)

    assert lost == 1
    assert [strictly(line)["value"] for line in lines] == [1.0, None]
