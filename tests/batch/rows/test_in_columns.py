"""A field of rows that stay in their table's columns is the array that their requests would give."""

from __future__ import annotations

import enum
import io
from typing import Any, Literal
from uuid import UUID

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, model_validator

from sheaf_dagster import BaseRequest, request_column
from sheaf_dagster.batch.rows.columnar import content_of_line
from sheaf_dagster.batch.rows.ids import placed_id
from sheaf_dagster.batch.rows.in_columns import ColumnRows
from sheaf_dagster.batch.rows.requests import RowContract
from sheaf_dagster.batch.rows.row import Row
from sheaf_dagster.storage import TableRows
from sheaf_dagster.storage.formats import FieldMap
from sheaf_dagster.storage.table_rows import copied_rows

ROWS = 4
FIRST = 5
"""Position of the first row in its source."""


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Kinds(BaseRequest):
    """A field of each kind."""

    model_type: Literal["kinds"] = "kinds"
    number: float = 0.5
    gap: float | None = None
    whole: int = 1
    mixed: int | float = 0
    flag: bool = True
    word: str = "none"
    maybe: str | None = None
    kind: Literal["a", "b"] = "a"
    colour: Colour = Colour.RED
    id: UUID | None = None
    numbers: list[float] = Field(default_factory=lambda: [0.5])
    gaps: list[float | None] = []  # noqa: RUF012
    counts: list[int] = []  # noqa: RUF012
    words: list[str] = []  # noqa: RUF012
    nested: list[float | None] | list[list[float | None]] | None = None
    vectors: list[list[float]] = []  # noqa: RUF012

    @property
    def twice(self) -> float:
        return 2 * self.number


CONTRACT = RowContract("kinds", Kinds, table=True)
FIELDS = [*Kinds.model_fields, "twice"]


def bytes_of(table: pa.Table, fields: FieldMap) -> bytes:
    """What a worker reads of a table of one chunk."""
    (batch,) = table.combine_chunks().to_batches()
    copy = io.BytesIO()
    copied_rows(iter([batch]), ROWS, ROWS, fields, copy, "sha256:0")
    return copy.getvalue()


def both(table: pa.Table, fields: FieldMap, start: int, stop: int) -> tuple[ColumnRows, list[Row]]:
    """Rows of a table in columns, and those of its lines."""
    rows = TableRows.of(bytes_of(table, fields))
    block = CONTRACT.hold_columns(rows, 1, FIRST)
    assert block is not None
    lines = list(enumerate(rows.lines(), 1))
    return ColumnRows(block, start, stop), CONTRACT.parse(lines, FIRST)[start:stop]


def assert_same(one: Any, other: Any) -> None:
    """Equal in type, shape and values, of an object array each."""
    assert type(one) is type(other)
    if not isinstance(one, np.ndarray):
        assert repr(one) == repr(other)
        return
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    assert one.flags.writeable
    if one.dtype != object:
        np.testing.assert_array_equal(one, other)
    else:
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)


def many(items, *types, nulls: bool = False):
    """A column of one of these types."""
    values = st.lists(items | st.none() if nulls else items, min_size=ROWS, max_size=ROWS)
    return st.builds(pa.array, values, st.sampled_from(types))


def in_lists(items, *types):
    """A column of lists of one of these types."""
    width = st.integers(0, 3).flatmap(lambda n: st.lists(items, min_size=n, max_size=n))
    equal = st.integers(0, 3).flatmap(
        lambda n: st.lists(
            st.lists(items, min_size=n, max_size=n), min_size=ROWS, max_size=ROWS
        ).flatmap(
            lambda rows: st.sampled_from(
                [
                    *(pa.array(rows, pa.list_(t)) for t in types),
                    *(pa.array(rows, pa.list_(t, n)) for t in types if n),
                ]
            )
        )
    )
    ragged = st.lists(width, min_size=ROWS, max_size=ROWS).flatmap(
        lambda rows: st.sampled_from(
            [pa.array(rows, make(t)) for t in types for make in (pa.list_, pa.large_list)]
        )
    )
    return equal | ragged


FLOATS = st.floats(allow_nan=False, allow_infinity=False, width=32)
SMALL = st.integers(-9, 9)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=3)
F32, F64, I8, I64 = pa.float32(), pa.float64(), pa.int8(), pa.int64()
IDS = st.uuids().map(str)


def dictionaries(columns):
    return columns | columns.map(lambda c: c.dictionary_encode())


COLUMNS = {
    "model_name": dictionaries(many(TEXTS, pa.string(), pa.large_string())),
    "request_id": many(IDS, pa.string()) | many(IDS, pa.string(), nulls=True),
    "number": many(FLOATS, F32, F64) | many(SMALL, I8, I64),
    "gap": many(FLOATS, F32, F64, nulls=True) | many(SMALL, I64, nulls=True),
    "whole": many(SMALL, I8, I64) | many(st.integers(2**62, 2**64 - 1), pa.uint64()),
    "mixed": many(FLOATS, F32, F64) | many(SMALL, I8, nulls=True),
    "flag": many(st.booleans(), pa.bool_(), nulls=True),
    "word": dictionaries(many(TEXTS, pa.string(), pa.large_string(), nulls=True)),
    "maybe": many(TEXTS, pa.string(), nulls=True),
    "kind": dictionaries(many(st.sampled_from("ab"), pa.string())),
    "colour": dictionaries(many(st.sampled_from(["red", "blue"]), pa.string())),
    "id": many(IDS, pa.string(), nulls=True),
    "numbers": in_lists(FLOATS, F32, F64) | in_lists(SMALL, I8, I64),
    "gaps": in_lists(FLOATS | st.none(), F32, F64),
    "counts": in_lists(SMALL, I8, I64),
    "words": in_lists(TEXTS, pa.string()),
    "nested": in_lists(FLOATS, F32, F64),
    "vectors": in_lists(st.lists(FLOATS, max_size=2), pa.list_(F32))
    | in_lists(st.lists(FLOATS, min_size=2, max_size=2), pa.list_(F64), pa.list_(F32, 2)),
    "other": many(TEXTS, pa.string(), nulls=True),
}
CONSTANTS = st.fixed_dictionaries(
    {"model_type": st.just("kinds"), "model_name": st.just("m")},
    optional={
        "number": FLOATS | SMALL,
        "gap": st.none() | FLOATS,
        "colour": st.just("blue"),
        "numbers": st.lists(FLOATS, max_size=2),
        "request_id": IDS,
        "surplus": st.just({"a": [1]}),
    },
)
SPANS = st.tuples(st.integers(0, ROWS - 1), st.integers(1, ROWS)).filter(lambda s: s[0] < s[1])
TABLES = st.sets(st.sampled_from([*COLUMNS]), min_size=1, max_size=6).flatmap(
    lambda names: st.fixed_dictionaries({name: COLUMNS[name] for name in sorted(names)})
)


