"""Parquet files are read as the rows that they hold, whoever wrote them and wherever they are."""

from __future__ import annotations

import base64
import datetime as dt
import io
import math
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sheaf_dagster import BatchRunner, BatchSpec, InputValidationError, SourceError
from sheaf_dagster.batch.rows.sample import sample_output
from sheaf_dagster.storage import (
    Location,
    lines_in_chunk,
    read_lines,
    scan_source,
    source_digest,
    store_at,
)
from tests.conftest import ROOT
from tests.toys import doubler


def stored(table: pa.Table, **how) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **how)
    return sink.getvalue()


def rows_of(path: Path, table: pa.Table | None = None, **how) -> list[dict]:
    """What a file's rows say."""
    if table is not None:
        path.write_bytes(stored(table, **how))
    return [orjson.loads(line) for _, line in read_lines(Location.of(str(path)))]


def given_fields(row: dict) -> dict:
    return {name: value for name, value in row.items() if value is not None}


COLUMNS = {
    "integers": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "unsigned": (pa.uint64(), st.integers(0, 2**64 - 1)),
    "floats": (pa.float64(), st.floats(allow_nan=False, allow_infinity=False)),
    "texts": (pa.string(), st.text(st.characters(exclude_categories=["Cs"]), max_size=20)),
    "flags": (pa.bool_(), st.booleans()),
    "codes": (pa.dictionary(pa.int8(), pa.string()), st.sampled_from(["a", "b\n", "ü"])),
    "lists": (pa.list_(pa.float64()), st.lists(st.none() | st.floats(-9, 9), max_size=3)),
}


@st.composite
def tables(draw) -> pa.Table:
    names = draw(st.lists(st.sampled_from(sorted(COLUMNS)), min_size=1, unique=True))
    n = draw(st.integers(0, 40))
    columns = {}
    for name in names:
        type, values = COLUMNS[name]
        columns[name] = pa.array(
            draw(st.lists(st.none() | values, min_size=n, max_size=n)), type=type
        )
    return pa.table(columns)


@settings(max_examples=40, deadline=None)
@given(table=tables(), row_group_size=st.integers(1, 50))
def test_the_rows_of_a_table_are_its_values(table, row_group_size, tmp_path_factory):
    path = tmp_path_factory.mktemp("tables") / "in.parquet"
    found = rows_of(path, table, row_group_size=row_group_size)
    assert found == [given_fields(row) for row in table.to_pylist()]


def test_types_that_json_has_not_are_written_as_the_documentation_says(tmp_path):
    nested = pa.struct([("p", pa.int8()), ("q", pa.list_(pa.struct([("z", pa.binary())])))])
    moment = dt.datetime(2026, 1, 5, 12, 30, 0, 123456)
    columns = {
        "long": pa.array([2**53 + 1]),
        "nan": pa.array([math.nan]),
        "narrow": pa.array([0.1], pa.float32()),
        "price": pa.array([Decimal("12345678901234567890.10")], pa.decimal128(38, 2)),
        "moment": pa.array([moment], pa.timestamp("us")),
        "zoned": pa.array([moment], pa.timestamp("us", "Europe/Berlin")),
        "fine": pa.array([1_600_000_000_123_456_789], pa.timestamp("ns")),
        "day": pa.array([dt.date(2026, 1, 5)]),
        "clock": pa.array([dt.time(1, 2, 3)]),
        "tenths": pa.array([[dt.time(0, 0, 0, 10_000)]]),
        "fine_clock": pa.array([1_000_000_001], pa.time64("ns")),
        "while": pa.array([dt.timedelta(milliseconds=1500)]),
        "bytes": pa.array([b"\x00\xff"]),
        "struct": pa.array([{"p": None, "q": [{"z": b"a"}, None, {"z": None}]}], nested),
        "map": pa.array([[("k", {"p": 1, "q": None})]], pa.map_(pa.string(), nested)),
        "map_of_flags": pa.array([[(True, 1)]], pa.map_(pa.bool_(), pa.int64())),
        "map_of_times": pa.array([[(moment, 1)]], pa.map_(pa.timestamp("us"), pa.int64())),
        "map_of_bytes": pa.array([[(b"ab", 1)]], pa.map_(pa.binary(), pa.int64())),
        "fixed": pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2)),
        "none": pa.array([None], pa.null()),
    }

    (row,) = rows_of(tmp_path / "in.parquet", pa.table(columns))

    assert row.pop("narrow") == pa.scalar(0.1, pa.float32()).as_py()
    assert row == {
        "long": 2**53 + 1,
        "nan": None,
        "price": 12345678901234567890.10,
        "moment": "2026-01-05T12:30:00.123456",
        "zoned": "2026-01-05T13:30:00.123456+01:00",
        "fine": "2020-09-13T12:26:40.123456789",
        "day": "2026-01-05",
        "clock": "01:02:03",
        "tenths": ["00:00:00.010000"],
        "fine_clock": "00:00:01.000000001",
        "while": 1.5,
        "bytes": base64.b64encode(b"\x00\xff").decode(),
        "struct": {"q": [{"z": base64.b64encode(b"a").decode()}, None, {}]},
        "map": {"k": {"p": 1}},
        "map_of_flags": {"true": 1},
        "map_of_times": {"2026-01-05T12:30:00.123456": 1},
        "map_of_bytes": {base64.b64encode(b"ab").decode(): 1},
        "fixed": [1.0, 2.0],
    }
    text = (line for _, line in read_lines(Location.of(str(tmp_path / "in.parquet"))))
    assert b'"price":12345678901234567890.10' in next(text), "with all its digits"


