"""Tables of any columns come back with their answers: as other libraries write them, and drawn."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sheaf_dagster.storage.formats import plain_type
from tests.batch.table_jobs import job, run


def written_by_polars(path: Path) -> None:
    pl = pytest.importorskip("polars")
    moment = dt.datetime(2026, 11, 27, 1, 2, 3, 4)
    columns = {
        "model_name": ["m", "n", "m"],
        "value": [1.0, 2.0, 3.0],
        "category": pl.Series(["a", None, "b"], dtype=pl.Categorical),
        "enum": pl.Series(["a", "b", None], dtype=pl.Enum(["b", "a"])),
        "nested": [[{"a": 1, "b": [moment]}], [], None],
        "moment": pl.Series([moment, None, moment]).dt.replace_time_zone("Europe/Berlin"),
        "wait": pl.Series([2**60 + 1, None, -1], dtype=pl.Duration("ns")),
        "price": pl.Series([Decimal("1.50"), None, Decimal(-1)], dtype=pl.Decimal(20, 2)),
        "large": pl.Series([2**64 - 1, None, 0], dtype=pl.UInt64),
        "hour": [dt.time(1, 2, 3), None, dt.time()],
        "picture": [b"\xff", None, b""],
        "vector": pl.Series([[0.5, 0.1]] * 3, dtype=pl.Array(pl.Float32, 2)),
    }
    pl.DataFrame(columns).write_parquet(path, row_group_size=1, compression="gzip")


def written_by_duckdb(path: Path) -> None:
    pytest.importorskip("duckdb").sql(f"""
        COPY (
            SELECT 'm' AS model_name, n::DOUBLE AS value, uuid() AS id, '{{"a": 1.50}}'::JSON AS text,
                MAP {{n::INTEGER: 'x'}} AS numbered, MAP {{'a': n, 'b': NULL}} AS named,
                {{'a': n, 'b': [DATE '2026-11-27']}} AS struct, 'a'::ENUM('b', 'a') AS enum,
                TIMESTAMPTZ '2026-11-27 01:02:03+01' AS moment, TIME '01:02:03' AS hour,
                TIMESTAMP_NS '2026-11-27 01:02:03.123456789' AS instant, 1.5::DECIMAL(38, 10) AS price,
                '\\xFF'::BLOB AS picture, n::UTINYINT AS small, [1.5, NULL]::FLOAT[] AS list
            FROM range(1, 250) AS numbers(n)
        ) TO '{path}' (FORMAT parquet, PARQUET_VERSION v2, ROW_GROUP_SIZE 100)""")


def written_by_pandas(path: Path) -> None:
    pd = pytest.importorskip("pandas")
    columns = {
        "model_name": ["m", "n"],
        "value": [1.0, 2.0],
        "category": pd.Categorical([None, "a"]),
        "moment": pd.to_datetime(["2026-11-27", None]).tz_localize("Europe/Berlin"),
        "wait": pd.to_timedelta([2**60 + 1, None]),
        "whole": pd.array([2**62 + 1, None], dtype="Int64"),
        "flag": pd.array([None, True], dtype="boolean"),
        "struct": [{"a": 1}, None],
    }
    pd.DataFrame(columns, index=["x", "y"]).to_parquet(path)


@pytest.mark.parametrize("writer", [written_by_polars, written_by_duckdb, written_by_pandas])
def test_what_other_libraries_write_is_kept_as_pyarrow_reads_it(writer, tmp_path):
    writer(tmp_path / "in.parquet")
    table = pq.read_table(tmp_path / "in.parquet")
    kept = [name for name in table.column_names if name not in ("model_name", "value")]
    spec = job(str(tmp_path / "in.parquet"), tmp_path / "out.parquet", keep=kept)

    run(spec)

    found = pq.read_table(spec.sink)
    assert found.column("value").to_pylist() == [2 * v for v in table.column("value").to_pylist()]
    assert found.select(kept).to_pylist() == table.select(kept).to_pylist()
    for name in kept:
        type = table.schema.field(name).type
        assert found.schema.field(name).type == plain_type(type), name
    for reader in ("polars", "duckdb", "pandas"):
        assert read_by(reader, spec.sink, "request_id") == found.column("request_id").to_pylist()


def read_by(library: str, path: str, column: str) -> list[object]:
    """A column as another library reads it, and all others that it must be able to read."""
    module = pytest.importorskip(library)
    if library == "duckdb":
        rows = module.sql(f"SELECT * FROM '{path}'")
        return [row[rows.columns.index(column)] for row in rows.fetchall()]
    return list(module.read_parquet(path)[column])


FINITE = st.floats(-1e300, 1e300)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
KEPT = {
    "count": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "ratio": (pa.float64(), FINITE),
    "narrow": (pa.float32(), st.floats(-(2.0**100), 2.0**100, width=32)),
    "text": (pa.string(), TEXT),
    "flag": (pa.bool_(), st.booleans()),
    "shop": (pa.dictionary(pa.int32(), pa.string()), st.sampled_from(["a", "b\n", "ü"])),
    "day": (pa.date32(), st.dates(dt.date(1, 1, 1))),
    "moment": (pa.timestamp("us"), st.datetimes(dt.datetime(1, 1, 1))),
    "hour": (pa.time64("us"), st.times()),
    "price": (pa.decimal128(12, 2), st.decimals(-(10**9), 10**9, places=2)),
    "parts": (pa.list_(pa.float64()), st.lists(FINITE, max_size=3)),
    "picture": (pa.binary(), st.binary(max_size=5)),
    "wait": (pa.duration("us"), st.timedeltas(dt.timedelta(-90_000), dt.timedelta(90_000))),
    "moments": (pa.list_(pa.timestamp("us")), st.lists(st.datetimes(), max_size=3)),
    "place": (
        pa.struct([("since", pa.date32()), ("price", pa.decimal128(12, 2)), ("ratio", pa.float64())]),
        st.fixed_dictionaries(
            {
                "since": st.none() | st.dates(),
                "price": st.none() | st.decimals(-9, 9, places=2),
                "ratio": st.none() | FINITE,
            }
        ),
    ),
    "named": (
        pa.map_(pa.string(), pa.binary()),
        st.dictionaries(TEXT, st.binary(max_size=3), max_size=3).map(lambda d: [*d.items()]),
    ),
}  # fmt: skip


@st.composite
def tables_of_requests(draw) -> tuple[pa.Table, list[str]]:
    """Rows with other columns beside those that the contract knows."""
    kept = draw(st.lists(st.sampled_from(sorted(KEPT)), unique=True))
    rows = draw(st.integers(0, 12))
    numbers = pa.array(draw(st.lists(FINITE, min_size=rows, max_size=rows)), pa.float64())
    columns = {"model_name": pa.array(["m"] * rows, pa.string()), "value": numbers}
    for name in kept:
        type, values = KEPT[name]
        drawn = draw(st.lists(st.none() | values, min_size=rows, max_size=rows))
        columns[name] = pa.array(drawn, type=type)
    return pa.table(columns), kept


@settings(max_examples=30, deadline=None)
@given(asked=tables_of_requests(), row_group_size=st.integers(1, 9), batch_size=st.integers(1, 5))
def test_any_table_comes_back_with_its_answers(asked, row_group_size, batch_size, tmp_path_factory):
    table, kept = asked
    folder = tmp_path_factory.mktemp("any")
    pq.write_table(table, folder / "in.parquet", row_group_size=row_group_size)
    spec = job(str(folder / "in.parquet"), folder / "out.parquet", keep=kept, batch_size=batch_size)

    run(spec)

    found = pq.read_table(spec.sink)
    values = table.column("value").to_pylist()
    assert found.column("value").to_pylist() == [2 * v for v in values]
    assert found.select(kept).to_pylist() == table.select(kept).to_pylist()
    assert found.select(kept).schema.types == table.select(kept).schema.types
