"""Rows that stay in the columns of their table are just what their lines of JSON are."""

from __future__ import annotations

import io
from dataclasses import replace
from uuid import UUID

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, model_validator

from sheaf_dagster import BaseRequest
from sheaf_dagster.batch.rows.columnar import column_codec
from sheaf_dagster.batch.rows.requests import RowContract
from sheaf_dagster.contracts import TimeSeriesRequest, contract_for
from sheaf_dagster.storage import TableRows, lines_in_chunk
from sheaf_dagster.storage.formats import FieldMap
from sheaf_dagster.storage.table_rows import TableScan, copied_rows, stays_table

FORECASTS = RowContract.of(contract_for("time_series"))
IMPLIED = FieldMap(defaults={"model_type": "time_series"})


def scanned(
    batches: list[pa.RecordBatch], rows: int, batch_size: int = 2, fields: FieldMap = IMPLIED
) -> tuple[TableScan, bytes]:
    copy = io.BytesIO()
    scan = copied_rows(iter(batches), rows, batch_size, fields, copy, "sha256:0")
    return scan, copy.getvalue()


def bytes_of(table: pa.Table, fields: FieldMap = IMPLIED) -> bytes:
    """What a worker reads of a table of one chunk."""
    (batch,) = table.combine_chunks().to_batches()
    scan, data = scanned([batch], table.num_rows, max(1, table.num_rows), fields)
    assert len(scan.cuts) == 1
    return data


def forecasts(**columns) -> pa.Table:
    given = {
        "model_name": ["a", "b"],
        "history": [[1.0, 2.5], [3.0]],
        "horizon": [1, 2],
        "frequency": ["1d", "1h"],
        **columns,
    }
    return pa.table({name: values for name, values in given.items() if values is not None})


def assert_as_lines(contract: RowContract, data: bytes) -> None:
    """What is found in columns, and made of them, is what lines would come to."""
    rows = TableRows.of(data)
    text = b"".join(b"%b\n" % line for line in rows.lines())
    as_columns = replace(contract, table=True).validate(data, 1)
    as_lines = replace(contract, table=False).validate(text, 1)
    # Only the ids of lines are derived from how often a content occurs.
    as_columns, as_lines = (replace(f, crc=0, hashes=b"") for f in (as_columns, as_lines))
    assert as_columns == as_lines
    if as_lines.invalid_rows:
        return
    reader = replace(contract, table=True)
    made = reader.parse_columns(rows, 1, 5)
    expected = reader.parse(list(enumerate(rows.lines(), 1)), 5)
    for one, other in zip(made, expected, strict=True):
        assert one == other
        # Equal numbers may be of two types, and a given field may have its default.
        assert repr(one.request) == repr(other.request)
        assert one.request.model_fields_set == other.request.model_fields_set
    assert reader.parse_columns(rows.slice(1, 2), 2, 6) == expected[1:2]


