"""A further kind of tables is one class: what jobs and assets do with Parquet they do with it."""

from __future__ import annotations

import dagster as dg
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import sheaf_dagster as sd
from sheaf_dagster import BatchRunner, BatchSpec
from sheaf_dagster.storage import Location, read_lines
from sheaf_dagster.storage.formats.kinds import KINDS
from tests.definitions.rows import run, taking
from tests.toys import doubler


class Stream:
    """Streams of Arrow's own format."""

    name = "stream"
    suffixes = (".arrows",)

    def open(self, file):
        return Opened(file)

    def read(self, file):
        return pa.ipc.open_stream(file).read_all()

    def writer(self, file, schema):
        return pa.ipc.new_stream(file, schema)


class Opened:
    def __init__(self, file):
        reader = pa.ipc.open_stream(file)
        self.schema = reader.schema
        self._batches = [*reader]
        self.rows = sum(batch.num_rows for batch in self._batches)

    def batches(self):
        yield from self._batches

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._batches.clear()


@pytest.fixture(autouse=True)
def streams():
    KINDS.append(kind := Stream())
    yield
    KINDS.remove(kind)


ROWS = pa.table(
    {
        "model_name": ["m"] * 30,
        "amount": [float(i) for i in range(30)],
        "shop": pa.array([*"abc"] * 10).dictionary_encode(),
    }
)


def write(table, path) -> None:
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)


def spec(source, sink, **fields) -> BatchSpec:
    how = {"columns": {"value": "amount"}, "keep": ["shop"], "on_error": "record"}
    return BatchSpec(
        source=str(source), sink=str(sink), batch_size=4, compute="local", **{**how, **fields}
    )


def test_a_job_reads_and_writes_it_as_it_does_parquet(tmp_path):
    write(ROWS, tmp_path / "in.arrows")
    pq.write_table(ROWS, tmp_path / "in.parquet")
    runner = BatchRunner(doubler(fail_on=7.0), on_progress=None)
    results = [
        runner.run(spec(tmp_path / f"in.{suffix}", tmp_path / f"out.{suffix}"))
        for suffix in ("arrows", "parquet")
    ]

    found = pa.ipc.open_stream((tmp_path / "out.arrows").read_bytes()).read_all()

    assert found.to_pylist() == pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert found.schema == pq.read_table(tmp_path / "out.parquet").schema
    assert found.column("value").to_pylist()[:9] == [0, 2, 4, 6, 8, 10, 12, None, 16]
    assert results[0].error_rows == results[1].error_rows == 1
    assert results[0].fingerprint != results[1].fingerprint
    lines = [*read_lines(Location.of(str(tmp_path / "out.arrows")))]
    assert lines == [*read_lines(Location.of(str(tmp_path / "out.parquet")))]


def test_its_answers_are_reused(tmp_path):
    write(ROWS, tmp_path / "in.arrows")
    job = spec(tmp_path / "in.arrows", tmp_path / "out.arrows", reuse="previous")
    runner = BatchRunner(doubler(), on_progress=None)
    runner.run(job)
    write(ROWS.slice(1), tmp_path / "in.arrows")

    assert runner.run(job).reused_rows == 29


def test_what_is_wrong_with_it_is_named(tmp_path):
    source = tmp_path / "in.arrows"
    job = spec(source, tmp_path / "out.arrows")
    runner = BatchRunner(doubler(), on_progress=None)
    write(ROWS.set_column(1, "amount", [["no"] * 30]), source)
    with pytest.raises(sd.InputValidationError, match=r"row 1, column 'amount', field 'value'"):
        runner.run(job)
    source.write_bytes(source.read_bytes()[:100])
    with pytest.raises(sd.SourceError, match=r"in.arrows can't be read as a stream file"):
        runner.run(job)
    write(ROWS.drop_columns(["amount"]), source)
    with pytest.raises(sd.SourceError, match=r"no column 'amount'"):
        runner.run(job)


@pytest.mark.parametrize("wanted", [pa.Table, pl.LazyFrame, list[dict]], ids=str)
def test_an_asset_takes_it_and_leaves_it(tmp_path, wanted):
    seen: list = []

    @dg.asset(metadata={"sheaf_dagster/sink": "{root}/in.arrows"})
    def rows() -> pa.Table:
        return ROWS

    numbers = sd.build_batch_inference_asset(
        key="numbers",
        deps=[rows],
        source="{root}/in.arrows",
        sink="{root}/numbers.arrows",
        batch=sd.BatchOptions(compute="local", columns={"value": "amount"}),
    )

    result = run(tmp_path, rows, numbers, taking(wanted, seen))

    table = seen[0].collect().to_arrow() if wanted is pl.LazyFrame else seen[0]
    values = [r["value"] for r in (table if wanted == list[dict] else table.to_pylist())]
    assert values == [2.0 * i for i in range(30)]
    (made,) = result.asset_materializations_for_node("numbers")
    columns = {c.name: c.type for c in made.metadata["dagster/column_schema"].value.columns}
    assert columns["value"] == "double"
    assert "preview" in made.metadata