@given(TABLES, CONSTANTS, st.booleans(), SPANS)
def test_arrays_from_columns_are_those_of_requests(columns, constants, renamed, span):
    mapping = {}
    if renamed:
        mapping = {name: f"column of {name}" for name in [*columns][:2]}
        columns = {mapping.get(name, name): array for name, array in columns.items()}
    in_columns, rows = both(pa.table(columns), FieldMap(mapping, constants), *span)
    requests = [row.request for row in rows]

    for name in FIELDS:
        expected = request_column(requests, name)
        assert_same(request_column(in_columns.requests, name), expected)
        assert_same(request_column(in_columns.requests, name), expected)
    assert in_columns[:] == rows
    assert [*in_columns.requests] == requests


@settings(max_examples=50)
@given(TABLES, CONSTANTS, SPANS)
def test_ids_are_derived_from_a_rows_place_and_what_it_says(columns, constants, span):
    fields = FieldMap(constants=constants)
    in_columns, _ = both(pa.table(columns), fields, *span)
    start, stop = span
    lines = TableRows.of(bytes_of(pa.table(columns), fields)).lines()[start:stop]

    found = request_column(in_columns.requests, "request_id")

    given_ids = pa.table(columns).to_pydict().get("request_id", [None] * ROWS)[start:stop]
    given_ids = [constants.get("request_id", given) for given in given_ids]
    assert [*found] == [
        placed_id(position, content_of_line(line)) if given is None else UUID(given)
        for position, (line, given) in enumerate(zip(lines, given_ids, strict=True), FIRST + start)
    ]


def requests_of(**columns: Any) -> Any:
    table = pa.table({"model_name": ["m"] * ROWS, **columns})
    in_columns, _ = both(table, FieldMap(constants={"model_type": "kinds"}), 1, 3)
    return in_columns.requests


@pytest.mark.parametrize("type_", [pa.list_(F64), pa.list_(F32, 2), pa.list_(F64, 2)])
def test_an_array_is_the_callers_own_whoever_else_asks(type_):
    requests = requests_of(numbers=pa.array([[1.0, 2.0]] * ROWS, type_), number=[1.0] * ROWS)

    for name in ("numbers", "number", "gap", "word"):
        array, other = request_column(requests, name), request_column(requests, name)
        array[:] = 7.0
        assert not np.shares_memory(array, other)
        assert_same(request_column(requests, name), other)
    assert requests[0].numbers == [1.0, 2.0]


def test_requests_are_a_sequence_of_requests():
    requests = requests_of(number=[1.0, 2.0, 3.0, 4.0])

    assert len(requests) == 2
    assert [r.number for r in requests] == [2.0, 3.0]
    assert (requests[0].number, requests[-1].number) == (2.0, 3.0)
    assert requests[1] is requests[1]
    assert requests[1:] == [requests[1]]
    assert requests[0] in requests
    assert isinstance(requests[0], Kinds)
    with pytest.raises(IndexError):
        requests[2]
    with pytest.raises(AttributeError, match="nothing"):
        request_column(requests, "nothing")


class Placed(Kinds):
    def placed(self, occurrence: int) -> None:
        self.word = f"number {occurrence}"


class Changed(Kinds):
    @model_validator(mode="after")
    def _round(self) -> Changed:
        self.number = round(self.number)
        return self


class Renamed(Kinds):
    number: float = Field(default=0.5, alias="amount")


@pytest.mark.parametrize("model", [Placed, Changed, Renamed])
def test_requests_of_contracts_that_change_values_are_made(model):
    rows = TableRows.of(bytes_of(pa.table({"number": [1.5] * ROWS}), FieldMap()))

    assert RowContract("kinds", model, table=True).hold_columns(rows, 1, FIRST) is None


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[1.0], [np.nan], [2.0], [3.0]]),
        pa.array([[1.0], None, [2.0], [3.0]]),
        pa.array([["1.0"], ["2"], ["3"], ["4"]]),
    ],
)
def test_rows_that_pydantic_must_see_are_made(column):
    fields = FieldMap(constants={"model_type": "kinds", "model_name": "m"})
    rows = TableRows.of(bytes_of(pa.table({"numbers": column}), fields))
    block = CONTRACT.hold_columns(rows, 1, FIRST)

    # Without a value a row has the default.
    assert (block is None) == (not column.null_count)
    if block is not None:
        requests = ColumnRows(block, 0, 2).requests
        assert_same(request_column(requests, "numbers"), np.array([[1.0], [0.5]]))
