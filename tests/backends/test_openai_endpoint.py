"""The backend ``openai_endpoint`` against a server on loopback, with faults."""

from __future__ import annotations

import gzip
import json
import re
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from sheaf_dagster import (
    BackendError,
    BatchRunner,
    BatchSpec,
    ModelSpec,
    ServiceDownError,
    SpecError,
    SpendingLimitError,
)
from sheaf_dagster.backends.language.refusal import RefusedError
from sheaf_dagster.backends.openai_endpoint import OpenAIEndpointBackend
from sheaf_dagster.contracts import OpenAIBatchRequest, TextRequest
from tests.api_server import ApiServer
from tests.conftest import read_rows

pytest.importorskip("openai")
pytest.importorskip("aiolimiter")


@pytest.fixture
def server() -> Iterator[ApiServer]:
    made = ApiServer()
    yield made
    made.stop()


def line(i: int, text: str, **body: Any) -> OpenAIBatchRequest:
    said = [{"role": "user", "content": text}]
    return OpenAIBatchRequest(
        custom_id=f"row-{i}", url="/v1/chat/completions", body={"messages": said, **body}
    )


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


def said(answer) -> str:
    return answer.response.body["choices"][0]["message"]["content"]


def spec(url: str, **kwargs: Any) -> ModelSpec:
    return ModelSpec(
        name="served",
        model_type="openai_batch",
        backend="openai_endpoint",
        backend_kwargs={"base_url": url, "max_retries": 1, **kwargs},
    )


def write(path: Path, rows: list[OpenAIBatchRequest]) -> str:
    path.write_text("".join(r.model_dump_json() + "\n" for r in rows))
    return str(path)


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


@pytest.mark.parametrize(
    ("fault", "status", "kind"), [("400", 400, "kind_400"), ("500", 500, "kind_500"), ("404", 404, "kind_404")]
)  # fmt: skip
def test_what_a_server_refuses_is_that_rows_error_with_its_status(
    fault, status, kind, server, tmp_path
):
    rows = [line(0, "good"), line(1, f"fault={fault}"), line(2, "fine")]
    sink = tmp_path / "out.jsonl"
    job = BatchSpec(
        source=write(tmp_path / "in.jsonl", rows), sink=str(sink), compute="local",
        on_error="record",
    )  # fmt: skip

    result = BatchRunner(spec(server.url)).run(job)

    assert result.error_rows == 1
    good, bad, fine = read_rows(sink)
    assert good["error"] is fine["error"] is None
    assert bad["response"]["status_code"] == status
    assert bad["response"]["body"]["error"]["message"] == f"refused with {fault}"
    assert bad["error"] == {"code": kind, "message": f"refused with {fault}"}


@pytest.mark.parametrize(("fault", "status"), [("stall", 504), ("html", 502)])
def test_a_row_that_never_gets_an_answer_is_that_rows_error(fault, status, server, backend_of):
    backend = backend_of(timeout_s=0.3, max_retries=1)

    with pytest.raises(RefusedError) as caught:
        backend.predict(line(0, f"fault={fault}"))

    assert caught.value.status_code == status
    assert said(backend.predict(line(1, "good"))) == "doog"


def test_a_server_that_dies_ends_the_job_retryable_and_the_next_run_goes_on(server, tmp_path):
    rows = [line(i, f"text {i}") for i in range(40)]
    sink = tmp_path / "out.jsonl"
    job = BatchSpec(
        source=write(tmp_path / "in.jsonl", rows), sink=str(sink), compute="local",
        batch_size=4, on_error="record",
    )  # fmt: skip
    server.die_after = 20
    # A few at a time, so that what is answered by then are whole chunks, in whatever order.
    runner = BatchRunner(spec(server.url, max_in_flight=4))

    with pytest.raises(ServiceDownError, match=r"can't be reached .* answered rows are kept") as e:
        runner.run(job)
    assert e.value.retryable
    assert not sink.exists()
    answered = len(server.bodies)
    server.die_after = None
    # What only decides how fast it goes may change meanwhile.
    faster = {"max_in_flight": 3, "max_retries": 5, "timeout_s": 9, "requests_per_minute": 1e6,
              "tokens_per_minute": 1e9, "max_failures": 3, "api_key": "another"}  # fmt: skip
    result = BatchRunner(spec(server.url, **faster)).run(job)

    assert result.error_rows == 0
    assert 0 < result.resumed_rows <= answered
    assert [r["custom_id"] for r in read_rows(sink)] == [r.custom_id for r in rows]
    assert len(server.bodies) == answered + len(rows) - result.resumed_rows


@pytest.mark.parametrize(
    "change", [{"model": "b"}, {"temperature": 0.5}, {"seed": 2}, {"headers": {"X-Model": "b"}}]
)
def test_what_decides_the_answers_begins_the_job_anew(change, tmp_path):
    def fingerprint(**kwargs: Any) -> str:
        return BatchRunner(spec("http://there/v1", **kwargs)).fingerprint(job)

    source = write(tmp_path / "in.jsonl", [line(0, "a")])
    job = BatchSpec(source=source, sink=str(tmp_path / "out.jsonl"))

    assert fingerprint(max_in_flight=3) == fingerprint(max_in_flight=4)
    assert fingerprint(**change) != fingerprint()


