"""Parquet sinks: the same file whatever parts came when, wherever it is."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sheaf_dagster import SinkError
from sheaf_dagster.storage import LineWriter, Location, Sink, read_lines, store_at
from sheaf_dagster.storage.formats import Table, packed, table_join
from sheaf_dagster.storage.formats.parquet import Parquet

BASE = pa.schema([("id", pa.string()), ("vectors", pa.list_(pa.list_(pa.float64())))])
TABLE = Table(Parquet(), BASE.serialize().to_pybytes())
UNKNOWN = pa.list_(pa.null())


def of_width(width: int) -> pa.DataType:
    return pa.list_(pa.list_(pa.float64(), width))


def part(i: int, vectors: list, type: pa.DataType) -> bytes:
    rows = {"id": pa.array([f"{i}"] * len(vectors)), "vectors": pa.array(vectors, type)}
    return packed(pa.table(rows))


def committed(location: Location, pieces: list[bytes], ahead: list[int] = ()) -> bytes:
    """What a job with these parts writes, that joins the first ones at these times."""
    with Sink(location, TABLE).hold() as held:
        held.open_run("f" * 64, resume=True)
        parts = [
            held.store.write(i, piece, rows=1, error_rows=0, non_finite=0)
            for i, piece in enumerate(pieces)
        ]
        cuts = [0, *sorted({n for n in ahead if n < len(parts)})]
        for start, end in zip(cuts, cuts[1:]):
            held.join_ahead(parts[start:end])
        size = held.commit(parts)
    data = store_at(location).read()
    assert len(data) == size
    return data


PIECES = st.lists(
    st.sampled_from(
        [
            ([[[1.0, 2.0]]], of_width(2)),
            ([[[1.0, 2.0], [3.0, None]], None], of_width(2)),
            ([[[1.0, 2.0, 3.0]]], of_width(3)),
            ([[[1.0], []]], pa.list_(pa.list_(pa.float64()))),
            ([None, []], UNKNOWN),
        ]
    ),
    max_size=6,
)


@settings(max_examples=25)
@given(pieces=PIECES, ahead=st.lists(st.integers(1, 6), max_size=3), rows=st.integers(1, 5))
def test_a_file_is_the_same_whatever_was_joined_ahead(pieces, ahead, rows, tmp_path_factory):
    place = Location.of(str(tmp_path_factory.mktemp("tables") / "out.parquet"))
    made = [part(i, *piece) for i, piece in enumerate(pieces)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_join, "_GROUP_ROWS", rows)
        patch.setattr(table_join, "_PIECE_BYTES", 50)

        at_once, bit_by_bit = committed(place, made), committed(place, made, ahead)

    assert at_once == bit_by_bit
    table = pq.read_table(io.BytesIO(at_once))
    assert table.column("vectors").to_pylist() == [v for vectors, _ in pieces for v in vectors]
    widths = {
        t.value_type.list_size for _, t in pieces if pa.types.is_fixed_size_list(t.value_type)
    }
    variable = any(pa.types.is_list(t.value_type) for _, t in pieces)
    fixed = len(widths) == 1 and not variable
    expected = of_width(*widths) if fixed else BASE.field("vectors").type
    assert table.schema.field("vectors").type == expected
    assert {p.name for p in (store_at(place.parent).list_files(2))} == {"out.parquet"}


def test_a_table_is_one_compressed_file_with_statistics_wherever_it_is(place, monkeypatch):
    monkeypatch.setattr(table_join, "_GROUP_ROWS", 3)
    pieces = [part(i, [[[float(i), 2.0]]] * 2, of_width(2)) for i in range(5)]

    data = committed(place.at("deep/out.parquet"), pieces, ahead=[2, 4])

    assert place.names() == ["deep/out.parquet"]
    file = pq.ParquetFile(io.BytesIO(data))
    groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
    assert [g.num_rows for g in groups] == [4, 4, 2]
    assert {g.column(i).compression for g in groups for i in range(2)} == {"ZSTD"}
    assert groups[1].column(1).statistics.max == 3.0
    assert groups[1].column(0).statistics.null_count == 0


def test_large_parts_become_row_groups_of_bounded_size(tmp_path, monkeypatch):
    monkeypatch.setattr(table_join, "_GROUP_BYTES", 3000)
    pieces = [part(i, [[[1.0] * 50]] * 4, of_width(50)) for i in range(6)]
    data = committed(Location.of(str(tmp_path / "out.parquet")), pieces)
    assert pq.ParquetFile(io.BytesIO(data)).num_row_groups == 3


def test_a_damaged_part_is_found_before_the_sink_shows(tmp_path):
    location = Location.of(str(tmp_path / "out.parquet"))
    with Sink(location, TABLE).hold() as held:
        held.open_run("f" * 64, resume=True)
        made = held.store.write(0, part(0, [None], UNKNOWN), rows=1, error_rows=0, non_finite=0)
        stored = held.store.stored(made).store
        stored.write(bytes(made.size))
        with pytest.raises(SinkError, match="was damaged since it was written"):
            held.commit([made])
    assert store_at(location).state() is None


def test_what_was_encoded_goes_with_the_hold_and_parts_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(table_join, "_GROUP_ROWS", 1)
    monkeypatch.setattr(table_join, "_PIECE_BYTES", 1)
    with Sink(Location.of(str(tmp_path / "out.parquet")), TABLE).hold() as held:
        held.open_run("f" * 64, resume=True)
        made = [
            held.store.write(i, part(i, [None], UNKNOWN), rows=1, error_rows=0, non_finite=0)
            for i in range(3)
        ]
        held.join_ahead(made[:2])
        assert list(tmp_path.rglob("piece-*"))
    assert not list(tmp_path.rglob("piece-*"))
    with Sink(Location.of(str(tmp_path / "out.parquet")), TABLE).hold() as held:
        assert sorted(held.open_run("f" * 64, resume=True)) == [0, 1, 2]


def test_lines_are_written_as_a_table_of_the_types_that_they_have(place, monkeypatch):
    monkeypatch.setattr("sheaf_dagster.storage.lines._PART_BYTES", 10)
    location = place.at("out.parquet")
    with LineWriter(location) as writer:
        writer.write(b'{"a":1,"b":"x"}\n{"a":null}\n', 2)
        writer.write(b'{"a":1.5,"c":[{"d":true}]}\n', 1)
    table = pq.read_table(io.BytesIO(store_at(location).read()))
    assert table.to_pydict() == {
        "a": [1.0, None, 1.5],
        "b": ["x", None, None],
        "c": [None, None, [{"d": True}]],
    }
    assert [line for _, line in read_lines(location)][1] == b"{}"
    assert writer.size == store_at(location).state().size


@pytest.mark.parametrize(
    "lines", [[b'{"a":1}\n{"a":"x"}\n'], [b'{"a":1}\n', b'{"a":"x"}\n']], ids=["one", "two"]
)
def test_a_field_of_two_types_is_no_column(tmp_path, lines, monkeypatch):
    monkeypatch.setattr("sheaf_dagster.storage.lines._PART_BYTES", 1)
    writer = LineWriter(Location.of(str(tmp_path / "out.parquet")))
    said = r"(?s)Parquet file, (whose values .*one type|which needs one type)"
    with pytest.raises(SinkError, match=said), writer:
        for block in lines:
            writer.write(block, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_no_rows_is_a_table_too(tmp_path):
    with LineWriter(Location.of(str(tmp_path / "out.parquet"))):
        pass
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 0
