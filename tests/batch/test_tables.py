"""Jobs whose sinks are tables keep every promise that those with lines keep."""

from __future__ import annotations

import datetime as dt
import math
from decimal import Decimal
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sheaf_dagster as sd
from sheaf_dagster import (
    BatchRunner,
    BatchSpec,
    ClusterConfig,
    ModelBackend,
    ModelSpec,
    PredictError,
    SourceError,
    SpecError,
    TooManyErrorsError,
)
from sheaf_dagster.batch.rows.sample import sample_output
from sheaf_dagster.contracts import EmbeddingResponse
from sheaf_dagster.storage import Location, read_lines
from sheaf_dagster.storage.formats import plain_type
from tests.conftest import read_rows
from tests.toys import Doubler, NumberRequest, NumberResponse, doubler


class Lengths(ModelBackend):
    """Embeds texts by their length."""

    model_type = "embedding"

    def __init__(self, dim: int = 3) -> None:
        self.dim = dim

    def load(self) -> None:
        pass

    def predict(self, request):
        vectors = [[float(len(text)), 0.5, math.cos(0)] for text in request.texts]
        return EmbeddingResponse(
            request_id=request.request_id,
            model_name=request.model_name,
            embeddings=vectors,
            dim=self.dim,
        )


def embedder(**kwargs) -> ModelSpec:
    return ModelSpec(
        name="e",
        model_type="embedding",
        backend="tests.batch.test_tables:Lengths",
        backend_kwargs=kwargs,
    )


def texts(tmp_path: Path, rows: int) -> str:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(f'{{"model_name":"m","texts":["a {i}","b"]}}\n' for i in range(rows)))
    return str(path)


def job(source: str | list[str], sink: Path, **fields) -> BatchSpec:
    return BatchSpec(
        source=source, sink=str(sink), **{"batch_size": 4, "compute": "local", **fields}
    )


def run(spec: BatchSpec, model=None, **cluster):
    return BatchRunner(model or doubler(), ClusterConfig(**cluster), on_progress=None).run(spec)


def test_a_table_has_the_rows_and_the_counts_of_the_lines(write_rows, tmp_path):
    source = write_rows([*range(50), 1e308, 7.0])
    fields = {"on_error": "record", "bucket_by": "group"}
    model = doubler(fail_on=7.0)
    lines, table = (
        run(job(source, tmp_path / name, **fields), model) for name in ("a.jsonl", "a.parquet")
    )

    columns = pq.read_table(tmp_path / "a.parquet")

    assert columns.schema.names[0] == "request_id"
    assert columns.schema.field("value").type == pa.float64()
    assert columns.column("value").to_pylist()[:9] == [0.0, 2, 4, 6, 8, 10, 12, None, 16]
    assert columns.column("error_type").to_pylist()[6:8] == [None, "ValueError"]
    assert columns.column("error_message")[7].as_py() == "cannot double 7"
    assert columns.column("value")[50].as_py() is None
    read = [orjson.loads(line) for _, line in read_lines(Location.of(table.sink))]
    assert read == read_rows(lines.sink)
    assert (table.error_rows, table.non_finite) == (lines.error_rows, lines.non_finite) == (2, 1)
    assert table.output_bytes == (tmp_path / "a.parquet").stat().st_size
    sample = sample_output(model, job(source, tmp_path / "a.parquet"))
    assert (sample.in_order, sample.compared) == (True, 52)


class Formed(NumberRequest):
    """A request whose error rows have forms of their own."""

    model_type: str = "formed"

    def error_record(self, error):
        return FORMS[int(self.value)]


class FormedDoubler(Doubler):
    """Fails on values for which there is a form."""

    model_type = "formed"

    def batch_predict(self, requests):
        if any(r.value < len(FORMS) for r in requests):
            raise ValueError("there is a form for it")
        return super().batch_predict(requests)


