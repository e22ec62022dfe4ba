"""Fields of a batch as arrays, and responses that are made of arrays."""

from __future__ import annotations

import enum
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, computed_field

from sheaf_dagster import (
    BaseResponse,
    ModelBackend,
    ResponseColumns,
    ResponseMismatchError,
    request_column,
)
from sheaf_dagster.contracts import TimeSeriesRequest, TimeSeriesResponse
from sheaf_dagster.testing import check_backend
from tests.toys import NumberRequest, NumberResponse


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Kinds(BaseModel):
    """A field of each kind."""

    request_id: UUID = UUID(int=1)
    number: float = 0.0
    gap: float | None = None
    whole: int = 0
    mixed: int | float = 0
    flag: bool = True
    word: str = "none"
    maybe: str | None = None
    colour: Colour = Colour.RED
    numbers: list[float] = []  # noqa: RUF012
    gaps: list[float | None] = []  # noqa: RUF012
    counts: list[int] = []  # noqa: RUF012
    words: list[str] = []  # noqa: RUF012
    nested: list[float | None] | list[list[float | None]] | None = None
    table: dict[str, float] = {}  # noqa: RUF012

    @property
    def twice(self) -> float:
        return 2 * self.number


def column(name: str, *values: Any) -> np.ndarray:
    return request_column([Kinds.model_construct(**{name: value}) for value in values], name)


def assert_is(array: np.ndarray, expected: np.ndarray) -> None:
    """The same type, shape and values, of an object array each."""
    assert (array.dtype, array.shape) == (expected.dtype, expected.shape)
    if array.dtype != object:
        np.testing.assert_array_equal(array, expected)
        return
    for one, other in zip(array, expected, strict=True):
        assert type(one) is type(other)
        if isinstance(one, np.ndarray):
            assert_is(one, other)
        else:
            assert one == other


def objects(*values: Any) -> np.ndarray:
    array = np.empty(len(values), object)
    for i, value in enumerate(values):
        array[i] = value
    return array


NAN = np.nan
IDS = [UUID(int=i) for i in range(2)]
ARRAYS = [
    ("number", [1.0, 2.5], np.array([1.0, 2.5])),
    ("gap", [None, 2.5], np.array([NAN, 2.5])),
    ("gap", [None, None], np.array([NAN, NAN])),
    ("whole", [1, -2], np.array([1, -2], np.int64)),
    ("whole", [1, 2**63], objects(1, 2**63)),
    ("mixed", [1, 2.5], objects(1, 2.5)),
    ("mixed", [1, 2], np.array([1, 2], np.int64)),
    ("flag", [True, False], np.array([True, False])),
    ("word", ["a", "ü"], objects("a", "ü")),
    ("maybe", [None, "a"], objects(None, "a")),
    ("maybe", [None], objects(None)),
    ("colour", [Colour.RED, Colour.BLUE], objects("red", "blue")),
    ("request_id", IDS, objects(*IDS)),
    ("table", [{"a": 1.0}, {}], objects({"a": 1.0}, {})),
    ("numbers", [[1.0, 2.0], [3.0, 4.0]], np.array([[1.0, 2.0], [3.0, 4.0]])),
    ("numbers", [[1.0, 2.0], [3.0]], objects(np.array([1.0, 2.0]), np.array([3.0]))),
    ("numbers", [[1.0], []], objects(np.array([1.0]), np.array([]))),
    ("numbers", [[], []], np.zeros((2, 0))),
    ("gaps", [[None, 1.0], [2.0, 3.0]], np.array([[NAN, 1.0], [2.0, 3.0]])),
    ("gaps", [[None], [2.0, 3.0]], objects(np.array([NAN]), np.array([2.0, 3.0]))),
    ("gaps", [[None]], np.array([[NAN]])),
    ("counts", [[1, 2], [3, 4]], np.array([[1, 2], [3, 4]], np.int64)),
    ("counts", [[1], []], objects(np.array([1], np.int64), np.array([], np.int64))),
    ("counts", [[]], np.zeros((1, 0), np.int64)),
    ("counts", [[1], [2**70]], objects(np.array([1], np.int64), objects(2**70))),
    ("words", [["a"], ["b"]], objects(objects("a"), objects("b"))),
    ("nested", [[1.0], None], objects([1.0], None)),
    ("nested", [None], objects(None)),
    ("nested", [[[1.0, 2.0]], [[None, 4.0]]], np.array([[[1.0, 2.0]], [[NAN, 4.0]]])),
    (
        "nested",
        [[[1.0, 2.0]], [[3.0, 4.0], [5.0, 6.0]]],
        objects(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0], [5.0, 6.0]])),
    ),
    (
        "nested",
        [[[1.0], [2.0, 3.0]], [[4.0]]],
        objects(objects(np.array([1.0]), np.array([2.0, 3.0])), np.array([[4.0]])),
    ),
    ("nested", [[[1.0]], [2.0]], objects(np.array([[1.0]]), np.array([2.0]))),
]


