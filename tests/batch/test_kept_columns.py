"""Kept fields become columns of one type, or the job is refused before the model runs."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sheaf_dagster as sd
from sheaf_dagster import BatchRunner, SourceError, SpecError
from sheaf_dagster.storage import Location, read_lines
from tests.batch.table_jobs import job, lines, run, tables
from tests.conftest import read_rows
from tests.toys import doubler

FAR = 2**53 + 1
"""An integer that no double is."""

DAY = dt.date(2026, 11, 27)
MOMENT = dt.datetime(2026, 11, 27, 1, 2, 3)


def test_kept_columns_have_the_types_of_the_source(tmp_path):
    kept = {
        "small": pa.array([1, None, 3, 4, 5, 6], pa.int32()),
        "half": pa.array([0.1] * 6, pa.float32()),
        "day": pa.array([dt.date(2026, 1, 5 + i) for i in range(6)]),
        "moment": pa.array([dt.datetime(2026, 1, 5, 1, 2, 3, 4)] * 6, pa.timestamp("us", "UTC")),
        "price": pa.array([Decimal("12345678901234567890.10")] * 6, pa.decimal128(38, 2)),
        "shop": pa.array([*"abacca"]).dictionary_encode(),
        "parts": pa.array([[1], [], None, [2, 3], [4], []], pa.list_(pa.int16())),
        "vector": pa.array([[0.5, 0.1], None] * 3, pa.list_(pa.float32(), 2)),
        "tick": pa.array([1, None] * 3, pa.timestamp("ms")),
        "second": pa.array([60_001] * 6, pa.time32("ms")),
        "hour": pa.array([60_000_001] * 6, pa.time64("us")),
        "instant": pa.array([60_000_000_001] * 6, pa.time64("ns")),
    }
    table = pa.table({"model_name": ["m"] * 6, "value": [1.0, 2, 3, 4, 5, 6], **kept})
    pq.write_table(table, tmp_path / "in.parquet")
    source = str(tmp_path / "in.parquet")
    spec = job(source, tmp_path / "out.parquet", keep=[*kept], batch_size=2, bucket_by="group")

    result = run(spec)

    found = pq.read_table(spec.sink)
    assert found.select([*kept]).cast(table.select([*kept]).schema).equals(table.select([*kept]))
    assert found.select([*kept]).schema.types == table.select([*kept]).schema.types
    lines = run(job(source, tmp_path / "out.jsonl", keep=[*kept], batch_size=2))
    read = [orjson.loads(line) for _, line in read_lines(Location.of(result.sink))]
    assert read == read_rows(lines.sink)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_a_column_that_is_read_as_a_field_can_be_kept_too(suffix, tmp_path):
    table = pa.table({"sku": ["a", "b"], "sold": pa.array([1, 2], pa.int8())})
    pq.write_table(table, tmp_path / "in.parquet")
    (tmp_path / "in.jsonl").write_bytes(
        b"".join(orjson.dumps(r) + b"\n" for r in table.to_pylist())
    )
    columns = {"model_name": "sku", "value": "sold"}

    run(
        job(
            f"{tmp_path}/in.{suffix}",
            tmp_path / "out.parquet",
            columns=columns,
            keep=["sold", "sku"],
        )
    )

    answers = pq.read_table(
        tmp_path / "out.parquet", columns=["model_name", "value", "sold", "sku"]
    )
    assert [*map(tuple, map(dict.values, answers.to_pylist()))] == [
        ("a", 2.0, 1, "a"),
        ("b", 4.0, 2, "b"),
    ]


@pytest.mark.parametrize(
    ("first", "other", "whole"),
    [
        (pa.array([1], pa.int64()), pa.array([1.5]), pa.float64()),
        (pa.array([1], pa.int8()), pa.array([2**40]), pa.int64()),
        (pa.array([0.5], pa.float32()), pa.array([0.1]), pa.float64()),
        (pa.array([[1]]), pa.array([[1.5]]), pa.list_(pa.float64())),
        (pa.array([MOMENT], pa.timestamp("ms")), pa.array([7], pa.timestamp("ns")), pa.timestamp("ns")),
        (pa.array([1], pa.time32("ms")), pa.array([1], pa.time64("us")), pa.time64("us")),
        (pa.array([10**7], pa.duration("s")), pa.array([1], pa.duration("ns")), pa.duration("ns")),
        (pa.array([1], pa.decimal128(5, 2)), pa.array([Decimal("0.001")]), pa.decimal128(6, 3)),
        (pa.array([1], pa.decimal128(5, 2)), pa.array([2**63 - 1]), pa.decimal128(22, 2)),
        (pa.array(["a"]).dictionary_encode(), pa.array(["b"]), pa.string()),
        (pa.array([None], pa.null()), pa.array([DAY]), pa.date32()),
        (pa.array([{"a": 1, "day": DAY}]), pa.array([{"day": DAY, "a": 2**40}]), None),
        (pa.array([b"abc"], pa.binary(3)), pa.array([b"abcd"], pa.binary(4)), pa.binary()),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)  # fmt: skip
def test_a_kept_column_has_the_type_that_holds_the_values_of_all_files(
    first, other, whole, tmp_path
):
    spec = job(tables(tmp_path, first, other), tmp_path / "out.parquet", keep=["k"])

    run(spec)

    kept = pq.read_table(spec.sink).column("k")
    assert kept.to_pylist() == [*first.to_pylist(), *other.to_pylist()]
    assert kept.type == (whole or first.type)


@pytest.mark.parametrize(
    ("first", "other"),
    [
        (pa.array([0.5]), pa.array([True])),
        (pa.array([[0.5]]), pa.array([[True]])),
        (pa.array([2]), pa.array([True])),
        (pa.array([0], pa.timestamp("us", "UTC")), pa.array([0], pa.timestamp("us"))),
        (pa.array([0], pa.timestamp("us", "UTC")), pa.array([0], pa.timestamp("us", "Asia/Tokyo"))),
        (pa.array([DAY]), pa.array([MOMENT])),
        (pa.array([Decimal("0.10")]), pa.array([0.1])),
        (pa.array([b"\xff"]), pa.array(["text"])),
        (pa.array([[DAY]]), pa.array([["text"]])),
        (pa.array([dt.timedelta(seconds=1)]), pa.array([2.5])),
        (pa.array([{"a": 1}]), pa.array([{"a": "text"}])),
    ],
    ids=lambda column: str(column.type),
)
def test_kept_columns_that_no_type_holds_are_refused_before_the_model_runs(first, other, tmp_path):
    sources = tables(tmp_path, first.slice(0, 0), first, other)
    calls = tmp_path / "calls"
    model = doubler(call_log=str(calls), load_log=str(calls))
    spec = job(sources, tmp_path / "out.parquet", keep=["k"])
    said = rf"keep: column 'k' is of type .* in {sources[0]}, but of type .* in {sources[2]}"

    with pytest.raises(SpecError, match=said):
        run(spec, model)
    with pytest.raises(SpecError, match=said):
        BatchRunner(model).validate(spec)
    assert not calls.exists()

    run(spec.model_copy(update={"sink": str(tmp_path / "out.jsonl")}), model)
    assert len(read_rows(tmp_path / "out.jsonl")) == 2


@pytest.mark.parametrize(
    ("far", "other"),
    [
        (pa.array([1, 2**53 + 1]), pa.array([0.5])),
        (pa.array([1, 2**64 - 1], pa.uint64()), pa.array([1])),
        (pa.array([MOMENT, dt.datetime(3000, 1, 1)]), pa.array([7], pa.timestamp("ns"))),
        (pa.array([{"a": 0}, {"a": 2**53 + 1}]), pa.array([{"a": 0.5}])),
    ],
    ids=lambda column: str(column.type),
)
def test_a_kept_value_that_the_type_of_all_files_cant_hold_is_named(far, other, tmp_path):
    sources = tables(tmp_path, other, far)
    spec = job(sources, tmp_path / "out.parquet", keep=["k"])

    with pytest.raises(SourceError, match=f"{sources[1]}, row 2: the value in column 'k' can't be"):
        run(spec)

    run(job(tables(tmp_path, other, far.slice(0, 1)), tmp_path / "out.parquet", keep=["k"]))
    assert pq.read_table(spec.sink).num_rows == 2


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        ([1] * 4 + [2, "x"] * 2, "in.jsonl, line 6: keep: field 'k' can't be a column"),
        ([1, *"x" * 7], "in.jsonl, line 2: keep: field 'k' can't be a column"),
        ([1] * 4 + ["x"], "type int64 in .* from line 1 on, but of type string in .* from line 5 on"),
        ([{"a": 1}] * 8 + [{"a": [1]}], "of type struct<a: int64> in .* from line 9 on"),
        ([True] * 4 + [None] * 4 + [1], "type bool in .* from line 1 on, but of type int64 in"),
        ([1.5, True], "in.jsonl, line 2: keep: field 'k' can't be a column"),
        ([{"a": [1.5]}, {"a": [True]}], "in.jsonl, line 2: keep: field 'k' can't be a column"),
        ([1, FAR, 0.5], "in.jsonl, line 3: keep: field 'k' can't be a column"),
        ([FAR] * 4 + [None] * 4 + [0.5], "beyond 2.53 in .* from line 1 on, but .* double .* line 9 on"),
        ([0.5] * 4 + [FAR], "beyond 2.53 in .* from line 5 on, but .* double .* from line 1 on"),
        ([1, FAR, 3, 4, 0.5], "beyond 2.53 in .* from line 1 on, but .* double .* from line 5 on"),
        ([[[-FAR]]] * 4 + [[[0.5]]], "beyond 2.53 in .* line 1 on, but .*double.* from line 5 on"),
        (
            [{"a": FAR, "b": 1}] * 4 + [{"a": 1, "b": FAR}] * 4 + [{"a": 1, "b": 0.5}],
            "beyond 2.53 in .* from line 5 on, but .*a: int64, b: double.* from line 9 on",
        ),
        ([1, 2**63 + 1], "in.jsonl, line 2: keep: field 'k' can't be a column"),
        ([1] * 4 + [2**70 + 1], "in.jsonl, line 5: keep: field 'k' can't be a column"),
        ([0.5, -(2**63) - 1], "in.jsonl, line 2: keep: field 'k' can't be a column"),
        ([{"a": [2**70 + 1]}], "in.jsonl, line 1: keep: field 'k' can't be a column"),
        ([{}] * 4 + [None], "field 'k' has only empty objects"),
        ([[{"a": {}}]], "field 'k' has only empty objects"),
    ],
)  # fmt: skip
def test_kept_fields_of_several_types_are_refused_before_the_model_runs(kept, said, tmp_path):
    calls = tmp_path / "calls"
    model = doubler(call_log=str(calls))
    spec = job(lines(tmp_path, *kept), tmp_path / "out.parquet", keep=["k"])

    with pytest.raises(SpecError, match=said):
        run(spec, model)
    with pytest.raises(SpecError, match=said):
        BatchRunner(model).validate(spec)
    assert not calls.exists()

    run(spec.model_copy(update={"sink": str(tmp_path / "out.jsonl")}), model)
    assert [row["k"] for row in read_rows(tmp_path / "out.jsonl")] == kept


@pytest.mark.parametrize(
    ("kept", "type"),
    [
        ([FAR, -(2**63), 2**63 - 1, None, 1], pa.int64()),
        ([1, 2**53, 3, 4, 0.5], pa.float64()),
        ([1, 2**63, 3, 4, -(10**20), 0.5], pa.float64()),
        ([None] * 4 + [FAR], pa.int64()),
        ([{}] * 4 + [{"a": FAR}], pa.struct([("a", pa.int64())])),
        ([{"a": FAR, "b": 1}] * 4 + [{"b": 0.5, "a": 1}], pa.struct({"a": pa.int64(), "b": pa.float64()})),
        ([{"a": 1, "b": str(2**70)}, {"a": 0.1, "b": "x"}], pa.struct({"a": pa.float64(), "b": pa.string()})),
    ],
)  # fmt: skip
def test_kept_numbers_of_lines_have_one_type_that_holds_them(kept, type, tmp_path):
    spec = job(lines(tmp_path, *kept), tmp_path / "out.parquet", keep=["k"])

    run(spec)

    column = pq.read_table(spec.sink).column("k")
    assert column.type == type
    assert [row if row != {"a": None} else {} for row in column.to_pylist()] == kept


@settings(max_examples=30, deadline=None)
@given(
    values=st.lists(
        st.none()
        | st.booleans()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.integers(-(2**65), 2**65)
        | st.sampled_from([1, 2**53, FAR, -(2**63), 2**63]),
        min_size=1,
        max_size=6,
    ),
    within=st.sampled_from([lambda v: v, lambda v: [v], lambda v: {"a": [{"b": v}]}]),
)
def test_any_kept_numbers_come_back_as_they_are_or_are_refused_before_the_model_runs(
    values, within, tmp_path_factory
):
    kept, folder = [*map(within, values)], tmp_path_factory.mktemp("any")
    spec = job(lines(folder, *kept), folder / "out.parquet", keep=["k"], batch_size=2)

    try:
        run(spec, doubler(call_log=str(folder / "calls")))
    except SpecError:
        assert not (folder / "calls").exists()
    else:
        found = pq.read_table(spec.sink).column("k")
        assert found.to_pylist() == kept
        assert ("bool" in str(found.type)) == any(type(v) is bool for v in values)


@pytest.mark.parametrize(
    ("column", "line", "said"),
    [
        (
            pa.array([1.5]),
            FAR,
            "beyond 2.53 in .*in.jsonl from line 1 .* double .*0.parquet from row 1",
        ),
        (
            pa.array([FAR]),
            0.5,
            "beyond 2.53 in .*0.parquet from row 1 .* double .*in.jsonl from line",
        ),
        (pa.array([{"a": FAR}]), {"a": 0.5}, "beyond 2.53 in .*0.parquet from row 1"),
        (
            pa.array([[FAR]], pa.large_list(pa.int64())),
            [0.5],
            "beyond 2.53 in .*0.parquet from row 1",
        ),
        (
            pa.array([2**64 - 1], pa.uint64()),
            -1,
            "beyond 2.53 in .*0.parquet .* type int64 .*in.jsonl",
        ),
        (pa.array([[Decimal("0.10")]]), [2**63 - 1], "beyond 2.53 in .*in.jsonl"),
        (pa.array([0.5]), 2**70 + 1, "in.jsonl, line 1: keep: field 'k' can't be a column"),
        (
            pa.array([True]),
            1,
            "type bool in .*0.parquet from row 1 on, but of type int64 in .*in.jsonl",
        ),
        (pa.array([0.5]), True, "type double in .*0.parquet from row 1 on, but of type bool in"),
        (pa.array(["a"]), 1, "type string in .*0.parquet from row 1 on, but of type int64 in"),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)
def test_kept_fields_of_lines_that_the_type_of_a_table_cant_hold_are_refused_before_the_model_runs(
    column, line, said, tmp_path
):
    calls = tmp_path / "calls"
    sources = [*tables(tmp_path, column), lines(tmp_path, line)]

    with pytest.raises(SpecError, match=said):
        run(job(sources, tmp_path / "out.parquet", keep=["k"]), doubler(call_log=str(calls)))

    assert not calls.exists()


@pytest.mark.parametrize(
    ("column", "line", "type"),
    [
        (pa.array([1]), 0.5, pa.float64()),
        (pa.array([FAR, None]), 1.0, pa.int64()),
        (pa.array([7], pa.uint64()), -1, pa.int64()),
        (pa.array([2**64 - 1], pa.uint64()), 2**64 - 2048, pa.uint64()),
        (pa.array([0.5]), 2**63, pa.float64()),
        (pa.array([Decimal("0.10")]), 2**63 - 1, pa.decimal128(22, 2)),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)
def test_numbers_of_a_table_and_of_lines_have_one_type_that_holds_them(
    column, line, type, tmp_path
):
    sources = [*tables(tmp_path, column), lines(tmp_path, line)]

    run(job(sources, tmp_path / "out.parquet", keep=["k"]))

    kept = pq.read_table(tmp_path / "out.parquet").column("k")
    assert (kept.type, kept.to_pylist()) == (type, [*column.to_pylist(), line])


def test_kept_fields_of_lines_go_into_the_column_of_a_table(tmp_path):
    sources = [*tables(tmp_path, pa.array([DAY])), lines(tmp_path, "2026-11-28", None)]
    spec = job(sources, tmp_path / "out.parquet", keep=["k"])

    run(spec)

    kept = pq.read_table(spec.sink).column("k")
    assert (kept.type, kept.to_pylist()) == (pa.date32(), [DAY, DAY + dt.timedelta(days=1), None])
    lines(tmp_path, "no day")
    with pytest.raises(SpecError, match="date32.* in .* from row 1 on, but of type string in"):
        run(spec)


def test_invalid_rows_are_named_before_kept_fields_of_several_types(tmp_path):
    path = Path(lines(tmp_path, *[1] * 4, "x"))
    path.write_text(path.read_text() + "no row\n")
    spec = job(str(path), tmp_path / "out.parquet", keep=["k"])

    with pytest.raises(sd.InputValidationError, match="line 6"):
        run(spec)
    assert BatchRunner(doubler()).validate(spec).violations[0].line == 6


def test_the_value_of_a_folder_goes_into_the_column_of_its_name(tmp_path):
    paths = [tmp_path / "in" / f"k={k}" / "a.parquet" for k in ("2026-11-28", "2026-11-29")]
    table = pa.table({"model_name": ["m"], "value": [1.0]})
    for path, columns in zip(paths, (table.append_column("k", [[DAY]]), table), strict=True):
        path.parent.mkdir(parents=True)
        pq.write_table(columns, path)
    spec = job(str(tmp_path / "in"), tmp_path / "out.parquet", keep=["k"])

    run(spec)

    assert pq.read_table(spec.sink).column("k").to_pylist() == [DAY, DAY + dt.timedelta(days=2)]
    pq.write_table(table.append_column("k", [[1.5]]), paths[0])
    with pytest.raises(
        SpecError, match=rf"type double in {paths[0]}, but of type string in {paths[1]}"
    ):
        run(spec)


def test_a_struct_that_may_be_missing_is_kept_though_its_fields_may_not(tmp_path):
    type = pa.struct([pa.field("a", pa.int32(), nullable=False)])
    source = tables(tmp_path, pa.array([{"a": 1}, None], type))

    run(job(source, tmp_path / "out.parquet", keep=["k"]))

    assert pq.read_table(tmp_path / "out.parquet").column("k").to_pylist() == [{"a": 1}, None]
