"""Rows that break their contract and become error rows in their places."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import sheaf_dagster as sd
from sheaf_dagster import BatchRunner
from sheaf_dagster.batch.rows.invalid import lines_in, packed_lines
from sheaf_dagster.contracts import OpenAIBatchRequest, OpenAIBatchResponse
from tests.batch.jobs import here_and_in_workers, leftovers, spec
from tests.conftest import read_rows
from tests.toys import Moody, doubler, shaped

ID = "3a1f6d6e-8b1c-4c7e-9a53-0c8f6f0d2b11"
BAD = {
    3: (f'{{"model_name": "m", "value": "x", "request_id": "{ID}"}}', "field 'value': "),
    5: ('{"model_name": "m", "value": 5', "field '': Invalid JSON"),
    8: ('{"model_name": "m", "value": 8, "model_type": "alien"}', "field 'model_type': "),
    11: ("[1]", ""),
    12: ('{"value": []}', "field 'model_name': Field required (got {"),
}
"""By line: text that is not a row, and what is said of it."""


@pytest.fixture
def source(write_rows):
    """Forty lines: five are no rows, one is blank."""
    path = write_rows(list(range(1, 41)))
    lines = open(path).read().splitlines()
    for number, (text, _) in BAD.items():
        lines[number - 1] = text
    lines[6] = "  "
    open(path, "w").write("\n".join(lines) + "\n")
    return path


def job_of(source, tmp_path, **fields):
    how = {"compute": "local", "batch_size": 4, "on_invalid": "record"}
    return spec(source, tmp_path, **how | fields)


@here_and_in_workers
def test_they_are_named_in_place_and_the_others_are_run(mode, source, tmp_path):
    job = job_of(source, tmp_path, **mode)

    result = BatchRunner(shaped("call")).run(job)

    assert (result.rows, result.output_rows, result.error_rows) == (39, 39, 5)
    assert (result.validation.invalid_rows, result.validation.ok) == (5, False)
    numbers = [n for n in range(1, 41) if n != 7]
    for number, row in zip(numbers, read_rows(job.sink), strict=True):
        if number not in BAD:
            assert row["value"] == 2 * number
            continue
        said = BAD[number][1].replace("field '': ", "")
        assert row["error"]["type"] == "InputValidationError"
        assert row["error"]["message"].startswith(f"line {number}, {said}")
    assert read_rows(job.sink)[2]["request_id"] == ID
    ids = [row["request_id"] for row in read_rows(job.sink)]
    assert len(set(ids)) == 39
    assert leftovers(tmp_path) == ["out.jsonl"]


def test_rows_of_a_table_are_named_by_their_row_and_column(tmp_path):
    pq.write_table(pa.table({"sold": ["1", "x"]}), tmp_path / "in.parquet")
    mapped = {"columns": {"value": "sold"}, "fields": {"model_name": "m"}}
    job = job_of(tmp_path / "in.parquet", tmp_path, **mapped)

    BatchRunner(doubler()).run(job)

    (error,) = [row["error"]["message"] for row in read_rows(job.sink) if "error" in row]
    assert error.startswith("row 2, column 'sold', field 'value': Input should be a valid number")


def test_by_default_they_end_the_job_before_a_model_loads(source, tmp_path):
    job = job_of(source, tmp_path, on_invalid="fail", on_error="record")

    with pytest.raises(sd.InputValidationError, match="5 of 39 rows are invalid"):
        BatchRunner(doubler(fail_load=True)).run(job)

    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("shape", ["stages", "flight"])
@pytest.mark.parametrize("how", [{}, {"bucket_by": "group"}, {"batch_size": 100}])
def test_the_bytes_are_the_same_in_any_shape_and_layout(shape, how, source, tmp_path):
    plain = job_of(source, tmp_path)
    BatchRunner(shaped("call")).run(plain)
    job = plain.model_copy(update={"sink": plain.sink + "2", **how})

    BatchRunner(shaped(shape)).run(job)

    assert open(job.sink).read() == open(plain.sink).read()


@pytest.mark.parametrize("limit", [{"max_error_rows": 4}, {"max_error_fraction": 0.1}])
def test_they_count_under_the_limits_before_a_model_loads(limit, source, tmp_path):
    job = job_of(source, tmp_path, **limit)

    with pytest.raises(sd.TooManyErrorsError) as caught:
        BatchRunner(doubler(fail_load=True)).run(job)

    assert "5 of 39 rows are invalid" in str(caught.value)
    assert f"{source}" in str(caught.value) and "line 3, field 'value'" in str(caught.value)
    assert leftovers(tmp_path) == []


def test_they_count_together_with_rows_that_the_model_fails(source, tmp_path):
    job = job_of(source, tmp_path, on_error="record", max_error_rows=6)

    assert BatchRunner(doubler(fail_on=30)).run(job).error_rows == 6
    with pytest.raises(sd.TooManyErrorsError, match="6 of the"):
        BatchRunner(doubler(fail_on=30)).run(job.model_copy(update={"max_error_rows": 5}))


def test_a_file_of_nothing_else_loads_no_model(write_rows, tmp_path):
    job = job_of(write_rows(["x"] * 100), tmp_path)

    result = BatchRunner(doubler(fail_load=True)).run(job)

    assert (result.error_rows, result.workers) == (100, 0)
    assert all("error" in row for row in read_rows(job.sink))


def test_finished_parts_are_resumed(source, tmp_path):
    (moods := tmp_path / "moods").mkdir()
    (moods / "30").touch()
    model = shaped(Moody, moods=str(moods))
    job = job_of(source, tmp_path)
    with pytest.raises(sd.PredictError):
        BatchRunner(model).run(job)
    (moods / "30").unlink()

    result = BatchRunner(model).run(job)

    assert result.resumed_rows > 8
    whole = job.model_copy(update={"sink": job.sink + "2"})
    BatchRunner(model).run(whole)
    assert open(job.sink).read() == open(whole.sink).read()


def test_values_stay_out_of_error_rows_where_rows_are_redacted(source, tmp_path):
    job = job_of(source, tmp_path)

    BatchRunner(doubler(), redact_rows=True).run(job)

    errors = [row["error"]["message"] for row in read_rows(job.sink) if "error" in row]
    assert len(errors) == 5
    assert not any(value in "".join(errors) for value in ("'x'", "alien", "got"))


def test_unknown_fields_make_error_rows_where_they_are_refused_and_kept_ones_travel(
    write_rows, tmp_path
):
    source = write_rows([1, 2], valve=3)
    with open(source, "a") as f:
        f.write('{"model_name": "m", "value": "x", "sku": "\\ud800", "shop": 1}\n{"sku": 1\n')
    job = job_of(source, tmp_path, strict=True, keep=["sku", "shop"])

    result = BatchRunner(doubler()).run(job)

    rows = read_rows(job.sink)
    assert result.error_rows == 4
    assert "field 'valve': is not a field of NumberRequest" in rows[0]["error"]["message"]
    assert "did you mean 'value'?" in rows[0]["error"]["message"]
    assert [(row["sku"], row["shop"]) for row in rows] == [(None, None)] * 2 + [
        ("?", 1),
        (None, None),
    ]


def test_mended_rows_are_run_and_the_others_kept(source, tmp_path):
    job = job_of(source, tmp_path)
    BatchRunner(shaped("call")).run(job)
    text = open(source).read().replace('"value": "x"', '"value": 3')
    open(source, "w").write(text)

    result = BatchRunner(shaped("call")).run(job.model_copy(update={"only": "failed"}))

    assert (result.error_rows, result.reused_rows) == (4, 34)
    assert read_rows(job.sink)[2]["value"] == 6


def test_a_key_that_is_there_already_makes_an_error_row_of_the_form_of_batch_files(tmp_path):
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    line = {"method": "POST", "url": "/v1/chat/completions", "body": body}
    rows = [{**line, "custom_id": name} for name in "aba"] + [{"custom_id": "c"}]
    source = tmp_path / "in.jsonl"
    source.write_text("\n" + "".join(json.dumps(row) + "\n" for row in rows) + "{\n")
    model = sd.ModelSpec(name="m", model_type="openai_batch", backend=f"{__name__}:Echo")
    job = job_of(source, tmp_path)

    result = BatchRunner(model).run(job)

    answers = [OpenAIBatchResponse.model_validate(row) for row in read_rows(job.sink)]
    assert result.error_rows == 3
    assert [a.custom_id for a in answers] == ["a", "b", "a", "c", ""]
    assert [a.error and a.error.message[:45] for a in answers] == [
        None,
        None,
        "line 4, field 'custom_id': is the same as on ",
        "line 5, field 'url': Field required (got {\"cu",
        "line 6, Invalid JSON: EOF while parsing an ob",
    ]
    assert len({a.id for a in answers}) == 5


class Echo(sd.ModelBackend):
    model_type = "openai_batch"

    def load(self):
        pass

    def predict(self, request: OpenAIBatchRequest):
        return request.answer({"echo": request.custom_id})


@pytest.mark.parametrize("lines", [[], [7], [7, 8, 300], list(range(7, 20_007))])
def test_lines_take_a_bit_each(lines):
    packed = packed_lines(lines, 7)

    assert sorted(lines_in(packed, 7)) == lines
    assert len(packed) <= 2501