@pytest.mark.parametrize(
    ("name", "values", "expected"), ARRAYS, ids=[f"{n}-{v}" for n, v, _ in ARRAYS]
)
def test_a_field_is_the_array_that_numpy_makes_of_its_values(name, values, expected):
    assert_is(column(name, *values), expected)


@pytest.mark.parametrize(
    ("name", "values", "alone"),
    [
        ("gap", [1.0, None], np.array([NAN])),
        ("gaps", [[1.0], [None]], np.array([[NAN]])),
        ("numbers", [[1.0], []], np.zeros((1, 0))),
    ],
)
def test_a_row_alone_has_numbers_as_it_has_among_others(name, values, alone):
    together = column(name, *values)

    assert_is(column(name, values[1]), alone)
    np.testing.assert_array_equal(together[1], alone[0])


def test_a_property_of_the_requests_is_a_column_too_and_anything_else_an_error():
    requests = [Kinds(number=1.0), Kinds(number=2.0)]

    assert_is(request_column(requests, "twice"), np.array([2.0, 4.0]))
    with pytest.raises(AttributeError, match="nothing"):
        request_column(requests, "nothing")
    assert request_column([], "number").shape == (0,)


@pytest.mark.parametrize("lists", [[[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0], [3.0]]])
def test_arrays_are_the_callers_own(lists):
    requests = [Kinds(number=float(i), numbers=v) for i, v in enumerate(lists)]
    before = [r.model_copy(deep=True) for r in requests]

    for name in ("number", "numbers"):
        array = request_column(requests, name)
        for part in array if array.dtype == object else [array]:
            part += 7.0
        assert array.flags.writeable

    assert requests == before
    np.testing.assert_array_equal(request_column(requests, "numbers")[0], lists[0])


REQUESTS = [
    NumberRequest(request_id=UUID(int=i), model_name="m", value=i, note=f"note {i}")
    for i in range(1, 5)
]


def test_response_columns_are_the_responses_that_are_made_by_hand():
    values = np.array([1.5, 2.5, np.nan, 4.5])
    metadata = [{"n": i} for i in range(4)]

    answers = ResponseColumns(
        NumberResponse,
        REQUESTS,
        {"value": values, "batch": 4, "metadata": metadata},
        copied=["note"],
    )

    made = [
        NumberResponse(
            request_id=r.request_id,
            model_type=r.model_type,
            model_name=r.model_name,
            value=float(value),
            batch=4,
            metadata=said,
            note=r.note,
        )
        for r, value, said in zip(REQUESTS, values, metadata, strict=True)
    ]
    assert len(answers) == 4
    assert repr([*answers]) == repr(made)
    assert [a.model_fields_set for a in answers] == [m.model_fields_set for m in made]
    assert (answers[0], answers[-1], answers[1:2]) == (made[0], made[-1], made[1:2])
    assert answers[0] is answers[0]
    assert made[1] in answers
    with pytest.raises(IndexError):
        answers[4]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (np.float32(0.1), [float(np.float32(0.1))] * 4),
        (np.array(2.5), [2.5] * 4),
        (7, [7.0] * 4),
        (np.arange(4), [0.0, 1.0, 2.0, 3.0]),
        (np.array([0.1] * 4, np.float32), [float(np.float32(0.1))] * 4),
        ([1, 2.5, "3", np.float64(4)], [1.0, 2.5, 3.0, 4.0]),
        ((1.0, 2.0, 3.0, 4.0), [1.0, 2.0, 3.0, 4.0]),
        (np.arange(8.0)[::-2], [7.0, 5.0, 3.0, 1.0]),
    ],
)
def test_a_column_is_an_array_or_a_list_and_anything_else_is_the_value_of_every_response(
    given, said
):
    values = [a.value for a in ResponseColumns(NumberResponse, REQUESTS, {"value": given})]

    assert values == said
    assert {*map(type, values)} == {float}


class Widths(BaseResponse):
    mean: list[float] = []  # noqa: RUF012


def test_rows_of_an_array_are_lists_and_so_are_arrays_of_many_lengths():
    square = np.arange(8.0).reshape(4, 2)
    ragged = [np.arange(float(i)) for i in range(4)]
    in_an_array = objects(*ragged)

    for given in (square, ragged, in_an_array):
        answers = ResponseColumns(Widths, REQUESTS, {"mean": given})
        assert [a.mean for a in answers] == [row.tolist() for row in given]


