"""The backend ``openai_endpoint`` against a server on loopback, with faults: what each row is answered."""

from __future__ import annotations

import gzip
import json
import threading
import time
from email.utils import formatdate
from typing import Any
from uuid import UUID

import pytest

from sheaf_dagster import (
    BackendError,
    BatchRunner,
    BatchSpec,
    ServiceDownError,
    SpecError,
)
from sheaf_dagster.backends.language.refusal import RefusedError
from sheaf_dagster.backends.openai_endpoint import OpenAIEndpointBackend
from sheaf_dagster.contracts import OpenAIBatchRequest, TextRequest
from tests.backends.served_rows import line, said, spec, write
from tests.conftest import read_rows

pytest.importorskip("openai")
pytest.importorskip("aiolimiter")


@pytest.fixture
def backend_of(server):
    made: list[OpenAIEndpointBackend] = []

    def make(**options: Any) -> OpenAIEndpointBackend:
        backend = OpenAIEndpointBackend(**{"base_url": server.url, "max_retries": 3, **options})
        backend.load()
        made.append(backend)
        return backend

    yield make
    for backend in made:
        backend.close()


def test_rows_are_in_flight_together_over_connections_that_stay_open(server, backend_of):
    backend = backend_of(max_in_flight=4)
    server.gate = threading.Barrier(4)  # answers only to four at a time
    rows = [line(i, f"text {i}", model="m", some_field={"a": [1]}) for i in range(40)]

    answers = backend.batch_predict(rows)

    assert [said(a) for a in answers] == [f"text {i}"[::-1] for i in range(40)]
    assert server.most_at_once == 4
    assert server.connections <= 4
    sent = sorted(server.bodies, key=lambda b: int(b["messages"][0]["content"].split()[1]))
    assert sent == [row.body for row in rows]
    assert answers[0].response.body["created"] == 0
    assert len({a.response.body["id"] for a in answers}) == 40


@pytest.mark.parametrize("fault", ["429*2", "500*2", "503*1", "reset*2", "stall*1"])
def test_a_fault_that_passes_is_tried_again(fault, server, backend_of):
    backend = backend_of(timeout_s=0.5 if "stall" in fault else 60)
    text = f"fault={fault} a"

    answers = backend.batch_predict([line(0, "good"), line(1, text), line(2, "fine")])

    assert [said(a) for a in answers] == ["doog", text[::-1], "enif"]
    assert len(server.times[text]) == int(fault[-1]) + 1


def test_the_time_that_a_server_asks_for_is_waited(server, backend_of):
    server.retry_after = "1.5"
    text = "fault=429*1 a"

    backend_of().predict(line(0, text))

    first, second = server.times[text]
    assert second - first >= 1.5


@pytest.mark.parametrize(("fault", "status"), [("stall", 504), ("html", 502)])
def test_a_row_that_never_gets_an_answer_is_that_rows_error(fault, status, server, backend_of):
    backend = backend_of(timeout_s=0.3, max_retries=1)

    with pytest.raises(RefusedError) as caught:
        backend.predict(line(0, f"fault={fault}"))

    assert caught.value.status_code == status
    assert said(backend.predict(line(1, "good"))) == "doog"


@pytest.mark.parametrize("fault", ["429", "503"])
def test_a_server_that_goes_on_turning_requests_away_ends_the_job(fault, server, backend_of):
    with pytest.raises(ServiceDownError, match=rf"turns requests away \({fault}, in 2 attempts\)"):
        backend_of(max_retries=1).predict(line(0, f"fault={fault}"))


def test_rows_that_fail_one_after_the_other_end_the_job(server, backend_of):
    backend = backend_of(max_retries=0, max_in_flight=1, max_failures=3)

    with pytest.raises(RefusedError):
        backend.batch_predict([line(i, f"fault=500 {i}") for i in range(2)])
    with pytest.raises(ServiceDownError, match="failed on 3 rows in succession"):
        for answer in _one_batch(backend, [line(i, f"fault=500 {i}") for i in range(5)]):
            if isinstance(answer, ServiceDownError):
                raise answer


