"""``openai_endpoint`` through a server's batch API: split, resumed, never submitted twice."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sheaf_dagster import BackendError, BatchRunner, BatchSpec, ModelSpec, ServiceDownError
from tests.api_server import ApiServer
from tests.backends.served_rows import line, write
from tests.batch_api_server import BatchApiServer
from tests.conftest import read_rows

pytest.importorskip("openai")
pytest.importorskip("aiolimiter")


@pytest.fixture
def server() -> Iterator[BatchApiServer]:
    made = BatchApiServer()
    yield made
    made.stop()


def model(url: str, **kwargs: Any) -> ModelSpec:
    return ModelSpec(
        name="vendor",
        model_type="openai_batch",
        backend="openai_endpoint",
        backend_kwargs={"base_url": url, "submit": "batch", "poll_s": 0.01, "max_retries": 1}
        | kwargs,
    )


def job(tmp_path: Path, texts: list[str], **options: Any) -> BatchSpec:
    rows = [line(i, text, model="m") for i, text in enumerate(texts)]
    return BatchSpec(
        source=write(tmp_path / "in.jsonl", rows), sink=str(tmp_path / "out.jsonl"), compute="local", batch_size=4,
        **options,
    )  # fmt: skip


def said(row: dict[str, Any]) -> str:
    return row["response"]["body"]["choices"][0]["message"]["content"]


def test_answers_are_those_of_single_requests_and_files_are_split_at_the_limits(server, tmp_path):
    texts = [f"text {i}" for i in range(25)]
    spec = job(tmp_path, texts)
    single = ApiServer()

    result = BatchRunner(model(server.url, batch_rows=10)).run(spec)
    by_batch = read_rows(tmp_path / "out.jsonl")
    BatchRunner(model(single.url, submit="requests")).run(spec)
    single.stop()

    assert [said(row) for row in read_rows(tmp_path / "out.jsonl")] == [t[::-1] for t in texts]
    assert by_batch == read_rows(tmp_path / "out.jsonl")
    assert [len(b["lines"]) for b in server.batches] == [10, 10, 5]
    assert server.batches[0]["endpoint"] == "/v1/chat/completions"
    assert result.tokens["output"] == sum(map(len, texts))


def test_a_file_is_split_at_its_size_and_a_row_beyond_it_is_refused(server, tmp_path):
    spec = job(tmp_path, ["a" * 300, "b" * 300, "c" * 3000], on_error="record")

    result = BatchRunner(model(server.url, batch_bytes=800)).run(spec)

    rows = read_rows(tmp_path / "out.jsonl")
    assert [len(b["lines"]) for b in server.batches] == [1, 1]
    assert result.error_rows == 1
    assert rows[2]["response"]["status_code"] == 413


def test_lines_that_come_back_unanswered_are_submitted_again_alone(server, tmp_path):
    texts = ["good", "fault=500*1 a", "fault=lost*1 b", "fault=400 c", "fault=lost d", "fine"]

    result = BatchRunner(model(server.url)).run(job(tmp_path, texts, on_error="record"))

    rows = read_rows(tmp_path / "out.jsonl")
    assert [said(rows[i]) for i in (0, 1, 2, 5)] == [texts[i][::-1] for i in (0, 1, 2, 5)]
    assert server.texts(0) == texts
    assert sorted(server.texts(1)) == sorted(texts[i] for i in (1, 2, 4))
    assert len(server.batches) == 2  # max_retries is one
    assert result.error_rows == 2
    assert rows[3]["response"]["status_code"] == 400
    assert rows[3]["error"] == {"code": "kind_400", "message": "refused with 400"}
    assert "without an answer" in rows[4]["error"]["message"]


def test_an_expired_batch_has_answered_what_it_has(server, tmp_path):
    server.ends = "expired"

    result = BatchRunner(model(server.url)).run(job(tmp_path, ["a", "fault=lost*1 b", "c"]))

    assert result.error_rows == 0
    assert server.texts(1) == ["fault=lost*1 b"]


@pytest.mark.parametrize("lists", [True, False], ids=["listed", "by its key"])
@pytest.mark.parametrize(
    "moment", [r"GET .*/batches/", r"POST .*/batches", r"GET .*/content"], ids=["poll", "create", "fetch"]
)  # fmt: skip
def test_a_job_that_was_cut_off_waits_for_what_it_has_submitted(moment, lists, server, tmp_path):
    server.dies_at, server.lists = re.compile(moment), lists
    texts = [f"text {i}" for i in range(9)]
    spec = job(tmp_path, texts)
    with pytest.raises(ServiceDownError, match="can't be reached"):
        BatchRunner(model(server.url, max_retries=0, batch_rows=6)).run(spec)
    submitted = len(server.batches)

    server.dies_at = None
    result = BatchRunner(model(server.url, poll_s=0.02)).run(spec)

    assert [said(row) for row in read_rows(tmp_path / "out.jsonl")] == [t[::-1] for t in texts]
    assert result.error_rows == 0
    asked = [text for i in range(len(server.batches)) for text in server.texts(i)]
    assert sorted(asked) == sorted(texts)  # each once
    assert submitted > 0


@pytest.mark.parametrize(
    ("code", "error"), [("invalid_json", BackendError), ("token_limit_exceeded", ServiceDownError)]
)
def test_a_batch_that_is_refused_ends_the_job_and_the_next_run_submits_it_anew(
    code, error, server, tmp_path
):
    server.ends, server.errors = "failed", [{"code": code, "message": "too much", "line": None}]
    spec = job(tmp_path, ["a", "b"])

    with pytest.raises(BackendError, match=rf"batch_0 was refused: {code}: too much") as caught:
        BatchRunner(model(server.url)).run(spec)
    BatchRunner(model(server.url, poll_s=0.02)).run(spec)

    assert type(caught.value) is error
    assert [said(row) for row in read_rows(tmp_path / "out.jsonl")] == ["a", "b"]


def test_a_line_that_a_file_was_refused_for_is_that_rows_error(server, tmp_path):
    server.ends = "failed"
    server.errors = [{"code": "bad_line", "message": "no such model", "line": 2}]

    result = BatchRunner(model(server.url)).run(job(tmp_path, ["a", "b", "c"], on_error="record"))

    rows = read_rows(tmp_path / "out.jsonl")
    assert (said(rows[0]), said(rows[2])) == ("a", "c")
    assert result.error_rows == 1
    assert rows[1]["error"] == {"code": "bad_line", "message": "no such model"}
    assert server.texts(1) == ["a", "c"]


def test_a_server_without_a_batch_api_is_said(server, tmp_path):
    with pytest.raises(BackendError, match=r"refuses a batch \(404\).*submit=\"requests\""):
        BatchRunner(model(server.url + "/nothing")).run(job(tmp_path, ["a"]))


def test_lines_that_are_doubled_foreign_or_broken_leave_each_row_its_own_answer(
    server, tmp_path, caplog
):
    def error_of(line: str) -> str:
        said = json.loads(line)
        return json.dumps({**said, "response": {"status_code": 500, "body": {}}})

    def garbled(lines: list[str]) -> list[str]:
        if len(server.batches) > 1:
            return lines
        foreign = lines[0].replace('"custom_id": "', '"custom_id": "x')
        cut, answers = lines[1][:-9], [lines[0], *lines[2:]]
        return [foreign, error_of(lines[2]), *answers, error_of(lines[3]), cut, "[1]", "{}", ""]

    server.garbles = garbled
    texts = [f"text {i}" for i in range(6)]

    result = BatchRunner(model(server.url)).run(job(tmp_path, texts))

    assert [said(row) for row in read_rows(tmp_path / "out.jsonl")] == [t[::-1] for t in texts]
    assert result.error_rows == 0
    assert server.texts(1) == ["text 4"]  # the one whose line was cut
    assert "3 lines of the answers to batch batch_0 can't be read" in caplog.text


def test_an_answer_in_a_batch_is_held_against_what_was_asked(server, tmp_path):
    def emptied(lines: list[str]) -> list[str]:
        said = json.loads(lines[0])
        said["response"]["body"]["choices"] = []
        return [json.dumps(said), *lines[1:]]

    server.garbles = emptied

    result = BatchRunner(model(server.url)).run(job(tmp_path, ["a", "b"], on_error="record"))

    rows = read_rows(tmp_path / "out.jsonl")
    assert said(rows[0]) == "a"
    assert "the answer's list 'choices' is empty" in rows[1]["error"]["message"]
    assert result.error_rows == 1