class Anonymous(BaseModel):
    """A response that has but one of the fields that are copied."""

    model_name: str
    value: float


class Unnamed(BaseModel):
    """A request that has but one of them."""

    request_id: UUID
    value: float

    @property
    def model_name(self) -> str:
        return f"model of {self.value:g}"


def test_ids_and_names_are_copied_where_both_have_them():
    unnamed = [Unnamed(request_id=UUID(int=i), value=i) for i in range(2)]

    (first, _, _, _) = ResponseColumns(Anonymous, REQUESTS, {"value": 1.0})
    of_property = ResponseColumns(Anonymous, unnamed, {"value": 1.0})
    own = ResponseColumns(NumberResponse, REQUESTS, {"value": 1.0, "model_name": "other"})

    assert first == Anonymous(model_name="m", value=1.0)
    assert [a.model_name for a in of_property] == ["model of 0", "model of 1"]
    assert [a.model_name for a in own] == ["other"] * 4


def test_a_given_field_is_not_copied():
    ids = [UUID(int=9)] * 4

    answers = ResponseColumns(
        NumberResponse, REQUESTS, {"value": 1.0, "request_id": ids}, copied=["request_id"]
    )

    assert [a.request_id for a in answers] == ids
    assert "request_id" not in answers.copied


def test_an_enum_is_copied_by_its_value():
    requests = [TimeSeriesRequest(model_name="m", history=[1.0], horizon=2, frequency="1d")]

    (answer,) = ResponseColumns(
        TimeSeriesResponse, requests, {"mean": np.zeros((1, 2))}, copied=["horizon", "frequency"]
    )

    assert (answer.mean, answer.horizon, answer.frequency) == ([0.0, 0.0], 2, "1d")
    assert type(answer.frequency) is str


class Aliased(BaseResponse):
    value: float = Field(alias="val")


class AliasedByName(Aliased):
    model_config = ConfigDict(populate_by_name=True)


class Open(BaseResponse):
    model_config = ConfigDict(extra="allow")

    @computed_field
    def length(self) -> int:
        return len(self.model_name)


@pytest.mark.parametrize("cls", [Aliased, AliasedByName])
def test_a_field_goes_by_its_name_whatever_its_alias_is(cls):
    assert [a.value for a in ResponseColumns(cls, REQUESTS, {"value": np.arange(4.0)})] == [
        0.0,
        1.0,
        2.0,
        3.0,
    ]


def test_a_response_that_allows_for_more_has_more():
    (first, *_) = ResponseColumns(Open, REQUESTS, {"score": np.arange(4)})

    assert first.model_extra == {"score": 0}
    assert first.length == 1


@pytest.mark.parametrize("values", [np.zeros(3), [1.0] * 5, np.zeros((1, 4)), []])
def test_a_column_with_another_number_of_values_is_refused(values):
    with pytest.raises(
        ResponseMismatchError, match=rf"'value' has {len(values)} values for 4 requests"
    ):
        ResponseColumns(NumberResponse, REQUESTS, {"value": values})


@pytest.mark.parametrize(("columns", "copied"), [({"mean": 1.0}, ()), ({"value": 1.0}, ["mean"])])
def test_a_field_that_the_response_has_not_is_refused(columns, copied):
    with pytest.raises(ValueError, match=r"NumberResponse has no field 'mean'; its fields are req"):
        ResponseColumns(NumberResponse, REQUESTS, columns, copied=copied)


def test_pydantic_refuses_what_is_no_value_of_the_field():
    answers = ResponseColumns(NumberResponse, REQUESTS, {"value": [1.0, "two", 3.0, 4.0]})

    with pytest.raises(ValidationError, match="unable to parse"):
        answers[0]
    with pytest.raises(ValidationError, match="valid number"):
        ResponseColumns(NumberResponse, REQUESTS, {"value": None})[0]


class InColumns(ModelBackend):
    """Doubles, and keeps the rules."""

    model_type = "number"
    takes_columns = True
    batch_invariant = True

    def load(self) -> None:
        self.factor = 2.0

    def batch_predict(self, requests):
        return ResponseColumns(
            NumberResponse,
            requests,
            {"value": self.factor * request_column(requests, "value")},
            copied=["note"],
        )


def test_a_backend_in_columns_keeps_the_rules_and_answers_when_called():
    check_backend(InColumns, REQUESTS)
    backend = InColumns()
    backend.load()

    assert [a.value for a in backend.batch_predict(REQUESTS)] == [2.0, 4.0, 6.0, 8.0]
    assert backend.predict(REQUESTS[2]).value == 6.0
    assert [*backend.batch_predict([])] == []