FORMS = [
    {"why": "because"},
    {"error": "no"},
    {"request_id": "r", "error": {"type": "E", "message": "m", "code": 5}},
    {"error": {"type": 1, "message": "m"}},
    {"note": "n", "value": "no number", "shop": "B"},
    ["no object"],
]


@pytest.mark.parametrize("keep", [[], ["shop"]])
@pytest.mark.usefixtures("own_contracts")
def test_an_error_row_of_any_form_is_read_as_its_line(write_rows, tmp_path, keep):
    sd.register_contract("formed", Formed, NumberResponse)
    forms = FORMS[: len(FORMS) - len(keep)]  # fields are kept beside those of an object
    source = write_rows([*range(len(forms)), 9], model_type="formed", shop="A")
    model = doubler().model_copy(
        update={"model_type": "formed", "backend": f"{__name__}:FormedDoubler"}
    )

    lines, table = (
        run(job(source, tmp_path / f"out.{suffix}", on_error="record", keep=keep), model)
        for suffix in ("jsonl", "parquet")
    )

    read = [orjson.loads(line) for _, line in read_lines(Location.of(table.sink))]
    assert read == read_rows(lines.sink)
    assert lines.error_rows == table.error_rows == len(forms)
    answers = pq.read_table(table.sink).column("value").to_pylist()
    assert answers[-1] == 18.0


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


DAY = dt.date(2026, 11, 27)
MOMENT = dt.datetime(2026, 11, 27, 1, 2, 3)


def tables(tmp_path: Path, *columns: pa.Array) -> list[str]:
    """A file of each column ``k``."""
    paths = [str(tmp_path / f"{i}.parquet") for i in range(len(columns))]
    for path, column in zip(paths, columns, strict=True):
        rows = len(column)
        table = {"model_name": ["m"] * rows, "value": [1.0] * rows, "k": column}
        pq.write_table(pa.table(table), path)
    return paths


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


def lines(tmp_path: Path, *kept: object) -> str:
    """Rows of which each has a field ``k``."""
    path = tmp_path / "in.jsonl"
    rows = [{"model_name": "m", "value": 1.0, "k": k} for k in kept]
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        ([1] * 4 + [2, "x"] * 2, "in.jsonl, line 6: keep: field 'k' can't be a column"),
        ([1, *"x" * 7], "in.jsonl, line 2: keep: field 'k' can't be a column"),
        ([1] * 4 + ["x"], "type int64 in .* from line 1 on, but of type string in .* from line 5 on"),
        ([{"a": 1}] * 8 + [{"a": [1]}], "of type struct<a: int64> in .* from line 9 on"),
        ([True] * 4 + [None] * 4 + [1], "type bool in .* from line 1 on, but of type int64 in"),
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


@pytest.mark.ray
def test_all_modes_write_the_same_bytes(ray_cluster, write_rows, tmp_path):
    source = write_rows([float(i % 13) for i in range(300)])
    written = []
    for engine, mode in (
        ("auto", {"compute": "local"}),
        ("ray_core", {"compute": "tasks"}),
        ("ray_core", {"compute": "actors", "num_actors": 2}),
    ):
        spec = job(source, tmp_path / "out.parquet", bucket_by="value", **mode)
        run(spec, doubler(num_cpus=0.5), engine=engine)
        written.append((tmp_path / "out.parquet").read_bytes())
    assert written == written[:1] * 3
    values = pq.read_table(tmp_path / "out.parquet").column("value").to_pylist()
    assert values == [2.0 * (i % 13) for i in range(300)]


