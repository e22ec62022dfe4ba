"""What assets may return, and the file that becomes of it."""

from __future__ import annotations

import dataclasses
import gzip

import dagster as dg
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
        ([{"a": 1}, 3], "row 2: a int is no row"),
        ([[{"a": 1}]], "row 1: a list is no row"),
    ],
)
def test_what_is_no_row_is_named(obj, message, tmp_path):
    numbers = returning(obj)

    result = run(tmp_path, numbers, raise_on_error=False)

    assert message in failure(result)
    assert list(tmp_path.rglob("*")) == []


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
