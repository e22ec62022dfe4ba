"""What stands in a sink for a row that failed."""

from __future__ import annotations

import os

import orjson
import pytest

from sheaf_dagster import BatchRunner, PredictError
from sheaf_dagster.batch.rows.answers import error_line
from sheaf_dagster.contracts import OpenAIBatchRequest
from tests.batch.jobs import spec
from tests.conftest import read_rows
from tests.toys import Doubler, NumberRequest, shaped

LATIN = os.fsdecode("caf\u00e9.png".encode("latin-1"))
"""A file's name that is not UTF-8, as Python has it."""


class Viewer(Doubler):
    """Takes the row of a 1 for a file that is no picture."""

    def batch_predict(self, requests):
        if any(r.value == 1 for r in requests):
            raise ValueError(f"{LATIN} is no picture")
        return super().batch_predict(requests)


class Torn(Doubler):
    """Answers a 1 with half of a pair of surrogates, and a 2 with what is not JSON."""

    def batch_predict(self, requests):
        answers = super().batch_predict(requests)
        for request, answer in zip(requests, answers, strict=True):
            if request.value == 1:
                answer.note = "\ud83d"
            elif request.value == 2:
                answer.metadata["made by"] = object()
        return answers


@pytest.mark.parametrize("bucket_by", [None, "group"])
def test_an_answer_that_can_not_be_written_is_that_rows_error(
    write_rows, tmp_path, mode, bucket_by
):
    model = shaped(Torn)
    job = spec(write_rows([0, 1, 2, 3]), tmp_path, on_error="record", bucket_by=bucket_by, **mode)

    result = BatchRunner(model).run(job)

    first, torn, odd, last = read_rows(result.sink)
    assert result.error_rows == 2
    assert (first["value"], last["value"]) == (0, 6)
    assert "surrogate" in torn["error"]["message"]
    assert torn["request_id"] != odd["request_id"]
    assert odd["error"]["type"] == "PydanticSerializationError"


def test_it_ends_a_job_that_is_to_fail_by_its_line(write_rows, tmp_path):
    model = shaped(Torn)

    with pytest.raises(PredictError, match="line 2: the answer of Torn can't be written as JSON"):
        BatchRunner(model).run(spec(write_rows([0, 1, 2, 3]), tmp_path, compute="local"))


def test_an_error_that_json_cannot_hold_is_recorded_all_the_same(write_rows, tmp_path):
    model = shaped(Viewer)

    result = BatchRunner(model).run(
        spec(write_rows([0, 1, 2]), tmp_path, compute="local", on_error="record")
    )

    first, failed, last = read_rows(result.sink)
    assert result.error_rows == 1
    assert (first["value"], last["value"]) == (0, 4)
    assert failed["error"]["type"] == "ValueError"
    assert failed["error"]["message"] == "caf\\udce9.png is no picture"


@pytest.mark.parametrize(
    "request_",
    [
        NumberRequest(model_name="m", value=1),
        OpenAIBatchRequest(custom_id="a", url="/v1/completions", body={"prompt": "x"}),
    ],
    ids=["common form", "form of the contract"],
)
def test_each_form_of_an_error_row_is_json(request_):
    line = error_line(request_, OSError(f"{LATIN} is damaged"))

    assert "caf\\udce9.png is damaged" in orjson.loads(line)["error"]["message"]