def _one_batch(backend: OpenAIEndpointBackend, rows: list[OpenAIBatchRequest]) -> list[Any]:
    """The outcome of each row, all under way together."""
    import asyncio

    async def all_rows() -> list[Any]:
        return await asyncio.gather(*map(backend.predict_async, rows), return_exceptions=True)

    return backend.run_async(all_rows())


def test_rows_of_texts_go_as_chats_and_completions(server, backend_of):
    backend = backend_of(model="there", max_new_tokens=7, temperature=0.5, seed=1)
    messages = [{"role": "user", "content": "abc"}]

    text, chat = backend.batch_predict(
        [
            TextRequest(request_id=UUID(int=1), model_name="m", text="xyz", stop=["."]),
            TextRequest(request_id=UUID(int=2), model_name="m", messages=messages, seed=3),
        ]
    )

    assert (text.text, chat.text) == ("zyx", "cba")
    assert (text.finish_reason, text.prompt_tokens, text.completion_tokens) == ("stop", 3, 3)
    bodies = dict(zip(server.paths, server.bodies, strict=True))
    assert bodies["/v1/chat/completions"] == {
        "max_tokens": 7, "temperature": 0.5, "model": "there", "messages": messages, "seed": 3,
    }  # fmt: skip
    drawn = bodies["/v1/completions"]
    assert isinstance(drawn.pop("seed"), int)
    assert drawn == {
        "max_tokens": 7, "temperature": 0.5, "model": "there", "prompt": "xyz", "stop": ["."],
    }  # fmt: skip


def test_requests_are_held_to_their_rate_with_retries_among_them(server, backend_of):
    backend = backend_of(requests_per_minute=600, max_in_flight=30)
    began = time.monotonic()  # the server may hear of the first request later than it was sent

    backend.batch_predict([line(i, f"fault=500*1 {i}") for i in range(15)])

    times = sorted(t for of_text in server.times.values() for t in of_text)
    assert len(times) == 30
    # Ten a second, and ten at once at the beginning.
    assert times[-1] - began >= (30 - 10 - 1) / 10 - 0.05


@pytest.mark.parametrize(
    ("base", "url", "address"),
    [
        ("http://h:1/v1", "/v1/completions", "http://h:1/v1/completions"),
        ("http://h:1/v1/", "/v1/embeddings", "http://h:1/v1/embeddings"),
        ("http://h:1", "/v1/completions", "http://h:1/v1/completions"),
        ("http://h:1/v1beta/openai", "/v1/completions", "http://h:1/v1beta/openai/completions"),
        ("http://h:1/v1", "/v2/rerank", "http://h:1/v2/rerank"),
        ("http://h:1/v1", "/score", "http://h:1/score"),
    ],
)
def test_a_line_is_posted_where_clients_would_post_it(base, url, address):
    assert OpenAIEndpointBackend(base)._address(url) == address


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_url": "host:8000"}, "base_url must be an address"),
        ({"max_in_flight": 0}, "max_in_flight must be greater than 0"),
        ({"requests_per_minute": -1}, "requests_per_minute must be greater than 0"),
        ({"max_retries": -1}, "max_retries must be 0 or more"),
    ],
)
def test_arguments_that_can_not_work_are_refused(options, message):
    with pytest.raises(SpecError, match=message):
        OpenAIEndpointBackend(**{"base_url": "http://h/v1", **options})


def answered(body: dict[str, Any], **fields: Any) -> bytes:
    """A server's answer to a chat."""
    message = {"role": "assistant", "content": "yes"}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    return json.dumps({"id": "chatcmpl-1", "choices": choices, **fields}).encode()


