"""A model that takes and gives columns has the outputs of one that takes and gives lists."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import sheaf_dagster as sd
from sheaf_dagster import ResponseColumns, request_column
from tests.batch.column_jobs import (
    FORMATS,
    Doubler,
    DoublerInLists,
    Forecaster,
    ForecasterInLists,
    Staged,
    StagedInLists,
    assert_same,
    messages,
    numbers,
    run,
    series,
    source,
)
from tests.conftest import read_rows
from tests.toys import NumberResponse

DOUBLERS, FORECASTERS = (Doubler, DoublerInLists), (Forecaster, ForecasterInLists)
FLOAT32 = {"float_type": "float32"}


@pytest.mark.parametrize("sink", FORMATS)
@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(("classes", "rows"), [(DOUBLERS, numbers()), (FORECASTERS, series())])
@pytest.mark.parametrize(
    "fields",
    [{}, {"batch_size": 7}, {"keep": ["shop"]}, {"batch_size": "auto"}, {"batch_size": 64}],
    ids=str,
)
def test_the_same_rows_have_the_same_answers(classes, rows, suffix, sink, fields, tmp_path):
    result = assert_same(
        classes, source(tmp_path, suffix, rows), tmp_path / f"out.{sink}", **fields
    )

    assert (result.rows, result.error_rows, result.non_finite) == (50, 0, 0)


def test_so_they_have_in_every_compute_mode(mode, tmp_path):
    path = source(tmp_path, "parquet", numbers(100))

    assert_same(DOUBLERS, path, tmp_path / "out.parquet", keep=["shop"], **mode)

    answers = pq.read_table(tmp_path / "Doubler-out.parquet")
    assert answers.column("value").to_pylist() == [2.0 * i for i in range(100)]
    assert answers.column("shop").to_pylist() == [f"shop {i}" for i in range(100)]


@pytest.mark.parametrize(("suffix", "kind"), [("parquet", "columns"), ("jsonl", "list")])
def test_rows_of_a_table_alone_come_in_columns(suffix, kind, tmp_path):
    path, log = source(tmp_path, suffix, numbers(20)), tmp_path / "log"

    run(Doubler, path, tmp_path / "out.parquet", {"log": str(log)})

    assert log.read_text().splitlines() == [f"{kind} 8", f"{kind} 8", f"{kind} 4"]


TABLES = {
    "four bytes": ({"history": pa.array([[0.1, 1e30]] * 6, pa.list_(pa.float32()))}, FLOAT32),
    "beyond four bytes": ({"history": pa.array([[0.1, 1e38]] * 3 + [[1.0, 1e39]] * 3)}, FLOAT32),
    "gaps": ({"history": [[1.0, None], [2.0, 3.0], [None, 1.0]] * 2}, {}),
    "no number": ({"history": [[1.0, 2.0]] * 4 + [[1.0, np.nan], [1.0, 2.0]]}, {}),
    "integers": ({"history": pa.array([[1, 2]] * 6, pa.list_(pa.int64(), 2))}, {}),
    "large lists": ({"history": pa.array([[0.5, 1.5]] * 6, pa.large_list(pa.float64()))}, {}),
    "one width": (
        {"history": pa.array([[0.5, 1.5]] * 6, pa.list_(pa.float32(), 2))},
        {"batch_size": 1},
    ),
    "renamed": ({"sold": [[0.5, 1.5]] * 6, "history": None}, {"columns": {"history": "sold"}}),
    "constant": ({"horizon": None}, {"fields": {"horizon": 2}}),
    "categories": ({"frequency": pa.array(["1d", "1h"] * 3).dictionary_encode()}, {}),
    "ids": ({"request_id": [*[None] * 3, *(f"{i:032x}" for i in range(3))]}, {}),
    "defaults": ({"output_mode": ["mean"] * 6, "quantile_levels": [None, [0.5]] * 3}, {}),
}


@pytest.mark.parametrize("name", TABLES)
def test_so_they_have_whatever_the_columns_are(name, tmp_path):
    columns, fields = TABLES[name]
    rows = {**series(6), **columns}
    path = source(tmp_path, "parquet", {n: v for n, v in rows.items() if v is not None})

    assert_same(FORECASTERS, path, tmp_path / "out.parquet", **fields)
    if "float_type" not in fields:
        assert_same(FORECASTERS, path, tmp_path / "out.jsonl", **fields)


@pytest.mark.parametrize(("sink", "fields"), [("parquet", {}), ("parquet", FLOAT32), ("jsonl", {})])
def test_numbers_that_are_not_finite_are_null_and_counted(sink, fields, tmp_path):
    rows = {**numbers(24), "value": [1e308 if i in (2, 9) else float(i) for i in range(24)]}
    path, model = source(tmp_path, "parquet", rows), {"nan_on": [5.0, *range(16, 24)]}

    result = assert_same(DOUBLERS, path, tmp_path / f"out.{sink}", model, **fields)

    assert result.non_finite == 11


def test_a_row_that_spoils_its_batch_is_told_from_its_mates(tmp_path):
    path = source(tmp_path, "parquet", numbers(24))

    result = assert_same(DOUBLERS, path, tmp_path / "out.parquet", {"nan_beside": 11.0})

    assert result.non_finite == 1


@pytest.mark.parametrize("sink", FORMATS)
@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("fields", [{}, {"keep": ["shop"]}, {"bucket_by": "group"}])
def test_rows_that_fail_are_recorded_in_their_places(suffix, sink, fields, tmp_path):
    path = source(tmp_path, suffix, numbers())
    model = {"fail_on": [0.0, 13.0, 14.0, 49.0], "memory_rows": 2}
    out = tmp_path / f"out.{sink}"

    result = assert_same(DOUBLERS, path, out, model, on_error="record", **fields)

    assert result.error_rows == 4
    assert result.halved_batches > 0
    if sink == "jsonl":
        rows = read_rows(tmp_path / "Doubler-out.jsonl")
        failed = [i for i, row in enumerate(rows) if "error" in row]
        assert failed == [0, 13, 14, 49]
        assert rows[13]["error"]["message"] == "cannot double 13"


@pytest.mark.parametrize("sink", FORMATS)
def test_rows_that_break_their_contract_are_recorded_in_their_places(sink, tmp_path):
    rows = numbers()
    rows["value"][3] = rows["value"][40] = None
    path = source(tmp_path, "parquet", rows)
    fields = {"on_invalid": "record", "on_error": "record", "keep": ["shop"]}

    result = assert_same(DOUBLERS, path, tmp_path / f"out.{sink}", {"fail_on": [5.0]}, **fields)

    assert result.error_rows == 3


def test_rows_of_several_files_have_their_own_places(tmp_path):
    paths = []
    for name, rows in {
        "a": numbers(20),
        "b": numbers(13),
        "c": {**numbers(9), "note": None},
    }.items():
        (tmp_path / name).mkdir()
        given = {n: v for n, v in rows.items() if v is not None}
        paths.append(source(tmp_path / name, "parquet", given))
    sink = tmp_path / "out.parquet"

    result = assert_same(DOUBLERS, paths, sink, batch_size=4, keep=["shop"])
    one, other = messages(DOUBLERS, paths[::-1], sink, model={"fail_on": [10.0]}, batch_size=4)

    assert result.rows == 42
    assert one == other
    assert "b/in.parquet, row 11: Model failed" in one


def test_a_row_that_fails_is_named(tmp_path):
    path = source(tmp_path, "parquet", numbers())
    sink = tmp_path / "out.parquet"

    one, other = messages(DOUBLERS, path, sink, model={"fail_on": [13.0, 14.0]})

    assert one == other
    assert "in.parquet, row 14: Model failed" in one
    assert "cannot double 13" in one


@pytest.mark.parametrize("on_error", ["record", "fail"])
def test_a_row_that_hangs_is_given_up(on_error, tmp_path):
    path, sink = source(tmp_path, "parquet", numbers(12)), tmp_path / "out.parquet"
    fields = {"batch_timeout": 1.5, "on_error": on_error}
    model = {"hang_on": 9.0}

    if on_error == "record":
        assert assert_same(DOUBLERS, path, sink, model, **fields).error_rows == 1
    else:
        one, other = messages(DOUBLERS, path, sink, model=model, **fields)
        assert one == other
        assert "in.parquet, rows 9–12: Model gave no answer" in one


@pytest.mark.parametrize("sink", FORMATS)
def test_rows_that_failed_are_run_alone(sink, tmp_path):
    path, mood, log = source(tmp_path, "parquet", numbers()), tmp_path / "mood", tmp_path / "log"
    model = {"fail_on": [3.0, 30.0], "fail_while": str(mood)}
    out = tmp_path / f"out.{sink}"
    mood.touch()
    first = assert_same(DOUBLERS, path, out, model, on_error="record", keep=["shop"])
    mood.unlink()

    again = assert_same(DOUBLERS, path, out, model, only="failed", keep=["shop"])
    log.write_text("")
    reused = assert_same(DOUBLERS, path, out, {**model, "log": str(log)}, reuse="previous")

    assert (first.error_rows, again.error_rows, again.reused_rows) == (2, 0, 48)
    assert reused.error_rows == 0


@pytest.mark.parametrize("fields", [{}, {"keep": ["shop"]}, {"bucket_by": "group"}])
@pytest.mark.parametrize("sink", FORMATS)
def test_answers_are_used_again(sink, fields, tmp_path):
    rows = numbers()
    path = source(tmp_path, "parquet", rows)
    fields = {"reuse": "previous", **fields}
    assert_same(DOUBLERS, path, tmp_path / f"out.{sink}", **fields)
    rows["value"][7] = 700.0
    path = source(tmp_path, "parquet", rows)

    result = assert_same(DOUBLERS, path, tmp_path / f"out.{sink}", **fields)

    assert result.reused_rows == 49


class Reusing(Doubler):
    """Has one array for all its outputs, and one list; changes what it was given."""

    def in_columns(self, requests):
        if not hasattr(self, "out"):
            self.out, self.groups, self.notes = np.empty(8), np.empty(8, int), [None] * 8
        number = len(requests)
        value = request_column(requests, "value")
        group = request_column(requests, "group")
        np.multiply(value, 2, out=self.out[:number])
        self.groups[:number] = group
        self.notes[:] = request_column(requests, "note").tolist() + [None] * (8 - number)
        value[:], group[:] = -1, -1
        columns = {
            "value": self.out[:number],
            "batch": self.groups[:number],
            "note": self.notes[:number] if number < 8 else self.notes,
        }
        return ResponseColumns(NumberResponse, requests, columns)


class ReusingForecaster(Forecaster):
    """The same with vectors."""

    def in_columns(self, requests):
        if not hasattr(self, "out"):
            self.out = np.empty((8, 2))
        history = request_column(requests, "history")
        for i, row in enumerate(history):
            self.out[i] = 3 * row[-2:]
            row[:] = -1
        return ResponseColumns(
            sd.contracts.TimeSeriesResponse,
            requests,
            {"mean": self.out[: len(requests)]},
            copied=["horizon", "frequency"],
        )


@pytest.mark.parametrize("seconds", [0.0, 0.004])
@pytest.mark.parametrize("sink", FORMATS)
@pytest.mark.parametrize(
    ("classes", "rows"),
    [((Reusing, DoublerInLists), numbers()), ((ReusingForecaster, ForecasterInLists), series())],
)
def test_a_model_may_use_its_arrays_again(classes, rows, sink, seconds, tmp_path):
    for suffix in FORMATS:
        path = source(tmp_path, suffix, rows)
        assert_same(classes, path, tmp_path / f"out.{sink}", {"seconds": seconds}, keep=["shop"])


@pytest.mark.parametrize("sink", FORMATS)
@pytest.mark.parametrize("fields", [{}, {"keep": ["shop"]}, {"batch_size": 7}])
def test_so_have_stages_that_end_in_columns(sink, fields, tmp_path):
    for suffix in FORMATS:
        path, classes = source(tmp_path, suffix, numbers()), (Staged, StagedInLists)
        assert_same(classes, path, tmp_path / f"out.{sink}", **fields)
        model = {"fail_on": [13.0, 49.0], "memory_rows": 5}
        result = assert_same(
            classes, path, tmp_path / f"bad.{sink}", model, on_error="record", **fields
        )
        assert result.error_rows == 2