def test_a_server_that_is_not_there_is_said(tmp_path):
    gone = ApiServer()
    gone.stop()
    job = BatchSpec(
        source=write(tmp_path / "in.jsonl", [line(0, "a")]), sink=str(tmp_path / "out.jsonl"),
        compute="local",
    )  # fmt: skip

    with pytest.raises(ServiceDownError, match=rf"127\.0\.0\.1:{gone.port} can't be reached"):
        BatchRunner(spec(gone.url)).run(job)


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


def test_the_key_comes_from_the_environment_and_a_wrong_one_ends_the_job(
    server, tmp_path, monkeypatch
):
    server.key = "secret-key"
    job = BatchSpec(
        source=write(tmp_path / "in.jsonl", [line(0, "a")]), sink=str(tmp_path / "out.jsonl"),
        compute="local", on_error="record",
    )  # fmt: skip
    model = spec(server.url, api_key={"env": "TEST_API_KEY"})

    monkeypatch.setenv("TEST_API_KEY", "another")
    with pytest.raises(
        BackendError, match=r"refuses the key \(401\): wrong key; check api_key"
    ) as e:
        BatchRunner(model).run(job)
    monkeypatch.setenv("TEST_API_KEY", "secret-key")
    other = spec(server.url, api_key={"env": "TEST_API_KEY"}, timeout_s=30)
    result = BatchRunner(other).run(job)

    assert not e.value.retryable
    assert result.error_rows == 0


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


def test_a_line_as_a_server_answers_it_has_the_form_of_the_batch_api(server, tmp_path):
    sink = tmp_path / "out.jsonl"
    source = write(tmp_path / "in.jsonl", [line(0, "abc"), line(1, "abc")])
    job = BatchSpec(source=source, sink=str(sink), compute="local")
    BatchRunner(spec(server.url)).run(job)
    first = sink.read_bytes()

    BatchRunner(spec(server.url)).run(job)

    assert sink.read_bytes() == first
    row = json.loads(first.splitlines()[0])
    assert set(row) == {"id", "custom_id", "response", "error"}
    assert set(row["response"]) == {"status_code", "request_id", "body"}


def test_tokens_are_counted_those_of_finished_parts_too(server, tmp_path):
    rows = [line(i, "a" * (i + 1)) for i in range(12)]
    job = BatchSpec(
        source=write(tmp_path / "in.jsonl", rows), sink=str(tmp_path / "out.jsonl"),
        compute="local", batch_size=2,
    )  # fmt: skip
    runner = BatchRunner(spec(server.url))
    server.die_after = 7
    with pytest.raises(ServiceDownError):
        runner.run(job)
    server.die_after = None

    result = runner.run(job)

    wanted = sum(range(1, 13))
    assert result.tokens == {"prompt": wanted, "output": wanted, "hit": 0}
    assert result.resumed_rows > 0
    assert 0 < result.new_tokens["output"] < wanted


LIMITS = [
    ({"max_tokens_total": 90}, r"max_tokens_total=90 is reached: .* took \d+ tokens"),
    ({"price_per_million": {"prompt": 1e6}, "max_cost": 45.0}, r"max_cost=45 is reached: .* cost"),
]


@pytest.mark.parametrize(("limit", "message"), LIMITS)
def test_a_limit_ends_all_files_of_a_job_which_go_on_once_it_is_higher(
    limit, message, server, tmp_path
):
    rows = [line(i, "ab") for i in range(20)]  # of four tokens each
    files = [
        {"source": write(tmp_path / f"{i}.jsonl", rows), "sink": str(tmp_path / f"out{i}.jsonl")}
        for i in range(3)
    ]
    common = {"compute": "local", "batch_size": 2}
    runner = BatchRunner(spec(server.url, max_in_flight=2))

    outcomes = list(runner.run_many([BatchSpec(**f, **common, **limit) for f in files]))
    asked = len(server.bodies)
    again = list(runner.run_many([BatchSpec(**f, **common, **limit) for f in files]))
    asked_again = len(server.bodies)
    rest = list(runner.run_many([BatchSpec(**f, **common) for f in files]))

    assert [o.ok for o in outcomes] == [True, False, False]  # 80 tokens, then 10 more
    for outcome in outcomes[1:]:
        assert isinstance(outcome.error, SpendingLimitError)
        assert re.search(message, str(outcome.error))
        assert not outcome.error.retryable
    assert 23 <= asked <= 30
    # The first file is done over, as any committed one; the second is where it was.
    assert [o.ok for o in again] == [True, False, False]
    assert all(o.ok for o in rest)
    assert rest[1].result.resumed_rows >= 4
    assert asked_again - asked <= 30


def test_cost_is_that_of_the_tokens_by_their_prices(server, tmp_path):
    prices = {"prompt": 2.0, "completion": 8.0}
    job = BatchSpec(
        source=write(tmp_path / "in.jsonl", [line(i, "abcd") for i in range(3)]),
        sink=str(tmp_path / "out.jsonl"), compute="local", price_per_million=prices,
    )  # fmt: skip

    result = BatchRunner(spec(server.url)).run(job)

    assert result.cost == result.new_cost == pytest.approx(12 * (2.0 + 8.0) / 1e6)


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
