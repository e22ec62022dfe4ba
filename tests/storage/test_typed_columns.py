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
    one_type,
    plain_type,
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


MS, US = (pa.timestamp(unit) for unit in ("ms", "us"))
AB = pa.struct([("a", pa.int8()), ("b", MS)])
BA = pa.struct([("b", US), ("a", pa.int64())])


@pytest.mark.parametrize(
    ("type", "other", "whole"),
    [
        (pa.int8(), pa.uint8(), pa.int16()),
        (pa.int64(), pa.float32(), pa.float64()),
        (pa.float16(), pa.float32(), pa.float32()),
        (pa.bool_(), pa.int8(), None),
        (pa.int64(), pa.string(), None),
        (MS, US, US),
        (US, pa.timestamp("us", "UTC"), None),
        (pa.timestamp("us", "Europe/Berlin"), pa.timestamp("us", "UTC"), None),
        (pa.date32(), US, None),
        (pa.time32("ms"), pa.time64("us"), pa.time64("us")),
        (pa.duration("s"), pa.duration("ns"), pa.duration("ns")),
        (pa.decimal128(10, 2), pa.decimal128(12, 4), pa.decimal128(12, 4)),
        (pa.decimal128(38, 2), pa.decimal128(38, 20), pa.decimal256(56, 20)),
        (pa.decimal128(10, 2), pa.int8(), pa.decimal128(10, 2)),
        (pa.decimal128(10, 2), pa.int64(), pa.decimal128(22, 2)),
        (pa.decimal128(10, 2), pa.float64(), None),
        (pa.string(), pa.large_string(), pa.large_string()),
        (pa.large_string(), pa.string_view(), pa.large_string()),
        (pa.string(), pa.binary(), None),
        (pa.binary(3), pa.binary(4), pa.binary()),
        (pa.list_(MS), pa.large_list(US), pa.large_list(US)),
        (pa.list_view(MS), pa.list_(US), pa.list_(US)),
        (pa.list_(pa.int8(), 2), pa.list_(pa.int8(), 3), pa.list_(pa.int8())),
        (pa.list_(pa.string()), pa.list_(pa.binary()), None),
        (pa.list_(pa.null()), pa.list_(US), pa.list_(US)),
        (AB, BA, pa.struct([("a", pa.int64()), ("b", US)])),
        (AB, pa.struct([("c", US)]), pa.struct([*AB, ("c", US)])),
        (AB, pa.struct([("b", pa.string())]), None),
        (pa.map_(pa.string(), MS), pa.map_(pa.string(), US), pa.map_(pa.string(), US)),
        (pa.dictionary(pa.int8(), MS), pa.dictionary(pa.int8(), US), pa.dictionary(pa.int32(), US)),
        (pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int8(), pa.int8()), None),
        (pa.dictionary(pa.int8(), pa.string()), pa.string(), pa.string()),
        (pa.dictionary(pa.int8(), pa.string()), pa.null(), pa.dictionary(pa.int32(), pa.string())),
        (pa.uuid(), pa.binary(16), None),
    ],
    ids=str,
)  # fmt: skip
def test_two_types_become_one_that_holds_both_or_none(type, other, whole):
    own, others = plain_type(type), plain_type(other)

    assert one_type(own, others) == whole
    turned = one_type(others, own)
    assert turned == whole or (whole and {*turned} == {*whole})


@pytest.mark.parametrize(
    "type",
    [
        pa.struct([pa.field("a", pa.list_(pa.string_view()), nullable=False)]),
        pa.large_list(pa.dictionary(pa.int8(), pa.string())),
        pa.map_(pa.string(), pa.list_(pa.binary_view(), 2)),
    ],
    ids=str,
)
def test_a_plain_type_says_the_same_in_more_room(type):
    plain = plain_type(type)

    assert plain != type
    assert plain_type(plain) == plain
    assert has_one_form(plain)