@pytest.mark.parametrize("writer", ["pandas", "polars", "duckdb", "many small row groups"])
def test_files_of_other_writers_are_read(writer, tmp_path):
    path = tmp_path / "in.parquet"
    data = {"sku": ["a", "b", None], "sales": [[1.0, 2.0], [], [3.0]], "n": [1, 2, 3]}
    if writer == "pandas":
        pytest.importorskip("pandas").DataFrame(data).to_parquet(path)
    elif writer == "polars":
        pytest.importorskip("polars").DataFrame(data).write_parquet(path)
    elif writer == "duckdb":
        table = pa.table(data)
        pytest.importorskip("duckdb").from_arrow(table).write_parquet(str(path))
    else:
        pq.write_table(pa.table(data), path, row_group_size=1, compression="gzip")

    rows = [dict(zip(data, values)) for values in zip(*data.values())]
    assert rows_of(path) == [given_fields(row) for row in rows]


def test_a_column_that_pyarrow_cant_read_is_said_to_be_that(tmp_path):
    pl = pytest.importorskip("polars")
    column = pl.Series([2**100], dtype=pl.Int128)
    pl.DataFrame({"huge": column}).write_parquet(tmp_path / "in.parquet")

    with pytest.raises(SourceError, match="more than 64 bits.*columns that pyarrow can read"):
        rows_of(tmp_path / "in.parquet")


def test_a_table_is_scanned_wherever_it_is_and_known_by_its_stored_bytes(place):
    data = stored(pa.table({"v": list(range(1000))}), row_group_size=300)
    location = place.put("in.parquet", data)

    source = scan_source([location], 7, row_limit=900, spool=place.at("spool"))

    text = store_at(source.files[0].text)
    found = [
        (number, orjson.loads(line)["v"])
        for c in source.chunks
        for number, line in lines_in_chunk(c, text.read_range(c.start, c.end))
    ]
    assert found == [(v + 1, v) for v in range(900)]
    assert source.digest == source_digest(location.uri, place.options)
    assert (source.rows, source.stored_bytes) == (900, len(data))


TABLE = stored(pa.table({"v": [1, 2, 3] * 1000}))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "size is 0 bytes"),
        (TABLE[:-30], "not a parquet file"),
        (TABLE[:200] + bytes(len(TABLE) - 500) + TABLE[-300:], "after row"),
        (b'{"v": 1}\n' * 9, "not a parquet file"),
        (b"PARE" + TABLE[4:-4] + b"PARE", "ncrypted"),
        (
            stored(pa.table([[1], [2]], names=["v", "v"])),
            r"several columns with the same name \(v\)",
        ),
    ],
    ids=["empty", "cut short", "overwritten", "JSON lines", "encrypted", "two of one name"],
)
def test_a_file_that_is_no_table_of_rows_is_named_with_what_is_wrong(tmp_path, data, said):
    (tmp_path / "in.parquet").write_bytes(data)
    location = Location.of(f"{tmp_path}/in.parquet")
    with pytest.raises(SourceError, match=said) as e:
        rows_of(tmp_path / "in.parquet")
    assert location.uri in str(e.value)
    with pytest.raises(SourceError, match=said) as e:
        scan_source([location], 4, spool=Location.of(f"{tmp_path}/spool"))
    assert str(e.value).count(location.uri) == 1


def test_a_text_that_is_none_is_refused_before_a_row_is_validated(tmp_path):
    bad = pa.array([b"fine", b"\xff\xfe"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"note": bad}), tmp_path / "in.parquet")
    location = Location.of(f"{tmp_path}/in.parquet")
    with pytest.raises(SourceError, match=r"in.parquet can't be read .*(UTF|utf)"):
        scan_source([location], 4, spool=Location.of(f"{tmp_path}/spool"))


def scanned_rows(folder: Path) -> list[dict]:
    """What workers read of a folder of tables."""
    source = scan_source([Location.of(str(folder))], 2, spool=Location.of(f"{folder}-spool"))
    return [
        orjson.loads(line)
        for chunk in source.chunks
        for _, line in lines_in_chunk(
            chunk, store_at(source.files[chunk.file].text).read_range(chunk.start, chunk.end)
        )
    ]


