"""What assets may return, and the file that becomes of it."""

from __future__ import annotations

import dataclasses
import datetime
import gzip
from zoneinfo import ZoneInfo

import dagster as dg
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import zstandard

from tests.conftest import read_rows
from tests.definitions.rows import failure, returning, row, run, taking
from tests.toys import NumberRequest

VALUES = [1.0, float("nan"), 3.5]


@dataclasses.dataclass
class Point:
    value: float


@pytest.mark.parametrize(
    "obj",
    [
        pytest.param([{"value": v} for v in VALUES], id="dictionaries"),
        pytest.param([Point(v) for v in VALUES], id="dataclasses"),
        pytest.param(lambda _: dg.Output({"value": v} for v in VALUES), id="generator"),
        pytest.param(pd.DataFrame({"value": VALUES}), id="pandas"),
        pytest.param(pl.DataFrame({"value": VALUES}), id="polars"),
        pytest.param(pl.LazyFrame({"value": VALUES}), id="polars query"),
        pytest.param(pa.table({"value": VALUES}), id="arrow"),
        pytest.param(pa.record_batch({"value": VALUES}), id="arrow batch"),
        pytest.param(pa.array([{"value": v} for v in VALUES]), id="arrow structs"),
        pytest.param(
            np.array([(v,) for v in VALUES], dtype=[("value", float)]), id="numpy records"
        ),
        pytest.param(
            lambda _: iter([pd.DataFrame({"value": [v]}) for v in VALUES]), id="iterator of tables"
        ),
    ],
)
def test_whatever_holds_rows_becomes_the_same_file(obj, tmp_path):
    numbers = returning(obj)

    run(tmp_path, numbers)

    assert (tmp_path / "numbers.jsonl").read_bytes() == (
        b'{"value":1.0}\n{"value":null}\n{"value":3.5}\n'
    )
    assert [p.name for p in tmp_path.iterdir()] == ["numbers.jsonl"]


def test_cells_of_tables_become_json(tmp_path):
    table = pd.DataFrame(
        {
            "at": [pd.Timestamp("2026-01-01T12:00"), pd.NaT],
            "history": [[1, 2], [3.5, float("nan")]],
            "count": pd.array([1, None], dtype="Int64"),
            "nested": [{"a": {"b": {1}}}, None],
        }
    )

    run(tmp_path, returning(table))

    assert read_rows(tmp_path / "numbers.jsonl") == [
        {"at": "2026-01-01T12:00:00", "history": [1, 2], "count": 1, "nested": {"a": {"b": [1]}}},
        {"at": None, "history": [3.5, None], "count": None, "nested": None},
    ]


@pytest.mark.parametrize("unit", ["D", "s", "ms", "us", "ns"])
def test_a_missing_date_of_numpy_is_null(unit, tmp_path):
    dates = np.array(["2024-05-01", "NaT"], dtype=f"datetime64[{unit}]")
    rows = [
        {"at": dates, "one": dates[1], "nested": [{"at": dates[:1]}]},
        {"at": dates.reshape(1, 2)},
    ]

    run(tmp_path, returning(rows))

    day = "2024-05-01T00:00:00"
    assert read_rows(tmp_path / "numbers.jsonl") == [
        {"at": [day, None], "one": None, "nested": [{"at": [day]}]},
        {"at": [[day, None]]},
    ]


def test_times_lose_no_digit(tmp_path):
    old = datetime.datetime(1880, 1, 1, tzinfo=ZoneInfo("Europe/Berlin"))
    rows = [{"at": [datetime.time(0, 0, 0, 10_000), old, datetime.date(2026, 1, 1)]}]

    run(tmp_path, returning(rows))

    assert read_rows(tmp_path / "numbers.jsonl") == [
        {"at": ["00:00:00.010000", "1880-01-01T00:00:00+00:53:28", "2026-01-01"]}
    ]


def test_numbers_of_numpy_are_written_as_they_are(tmp_path):
    rows = [
        {
            "moment": np.datetime64("2024-05-01T12:00:00.123456789"),
            "single": np.float32(0.1),
            "singles": np.array([0.1, np.nan, np.inf], dtype=np.float32),
            "every_second": np.arange(6)[::2],
            "big_endian": np.arange(2, dtype=">i4"),
            "flag": np.bool_(True),
            "largest": np.uint64(2**64 - 1),
            "masked": np.ma.array([1, 2], mask=[False, True]),
        }
    ]

    run(tmp_path, returning(rows))

    assert read_rows(tmp_path / "numbers.jsonl") == [
        {
            "moment": "2024-05-01T12:00:00.123456789",
            "single": 0.1,
            "singles": [0.1, None, None],
            "every_second": [0, 2, 4],
            "big_endian": [0, 1],
            "flag": True,
            "largest": 2**64 - 1,
            "masked": [1, None],
        }
    ]