@pytest.mark.parametrize(
    ("status", "data", "headers", "wanted"),
    [
        (200, b'{"error": {"message": "no room", "code": 500}}', {}, (500, "no room")),
        (200, b'{"choices": [', {}, (502, "gave an answer that is not JSON")),
        (200, b"", {}, (502, "not JSON")),
        (200, b"data: {}\n\n", {"Content-Type": "text/event-stream"}, (502, "not a JSON object")),
        (413, b"<html>too large</html>", {}, (413, "too large")),
        (422, b'{"detail": [{"loc": ["body"]}]}', {}, (422, "loc")),
        (404, b'{"error": {"message": "no model m"}}', {}, (404, "no model m")),
        (400, b'{"error": "bad"}', {}, (400, "bad")),
    ],
)
def test_an_odd_answer_to_a_row_is_that_rows_error(
    status, data, headers, wanted, server, backend_of
):
    server.says = lambda body: (status, data, headers)

    with pytest.raises(RefusedError, match=wanted[1]) as caught:
        backend_of(max_retries=0).predict(line(0, "a"))

    assert caught.value.status_code == wanted[0]


@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        (301, {"Location": "https://there/v1"}, r"redirects \(301\) to https://there/v1; set base_"),
        (302, {"Location": "/login"}, r"redirects \(302\) to /login"),
        (402, {}, r"asks for payment \(402\)"),
        (403, {}, r"refuses the key \(403\)"),
    ],
)  # fmt: skip
def test_what_no_row_is_to_blame_for_ends_the_job(status, headers, message, server, backend_of):
    server.says = lambda body: (status, b"{}", headers)

    with pytest.raises(BackendError, match=message) as caught:
        backend_of().predict(line(0, "a"))

    assert not caught.value.retryable


def test_a_row_that_is_forbidden_after_others_were_answered_is_that_rows_error(server, backend_of):
    backend = backend_of()
    backend.predict(line(0, "good"))

    with pytest.raises(RefusedError) as caught:
        backend.predict(line(1, "fault=403"))

    assert caught.value.status_code == 403
    assert said(backend.predict(line(2, "fine"))) == "enif"


def test_a_server_that_finds_nothing_for_any_row_ends_the_job(server, backend_of):
    backend = backend_of(max_failures=3)

    outcomes = _one_batch(backend, [line(i, f"fault=404 {i}") for i in range(3)])

    assert sorted(type(o).__name__ for o in outcomes) == ["BackendError", *["RefusedError"] * 2]
    (ended,) = [o for o in outcomes if isinstance(o, BackendError)]
    assert "doesn't know the URL or the model of any of the first 3 rows (404)" in str(ended)


def test_an_answer_that_is_compressed_and_large_is_read(server, backend_of):
    text = "é" * 3_000_000
    packed = gzip.compress(answered({}, said=text), compresslevel=1)
    server.says = lambda body: (200, packed, {"Content-Encoding": "gzip"})

    assert backend_of().predict(line(0, "a")).response.body["said"] == text


def test_a_date_to_try_again_at_is_waited_for(server, backend_of):
    tries: list[float] = []

    def says(body: dict[str, Any]) -> tuple[int, bytes, dict[str, str]]:
        tries.append(time.time())
        if len(tries) > 1:
            return 200, answered(body), {}
        return 429, b"{}", {"Retry-After": formatdate(int(tries[0]) + 2, usegmt=True)}

    server.says = says

    backend_of().predict(line(0, "a"))

    assert tries[1] >= int(tries[0]) + 2 - 0.01


def test_fields_that_had_no_effect_and_numbers_that_are_none_are_counted(server, tmp_path, caplog):
    rows = [line(0, "a", logprobs=True), line(1, "b"), line(2, "c", logprobs=True)]
    server.says = lambda body: (200, answered(body, score=float("nan")), {})
    sink = tmp_path / "out.jsonl"
    job = BatchSpec(source=write(tmp_path / "in.jsonl", rows), sink=str(sink), compute="local")

    result = BatchRunner(spec(server.url)).run(job)

    assert result.deviations == {"ignored_field": 2}
    assert result.non_finite == 3
    assert read_rows(sink)[0]["response"]["body"]["score"] is None
    assert caplog.text.count("'logprobs' had no effect") == 1