PLAIN = {
    "floats": forecasts(),
    "fixed width, four bytes": forecasts(
        history=pa.FixedSizeListArray.from_arrays(pa.array([0.1, 1, 2, 3], pa.float32()), 2)
    ),
    "large lists and texts": forecasts(
        history=pa.array([[1.0], []], pa.large_list(pa.float64())),
        model_name=pa.array(["ä", "b"], pa.large_string()),
    ),
    "whole numbers": forecasts(history=pa.array([[1, 2**53 + 1], [3]], pa.list_(pa.int64()))),
    "nulls in lists": forecasts(history=[[1.0, None], [None]]),
    "categories": forecasts(frequency=pa.array(["1d", "1d"]).dictionary_encode()),
    "small integers": forecasts(horizon=pa.array([1, 2], pa.uint8())),
    "fields that some rows have": forecasts(
        num_samples=pa.array([None, 3]), quantile_levels=[[0.5], None]
    ),
    "ids of their own": forecasts(request_id=["0b5bd7a8-94a9-4a3a-8c1c-1f6d1f2b6c11", None]),
    "columns of no field": forecasts(note=["x", None], hoorizon=[1.5, 2.5]),
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_columns_never_become_json(name):
    data = bytes_of(PLAIN[name])
    codec, rows = column_codec(TimeSeriesRequest), TableRows.of(data)

    assert codec is not None
    assert codec.accepts(rows) is not None
    held = codec.hold(rows, lambda i, content: UUID(int=i))
    assert held is not None
    assert len(held.requests()) == rows.batch.num_rows
    assert_as_lines(FORECASTS, data)


UNSURE = {
    "no number": forecasts(history=[[float("nan")], [1.0]]),
    "beyond all numbers": forecasts(history=[[float("inf")], [1.0]]),
    "two-dimensional": forecasts(history=[[[1.0, 2.0]], [[3.0, 4.0]]]),
    "missing": forecasts(history=[None, [1.0]]),
    "wrong": forecasts(horizon=[0, 1]),
    "a fraction": forecasts(horizon=[1.0, 2.5]),
    "a word": forecasts(frequency=["1d", "daily"]),
    "another model type": forecasts(model_type=["tabular", "time_series"]),
    "no model type": forecasts(model_type=["time_series", None]),
    "no column": forecasts(horizon=None),
    "no values at all": forecasts(history=pa.nulls(2), horizon=pa.nulls(2)),
    "no such id": forecasts(request_id=["x", None]),
    "beyond 64 bits": forecasts(num_samples=pa.array([2**64 - 1, 1], pa.uint64())),
}


@pytest.mark.parametrize("name", UNSURE)
@pytest.mark.parametrize("strict", [False, True])
def test_what_isnt_sure_is_read_as_lines(name, strict):
    assert_as_lines(replace(FORECASTS, strict=strict), bytes_of(UNSURE[name]))


@pytest.mark.parametrize(
    "fields",
    [
        IMPLIED.beside({"day": 5, "horizon": 7}),
        FieldMap({"history": "sold"}, {"horizon": 3}, IMPLIED.defaults),
        FieldMap({"model_name": "day"}, {"quantile_levels": [0.1]}, {"day": "mon"}),
        FieldMap({}, {"quantile_levels": None, "note": {"a": [1]}}),
    ],
)
@pytest.mark.parametrize("keep", [(), ("day", "note", "horizon")])
def test_fields_of_other_places_count_as_in_lines(fields, keep):
    table = forecasts(sold=[[1.0, 1e300], [5.5]], note=["x", None])
    for one in (table, table.drop_columns(["horizon"]), table.drop_columns(["note"])):
        assert_as_lines(replace(FORECASTS, keep=keep), bytes_of(one, fields))


class Checked(BaseRequest):
    """A contract that looks at its rows itself."""

    model_config = ConfigDict(extra="forbid")
    value: float
    seen: bool = False

    @model_validator(mode="after")
    def _look(self):
        if self.value < 0:
            raise ValueError("is negative")
        self.seen = self.request_id is not None
        return self


class Nested(BaseModel):
    inner: BaseModel


@pytest.mark.parametrize(
    "columns",
    [{"value": [1.0, 2.0]}, {"value": [1.0, -2.0]}, {"value": [1.0, 2.0], "more": [1, None]}],
)
def test_a_contract_with_rules_of_its_own_sees_each_row(columns):
    fields = FieldMap(constants={"model_type": "checked", "model_name": "m"})
    contract = RowContract("checked", Checked)
    assert_as_lines(contract, bytes_of(pa.table(columns), fields))
    assert column_codec(Nested) is None


numbers = st.floats(allow_nan=True, allow_infinity=True) | st.none()
columns = st.fixed_dictionaries(
    {
        "model_name": st.lists(st.text(max_size=3) | st.none(), min_size=3, max_size=3),
        "history": st.lists(st.none() | st.lists(numbers, max_size=3), min_size=3, max_size=3).map(
            lambda v: pa.array(v, pa.list_(pa.float64()))
        ),
        "horizon": st.sampled_from(
            [pa.array([1, 2, 3], pa.int8()), pa.array([1.0, 2, 3]), pa.array([0, None, 1])]
        ),
        "frequency": st.lists(st.sampled_from(["1d", "1h", "x"]), min_size=3, max_size=3),
    },
    optional={
        "target_index": st.lists(st.integers(-1, 2) | st.none(), min_size=3, max_size=3),
        "output_mode": st.lists(st.sampled_from(["mean", None]), min_size=3, max_size=3),
        "extra": st.lists(st.booleans() | st.none(), min_size=3, max_size=3),
        "request_id": st.lists(
            st.none() | st.uuids().map(str) | st.text("0aA-", max_size=2), min_size=3, max_size=3
        ),
    },
)


@settings(max_examples=150, deadline=None)
@given(columns)
def test_any_table_comes_to_what_its_lines_say(columns):
    table = pa.table(columns)
    if stays_table(table.schema):
        assert_as_lines(FORECASTS, bytes_of(table))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 7), max_size=5), st.integers(1, 4), st.none() | st.integers(0, 12))
def test_chunks_hold_whole_batches_however_the_rows_come(sizes, batch_size, limit):
    table = pa.table({"v": np.arange(sum(sizes)), "s": [str(i) for i in range(sum(sizes))]})
    starts = np.cumsum([0, *sizes])
    batches = [
        batch
        for start, size in zip(starts, sizes, strict=False)
        for batch in table.slice(start, size).to_batches()
    ]
    rows = sum(sizes) if limit is None else min(limit, sum(sizes))

    scan, data = scanned(batches, rows, batch_size)

    chunks = scan.chunks(batch_size, first_row=10)
    assert scan.rows == sum(c.rows for c in chunks) == rows
    assert all(c.rows % batch_size == 0 for c in chunks[:-1])
    assert [c.first_row for c in chunks] == [9 + c.first_line for c in chunks]
    lines = [
        (number, TableRows.of(data[c.start : c.end]).batch.column(0).to_pylist()[i])
        for c in chunks
        for i, (number, _) in enumerate(lines_in_chunk(c, data[c.start : c.end]))
    ]
    assert lines == [(i + 1, i) for i in range(rows)]


def test_wide_rows_make_smaller_chunks():
    wide = pa.record_batch({"v": pa.array([[0.0] * 2**17] * 40, pa.list_(pa.float64()))})
    narrow = pa.record_batch({"v": pa.array([[0.0]] * 3000, pa.list_(pa.float64()))})

    scan, data = scanned([narrow, wide, narrow], 6040, 4)

    sizes = [end - start for _, start, end in scan.cuts]
    assert sum(sizes) == len(data)
    assert max(sizes) <= 2**24 + 2**22