def test_requests_give_the_same_bytes_at_every_run(tmp_path):
    def requests(_):
        return [NumberRequest(model_name="m", value=v) for v in (1, 2)]

    run(tmp_path, returning(requests))
    first = (tmp_path / "numbers.jsonl").read_bytes()
    run(tmp_path, returning(requests))

    assert (tmp_path / "numbers.jsonl").read_bytes() == first
    assert read_rows(tmp_path / "numbers.jsonl")[0] == {**row(1.0), "group": 0, "note": None}


@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_a_ready_file_is_taken_over_and_compressed(compression, tmp_path):
    ready = tmp_path / "ready.jsonl"
    ready.write_bytes(b'\xef\xbb\xbf{"value":1}\r\n\n{"value":2}')
    seen: list = []

    run(tmp_path, returning(ready), taking(list[dict], seen), compression=compression)

    stored = (tmp_path / f"numbers.jsonl.{compression}").read_bytes()
    unpack = gzip.decompress if compression == "gz" else zstandard.ZstdDecompressor().decompress
    text = unpack(stored) if compression == "gz" else unpack(stored, max_output_size=100)
    assert text == b'{"value":1}\n{"value":2}\n'
    assert seen == [[{"value": 1}, {"value": 2}]]


@pytest.mark.parametrize(
    ("obj", "message"),
    [
        (None, "the asset returned a NoneType; return a list or iterator of rows"),
        ({"value": 1}, "the asset returned one row"),
        ("rows", "the asset returned a str"),
        ([{"a": 1}, {"a": object()}], "row 2: can't be written as JSON: a value is a object"),
        ([{"a": 1}, 3], "row 2: a int is not a row"),
        ([[{"a": 1}]], "row 1: a list is not a row"),
    ],
)
def test_what_is_no_row_is_named(obj, message, tmp_path):
    numbers = returning(obj)

    result = run(tmp_path, numbers, raise_on_error=False)

    assert message in failure(result)
    assert list(tmp_path.rglob("*")) == []


SECONDS = datetime.timedelta(seconds=3)


@pytest.mark.parametrize(
    ("obj", "what", "how"),
    [
        (pl.DataFrame({"d": [SECONDS]}), "column 'd' is of polars' type Duration", "total_seconds"),
        (pl.LazyFrame({"d": [[SECONDS]]}), "column 'd' is of polars' type List(Dur", "total_seconds"),
        (pd.DataFrame({"d": [SECONDS]}), "a value is a Timedelta (field 'd')", "total_seconds"),
        (pa.table({"d": [SECONDS]}), "a value is a timedelta (field 'd')", "total_seconds"),
        ([{"a": 1, "d": SECONDS}], "a value is a timedelta (field 'd')", "total_seconds"),
        ([{"d": np.timedelta64(3, "s")}], "a value is a timedelta64 (field 'd')", "total_seconds"),
        (
            [{"d": np.array([3], dtype="m8[s]")}],
            "a value is a ndarray of timedelta64[s] (field 'd')",
            "total_seconds",
        ),
        (pl.DataFrame({"n": [1]}, {"n": pl.Int128}), "polars' type Int128", ".cast(pl.Int64)"),
        (pl.DataFrame({"n": [{"m": 1}]}, {"n": pl.Struct({"m": pl.Int128})}), "Int128", ".cast("),
        ([{"n": 2**64}], "an integer is beyond 64 bits (field 'n')", "give text"),
        (np.zeros((2, 3)), "a 2-dimensional ndarray of float64", "pandas.DataFrame(values, columns"),
        (np.zeros(2), "a ndarray of float64", "a list of dictionaries"),
        (np.float64(2), "a float64", "a list of dictionaries"),
        (pd.Series([1]), "a Series of int64", "a table with named columns"),
        (pl.Series([1]), "a Series of Int64", "a table with named columns"),
        (pa.array([1]), "a Int64Array of int64", "a table with named columns"),
        ([{"b": b"x"}], "a value is a bytes (field 'b')", "base64"),
        ([{"c": np.array([1j])}], "a ndarray of complex128", ".real and .imag"),
        (pd.DataFrame({"p": pd.period_range("2024", periods=1, freq="M")}), "a Period", ".astype(str)"),
    ],
)  # fmt: skip
def test_what_json_has_no_form_for_is_named_with_how_to_convert_it(obj, what, how, tmp_path):
    result = run(tmp_path, returning(obj), raise_on_error=False)

    assert what in failure(result)
    assert how in failure(result)
    assert list(tmp_path.rglob("*")) == []