def test_files_of_a_folder_may_have_other_columns_in_another_order(tmp_path):
    folder = tmp_path / "tables"
    folder.mkdir()
    drifting = [
        pa.table({"v": [1, 2], "note": ["a", None]}),
        pa.table({"note": pa.array(["b"]).dictionary_encode(), "v": [3.5]}),
        pa.table({"v": pa.array([4], pa.int8()), "more": [[{"x": 1, "y": None}]]}),
        pa.table({"v": pa.array([], pa.int64())}),
        pa.table({"note": pa.array(["c"], pa.large_string()), "v": pa.array([5], pa.uint64())}),
    ]
    for i, table in enumerate(drifting):
        pq.write_table(table, folder / f"{i}.parquet")

    assert scanned_rows(folder) == [
        {"v": 1, "note": "a"},
        {"v": 2},
        {"note": "b", "v": 3.5},
        {"v": 4, "more": [{"x": 1}]},
        {"note": "c", "v": 5},
    ]


def test_columns_of_every_width_and_of_codes_are_their_values(tmp_path):
    folder = tmp_path / "tables"
    folder.mkdir()
    columns = {
        "view": pa.array(["a", None], pa.string_view()),
        "codes": pa.array([7, 9]).dictionary_encode(),
        "lists": pa.array([[["x"], None], []], pa.large_list(pa.list_(pa.large_string()))),
        "half": pa.array([0.5, 2.0], pa.float16()),
        "wide": pa.array([Decimal(10**50), None], pa.decimal256(60, 0)),
    }
    pq.write_table(pa.table(columns), folder / "all.parquet")
    plain = {name: column for name, column in columns.items() if name != "wide"}
    pq.write_table(pa.table(plain), folder / "plain.parquet")
    first = {"view": "a", "codes": 7, "lists": [["x"], None], "half": 0.5}
    second = {"codes": 9, "lists": [], "half": 2.0}

    assert scanned_rows(folder) == [{**first, "wide": 1e50}, second, first, second]


def test_a_large_row_group_is_not_held_at_once(tmp_path):
    path = tmp_path / "in.parquet"
    rng = pa.array([bytes([i % 251]) * 40_000 for i in range(1000)])
    pq.write_table(pa.table({"b": rng}), path, use_dictionary=False, write_batch_size=16)
    del rng
    before, most, rows = pa.total_allocated_bytes(), 0, 0
    for _ in read_lines(Location.of(str(path))):
        rows += 1
        most = max(most, pa.total_allocated_bytes() - before)
    assert rows == 1000
    assert pq.read_metadata(path).num_row_groups == 1
    assert most < 20e6


def numbers(path: Path, values: list) -> str:
    table = {"model_name": ["m"] * len(values), "value": values}
    pq.write_table(pa.table(table), path, row_group_size=5)
    return str(path)


def test_a_job_answers_a_table_as_it_answers_the_same_rows_as_json_lines(tmp_path, write_rows):
    runner = BatchRunner(doubler(), on_progress=None)
    values = [float(i) for i in range(40)]
    specs = [
        BatchSpec(source=source, sink=str(tmp_path / sink), batch_size=4, compute="local")
        for source, sink in (
            (numbers(tmp_path / "in.parquet", values), "table.jsonl"),
            (write_rows(values), "lines.jsonl"),
        )
    ]

    table, lines = [list(runner.run_many([spec]))[0].result for spec in specs]

    answers = [
        [orjson.loads(line)["value"] for line in Path(spec.sink).read_bytes().splitlines()]
        for spec in specs
    ]
    assert answers[0] == answers[1] == [2 * v for v in values]
    assert (table.rows, table.chunks) == (lines.rows, lines.chunks)
    assert {p.name for p in tmp_path.iterdir()} == {
        "in.parquet",
        "in.jsonl",
        "table.jsonl",
        "lines.jsonl",
    }
    sample = sample_output(doubler(), specs[0], 10)
    assert (sample.compared, sample.in_order) == (10, True)
    assert sample.pairs[3][0]["value"] == 3.0


def test_a_row_of_a_table_that_breaks_the_contract_is_named(tmp_path):
    source = numbers(tmp_path / "in.parquet", [1.0] * 12 + [None])
    spec = BatchSpec(source=source, sink=str(tmp_path / "out.jsonl"), compute="local")
    with pytest.raises(InputValidationError, match=r"row 13, column 'value': Field"):
        BatchRunner(doubler(), on_progress=None).run(spec)
    assert [p.name for p in tmp_path.iterdir()] == ["in.parquet"]


def test_a_table_becomes_json_lines_without_pandas(tmp_path):
    source, sink = numbers(tmp_path / "in.parquet", [1.0, 2.0]), str(tmp_path / "out.jsonl")
    code = (
        "import sys\nfrom sheaf_dagster import BatchRunner, BatchSpec\n"
        "from tests.toys import doubler\n"
        f"spec = BatchSpec(source={source!r}, sink={sink!r}, compute='local')\n"
        "BatchRunner(doubler(), on_progress=None).run(spec)\n"
        "print('pandas' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
