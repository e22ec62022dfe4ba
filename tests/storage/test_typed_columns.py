"""Columns come back from JSON as they were, whatever their type."""

from __future__ import annotations

import json
from decimal import Decimal

import pyarrow as pa
import pytest

from sheaf_dagster.storage.formats import (
    column_of,
    has_one_form,
    json_rows,
    needs_decimals,
)
from tests.storage.typed_columns import COLUMNS


def read_again(column):
    """Values as the engine reads them: decimals only where the type has some."""
    exact = needs_decimals(column.type)
    lines = json_rows(pa.record_batch({"c": column}))
    return [json.loads(line, parse_float=Decimal if exact else float).get("c") for line in lines]


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_comes_back_as_it_was(name):
    column = COLUMNS[name]
    assert has_one_form(column.type)

    made = column_of(read_again(column), column.type)

    made.validate(full=True)
    assert made.type == column.type
    assert made.equals(column)
    empty = column_of([], column.type)
    assert (empty.type, len(empty)) == (column.type, 0)


@pytest.mark.parametrize(
    ("values", "type"),
    [
        ([True], pa.int64()),
        ([[True]], pa.list_(pa.float64())),
        ([300], pa.int8()),
        ([0.1], pa.float32()),
        ([0.1], pa.float16()),
        ([1.5], pa.int32()),
        (["a"], pa.duration("s")),
        ([Decimal("1.5")], pa.duration("s")),
        ([Decimal(10) ** 11], pa.duration("ns")),
        (["no base64"], pa.binary()),
        (["AAAA"], pa.binary(2)),
        ([{"other": 1}], pa.struct([("a", pa.int64())])),
        ([{"a": True}], pa.struct([("a", pa.int64())])),
        ([1], pa.struct([("a", pa.int64())])),
        ([1], pa.map_(pa.string(), pa.date32())),
        ([["2026-11-27"]], pa.list_(pa.date32(), 2)),
        (["2026-11-27"], pa.list_(pa.date32())),
        ([1], pa.date32()),
    ],
)
def test_a_value_that_the_type_cant_hold_is_refused(values, type):
    with pytest.raises((pa.ArrowException, OverflowError, TypeError, ValueError)):
        column_of(values, type)


@pytest.mark.parametrize(
    "type",
    [
        pa.map_(pa.float64(), pa.int64()),
        pa.struct([("a", pa.int64()), ("a", pa.int64())]),
        pa.struct([]),
        pa.null(),
        pa.list_(pa.null()),
        pa.dense_union([pa.field("a", pa.int64())]),
    ],
)
def test_types_without_one_form_are_known(type):
    assert not has_one_form(type)