IDS = [pd.DataFrame({"id": [1, 2], "v": [3, 4]}), pd.DataFrame({"id": [7, 8]})]


@pytest.mark.parametrize(
    "obj",
    [
        pytest.param(pd.concat(IDS, axis=1), id="pandas"),
        pytest.param(pd.DataFrame([[1, 2]], columns=["id", np.str_("id")]), id="pandas, one of numpy"),
        pytest.param(pa.table([[1], [7]], names=["id", "id"]), id="arrow"),
        pytest.param(pa.record_batch([[1], [7]], names=["id", "id"]), id="arrow batch"),
        pytest.param(
            pa.table({"s": pa.StructArray.from_arrays([[1], [7]], names=["id", "id"])}), id="struct"
        ),
        pytest.param(lambda _: iter([IDS[0], pd.concat(IDS, axis=1)]), id="the second table"),
    ],
)  # fmt: skip
def test_two_columns_of_one_name_are_refused(obj, tmp_path):
    result = run(tmp_path, returning(obj), raise_on_error=False)

    assert "2 columns are named 'id'" in failure(result)
    assert list(tmp_path.rglob("*")) == []


def test_names_that_become_one_name_in_json_are_refused(tmp_path):
    table = run(tmp_path, returning(pd.DataFrame([[1, 2]], columns=[1, "1"])), raise_on_error=False)
    rows = run(tmp_path, returning([{"a": [{1: 2, "1": 3}]}]), raise_on_error=False)
    fine = run(tmp_path, returning(pd.DataFrame([[1, 2]])))

    assert "2 columns are named '1'" in failure(table)
    assert "two keys are written '1'" in failure(rows)
    assert fine.success
    assert read_rows(tmp_path / "numbers.jsonl") == [{"0": 1, "1": 2}]


def test_a_column_of_two_levels_is_named(tmp_path):
    table = pd.DataFrame([[1]], columns=pd.MultiIndex.from_tuples([("mean", "x")]))

    result = run(tmp_path, returning(table), raise_on_error=False)

    assert "column ('mean', 'x') has a name with 2 levels" in failure(result)


def test_invalid_rows_are_named_and_the_old_file_stays(tmp_path):
    run(tmp_path, returning([row(1)]))
    before = (tmp_path / "numbers.jsonl").read_bytes()
    bad = [row(1), row("x"), row(2, group="y"), {**row(3), "model_type": "time_series"}]
    numbers = returning(bad, metadata={"sheaf_dagster/model_type": "number"})

    result = run(tmp_path, numbers, raise_on_error=False)

    message = failure(result)
    assert "3 of 4 rows are invalid" in message
    assert "line 2, field 'value'" in message
    assert "line 3, field 'group'" in message
    assert "line 4, field 'model_type'" in message
    assert (tmp_path / "numbers.jsonl").read_bytes() == before


def test_a_generator_that_breaks_leaves_the_old_file(tmp_path):
    run(tmp_path, returning([row(1)]))

    def breaks(_):
        yield row(2)
        raise RuntimeError("the database went away")

    result = run(tmp_path, returning(lambda c: dg.Output(breaks(c))), raise_on_error=False)

    assert "the database went away" in failure(result)
    assert read_rows(tmp_path / "numbers.jsonl") == [row(1)]
    assert [p.name for p in tmp_path.iterdir()] == ["numbers.jsonl"]


def test_metadata_tell_rows_place_and_preview(tmp_path):
    numbers = returning([row(i) for i in range(9)])

    result = run(tmp_path, numbers, model_type="number")

    (event,) = result.asset_materializations_for_node("numbers")
    metadata = {k: v.value for k, v in event.metadata.items()}
    assert metadata["dagster/row_count"] == 9
    assert metadata["dagster/uri"] == metadata["path"] == str(tmp_path / "numbers.jsonl")
    assert metadata["output_bytes"] == (tmp_path / "numbers.jsonl").stat().st_size
    assert metadata["validation"] == "all 9 rows are valid number requests"
    assert metadata["preview"].count("**value**") == 5


def test_redaction_leaves_rows_out_of_the_preview_and_of_errors(tmp_path):
    good = run(tmp_path, returning([row(1, note="Ada")]), model_type="number", redact_rows=True)
    bad = run(
        tmp_path,
        returning([row("Ada")]),
        model_type="number",
        redact_rows=True,
        raise_on_error=False,
    )

    (event,) = good.asset_materializations_for_node("numbers")
    assert "preview" not in event.metadata
    assert "line 1, field 'value'" in failure(bad)
    assert "Ada" not in failure(bad)
