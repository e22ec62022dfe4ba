"""Jobs whose sinks are tables keep every promise that those with lines keep."""

from __future__ import annotations

import math
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import sheaf_dagster as sd
from sheaf_dagster import (
    BatchRunner,
    ModelBackend,
    ModelSpec,
    PredictError,
    SpecError,
    TooManyErrorsError,
)
from sheaf_dagster.batch.rows.sample import sample_output
from sheaf_dagster.contracts import EmbeddingResponse
from sheaf_dagster.storage import Location, read_lines
from tests.batch.table_jobs import job, run
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
