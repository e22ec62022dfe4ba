"""Contracts without ``request_id`` and ``model_type`` run like any other."""

from __future__ import annotations

import json

import pytest

from sheaf_dagster import (
    BatchRunner,
    BatchSpec,
    InputValidationError,
    ModelBackend,
    ModelSpec,
    ResponseMismatchError,
    SpecError,
)
from sheaf_dagster.batch.rows.sample import sample_output
from sheaf_dagster.contracts import OPENAI_BATCH, OpenAIBatchResponse
from tests.conftest import read_rows


class Echo(ModelBackend):
    """Answers a prompt with itself; serves several model types."""

    model_type = (OPENAI_BATCH, "number")

    def __init__(self, reverse: bool = False) -> None:
        self.reverse = reverse

    def load(self) -> None:
        pass

    def predict(self, request):
        if request.body["prompt"] == "bad":
            raise ValueError("can't echo that")
        return request.answer({"choices": [{"text": request.body["prompt"]}]})

    def batch_predict(self, requests):
        answers = [self.predict(r) for r in requests]
        return answers[::-1] if self.reverse else answers


def echo(**kwargs) -> ModelSpec:
    return ModelSpec(
        name="echo",
        model_type=OPENAI_BATCH,
        backend=f"{__name__}:Echo",
        backend_kwargs=kwargs,
    )


def line(i: int, prompt, **fields) -> dict:
    body = {"model": "m", "prompt": prompt}
    return {
        "custom_id": f"row-{i}",
        "method": "POST",
        "url": "/v1/completions",
        "body": body,
        **fields,
    }


@pytest.fixture
def job(tmp_path):
    def make(rows: list[dict], **fields) -> BatchSpec:
        source = tmp_path / "in.jsonl"
        source.write_text("".join(json.dumps(r) + "\n" for r in rows))
        return BatchSpec(
            source=str(source), sink=str(tmp_path / "out.jsonl"), compute="local", **fields
        )

    return make


def test_a_batch_api_file_runs_and_its_failed_rows_have_that_form(job):
    spec = job([line(0, "a"), line(1, "bad"), line(2, "c")], on_error="record")

    result = BatchRunner(echo()).run(spec)

    answers = [OpenAIBatchResponse.model_validate(row) for row in read_rows(spec.sink)]
    assert [a.custom_id for a in answers] == ["row-0", "row-1", "row-2"]
    assert answers[0].response.body["choices"][0]["text"] == "a"
    assert answers[1].response is None
    assert answers[1].error.message == "can't echo that"
    assert result.error_rows == 1
    assert len({a.id for a in answers}) == 3


def test_order_is_checked_by_custom_id(job):
    spec = job([line(0, "a"), line(1, "b")])

    with pytest.raises(ResponseMismatchError, match="answered request row-1 instead of row-0"):
        BatchRunner(echo(reverse=True)).run(spec)


def test_the_sample_of_an_output_compares_custom_ids(job):
    spec = job([line(0, "a"), line(1, "b")])
    BatchRunner(echo()).run(spec)

    assert sample_output(echo(), spec).in_order
    written = read_rows(spec.sink)
    with open(spec.sink, "w") as f:
        f.writelines(json.dumps(row) + "\n" for row in reversed(written))

    assert not sample_output(echo(), spec).in_order


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (line(0, 7), r"'body.prompt' must be a text"),
        (line(0, "a", url="/v1/images"), r"url"),
        (line(0, "a", url="/v1/chat/completions"), r"'body.messages' must be a list"),
        (
            line(0, "a", url="/v1/chat/completions", body={"messages": [{"role": "me"}]}),
            r"messages\.0\.role",
        ),
        (line(0, "a", body={"prompt": "a", "stream": True}), "stream"),
        (line(0, "a", custom_id=""), "custom_id"),
    ],
)
def test_an_invalid_line_is_named_before_the_model_loads(row, message, job):
    with pytest.raises(InputValidationError, match=message):
        BatchRunner(echo()).run(job([row]))


def test_a_model_type_that_none_of_a_backends_is_is_refused(job):
    spec = echo().model_copy(update={"model_type": "embedding"})
    with pytest.raises(SpecError, match="serves model type 'openai_batch' or 'number'"):
        BatchRunner(spec).validate(job([line(0, "a")]))


def test_rows_that_share_a_custom_id_are_refused_with_both_lines(job):
    rows = [line(i, "a") for i in range(40)]
    rows[33]["custom_id"] = rows[39]["custom_id"] = "row-2"

    with pytest.raises(InputValidationError) as caught:
        BatchRunner(echo()).run(job(rows, batch_size=4))

    report = caught.value.report
    assert (report.total_violations, report.invalid_rows) == (2, 2)
    assert [(v.line, v.field) for v in report.violations] == [(34, "custom_id"), (40, "custom_id")]
    assert all("is the same as on line 3;" in v.message for v in report.violations)


def test_rows_that_share_a_custom_id_across_the_files_of_a_source_are_refused(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(line(1, name)) + "\n")
    spec = BatchSpec(
        source=[str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")],
        sink=str(tmp_path / "out.jsonl"),
        compute="local",
    )

    report = BatchRunner(echo()).validate(spec)

    (violation,) = report.violations
    assert violation.file.endswith("b.jsonl")
    assert "a.jsonl, line 1;" in violation.message
