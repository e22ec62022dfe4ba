"""From responses to lines: a batch at a time, by the rule for one."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    RootModel,
    computed_field,
    field_serializer,
    model_serializer,
)

from sheaf_dagster import BaseResponse
from sheaf_dagster.batch.rows.answers import response_lines

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
        raise AssertionError(f"{word} is not JSON")

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


IDS = {"request_id": UUID(int=0), "model_name": "m"}
NOON = datetime(2013, 3, 1, 12, tzinfo=UTC)


class Colour(Enum):
    RED = "red"
    ONE = 1


class Word(str, Enum):  # noqa: UP042  (what users write, too)
    A = "a"


class Typed(BaseResponse):
    """A field of each kind that is written as it is."""

    model_type: Literal["typed"] = "typed"
    number: float = 0.0
    whole: int = 0
    yes: bool = True
    text: str = ""
    colour: Colour = Colour.RED
    word: Word | None = None
    id: UUID | None = None
    numbers: list[float] = Field(default_factory=list)
    table: dict[str, list[float | int | str | None]] = Field(default_factory=dict)
    anything: Any = None


TEXTS = st.one_of(WORDS, st.text(st.characters(codec="utf-8"), max_size=5))
WHOLES = st.one_of(
    st.integers(), st.sampled_from([2**53 + 1, 2**63, 2**64 - 1, 2**64, -(2**63) - 1])
)
REALS = st.floats(allow_nan=False, allow_infinity=False)
ODDITIES = st.one_of(
    st.sampled_from(
        [
            Colour.ONE,
            Word.A,
            UUID(int=3),
            datetime(2013, 3, 1),
            b"a",
            (1, 2.5),
            {1},
            Decimal("1.50"),
        ]
    ),
    st.dictionaries(st.one_of(st.integers(0, 3), st.just(Word.A)), REALS, max_size=2),
    st.just(np.float64(1.5)),
)
ANYTHING = st.recursive(
    st.one_of(st.none(), REALS, WHOLES, TEXTS, st.booleans(), ODDITIES),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=5,
)
TYPED = st.builds(
    Typed,
    request_id=st.uuids(),
    model_name=TEXTS,
    metadata=st.dictionaries(TEXTS, ANYTHING, max_size=2),
    number=REALS,
    whole=WHOLES,
    yes=st.booleans(),
    text=TEXTS,
    colour=st.sampled_from(Colour),
    word=st.none() | st.just(Word.A),
    id=st.none() | st.uuids(),
    numbers=st.lists(REALS, max_size=4),
    table=st.dictionaries(TEXTS, st.lists(st.one_of(REALS, WHOLES, TEXTS, st.none()), max_size=3)),
    anything=ANYTHING,
)


@settings(max_examples=600)
@given(st.lists(TYPED, min_size=1, max_size=3))
def test_the_quick_way_writes_what_pydantic_writes_to_the_byte(batch):
    lines, lost = response_lines(batch)

    assert lines == [r.__pydantic_serializer__.to_json(r) for r in batch]
    assert lost == 0


def test_a_large_number_beside_one_that_is_lost_is_written():
    ((line,), lost) = response_lines([Constants(**IDS, value=[math.inf, 2**64])])

    assert b'"value":[null,18446744073709551616]' in line
    assert lost == 1


def test_values_that_nobody_has_validated_are_written_as_they_are():
    odd = Typed.model_construct(
        request_id=7, model_name=None, number=1, numbers=(1, 2.5), whole=1.5
    )

    ((line,), lost) = response_lines([odd])

    assert b'"number":1,"whole":1.5' in line
    assert b'"numbers":[1,2.5]' in line
    assert lost == 0


class Renamed(Plain):
    value: Any = Field(serialization_alias="Value")

    model_config = ConfigDict(serialize_by_alias=True)


class Computed(Plain):
    @computed_field
    def twice(self) -> float:
        return 2.0 * self.value


class Part(BaseModel):
    at: datetime
    of: Any = Field(default=None, exclude=True)


class Nested(Plain):
    part: Part


class Whole(RootModel[dict[str, float]]):
    pass


class Dated(Plain):
    at: datetime


class Own(Plain):
    @model_serializer
    def _mine(self) -> dict[str, Any]:
        return {"mine": self.value}


class OddlyNamed(Plain):
    """Fields named like words of pydantic's schemas."""

    type: str = "a"
    serialization: Any = None
    fields: list[float] = Field(default_factory=list)
    default: float | None = None
    metadata: Annotated[Any, PlainSerializer(lambda value: "hidden")] = None


class OnlyOddlyNamed(Plain):
    type: str | None = None
    schema_: Any = None
    default: float = 1.0
    function: float = 2.0


@pytest.mark.parametrize(
    "response",
    [
        OddlyNamed(**IDS, value=1.5),
        OnlyOddlyNamed(**IDS, value=1.5),
        Renamed(**IDS, value=1.5),
        Computed(**IDS, value=1.5),
        Nested(**IDS, value=1.5, part=Part(at=NOON, of=1)),
        Whole({"a": 1.5}),
        Dated(**IDS, value=1.5, at=NOON),
        Own(**IDS, value=1.5),
        Open(**IDS, value=1.5, extra=1),
        Plain(**IDS, value=Part(at=NOON, of=1)),
    ],
    ids=lambda r: type(r).__name__,
)
def test_what_is_not_written_as_it_is_is_written_by_pydantic(response):
    lines, lost = response_lines([response])

    assert lines == [response.__pydantic_serializer__.to_json(response)]
    assert lost == 0


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


@pytest.mark.parametrize(
    "kind", [OddlyNamed, Excluded, SometimesExcluded, Serialized, SerializedByItsType]
)
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