def test_a_job_that_failed_goes_on_with_its_parts_and_an_unchanged_one_is_known(
    write_rows, tmp_path
):
    source, sink = write_rows(list(range(40))), tmp_path / "out" / "out.parquet"
    model = doubler(fail_on=30.0)
    with pytest.raises(PredictError, match="line 31"):
        run(job(source, sink), model)

    again = run(job(source, sink, max_error_rows=1, on_error="record"), model)
    runner = BatchRunner(model, on_progress=None)
    spec = job(source, sink, max_error_rows=1, on_error="record")

    assert again.error_rows == 1
    assert [p.name for p in sink.parent.iterdir()] == ["out.parquet"]
    assert runner.fingerprint(spec) == again.fingerprint
    narrow = job(source, sink, on_error="record", float_type="float32")
    assert runner.fingerprint(narrow) != again.fingerprint


def test_too_many_error_rows_of_a_table_are_named(write_rows, tmp_path):
    spec = job(
        write_rows(list(range(1, 20))), tmp_path / "o.parquet", on_error="record", max_error_rows=2
    )
    with pytest.raises(TooManyErrorsError, match=r"line 5: ValueError: cannot double this"):
        run(spec, doubler(fail_every=5))
    assert not (tmp_path / "o.parquet").exists()


def test_an_answer_that_no_row_of_a_table_can_hold_is_named(tmp_path):
    source = texts(tmp_path, 2)
    spec, model = job(source, tmp_path / "o.parquet"), embedder(dim=2**70)

    with pytest.raises(PredictError, match="line 1: .* can't be written as a row of a table; fix"):
        run(spec, model)
    result = run(spec.model_copy(update={"on_error": "record"}), model)

    assert result.error_rows == 2
    assert pq.read_table(spec.sink).column("error_type").to_pylist() == ["OverflowError"] * 2


@pytest.mark.parametrize("rows", [0, 3])
def test_embeddings_have_the_width_that_all_rows_have(tmp_path, rows):
    source = texts(tmp_path, rows)
    spec = job(source, tmp_path / "o.parquet", float_type="float32")

    run(spec, embedder())

    column = pq.read_table(spec.sink).column("embeddings")
    vector = pa.list_(pa.float32(), 3) if rows else pa.list_(pa.float32())
    assert column.type == pa.list_(vector)
    assert column.to_pylist() == [[[3.0, 0.5, 1.0], [1.0, 0.5, 1.0]]] * rows


def test_float32_goes_with_a_table(tmp_path):
    with pytest.raises(SpecError, match="float_type='float32' works only with a Parquet sink"):
        run(job("in.jsonl", tmp_path / "out.jsonl", float_type="float32"))


def test_a_kept_field_that_answers_have_is_named_as_with_lines(write_rows, tmp_path):
    with pytest.raises(SpecError, match="keep: 'value' is a field of NumberResponse itself"):
        run(job(write_rows([1]), tmp_path / "out.parquet", keep=["value"]))


def test_fields_of_the_rows_and_kept_answers_are_columns_as_they_are_fields(write_rows, tmp_path):
    path = Path(write_rows(list(range(1, 21)), group=3, price=1.5))
    text = path.read_text().splitlines()
    path.write_text("\n".join(line.replace(', "price": 1.5', "") for line in text[:9]) + "\n")
    with path.open("a") as f:
        f.write("\n".join(text[9:]))
    fields = {"keep": ["price", "tag"], "on_error": "record", "bucket_by": "group"}
    jobs = [job(str(path), tmp_path / name, **fields) for name in ("o.jsonl", "o.parquet")]

    def read(sink: str) -> list[dict]:
        return [orjson.loads(line) for _, line in read_lines(Location.of(sink))]

    for spec in jobs:
        run(spec, doubler(fail_every=5))

    table = pq.read_table(jobs[1].sink)
    assert table.schema.field("price").type == pa.float64()
    assert table.column("price").to_pylist() == [None] * 9 + [1.5] * 11
    assert read(jobs[1].sink) == read(jobs[0].sink)
    again = [run(spec.model_copy(update={"only": "failed"}), doubler()) for spec in jobs]
    assert [(r.reused_rows, r.error_rows) for r in again] == [(16, 0)] * 2
    assert read(jobs[1].sink) == read(jobs[0].sink)
