"""Jobs of the backend ``openai_endpoint``: what ends them, what the next run has left to do, what they cost."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from sheaf_dagster import (
    BackendError,
    BatchRunner,
    BatchSpec,
    ServiceDownError,
    SpendingLimitError,
)
from tests.api_server import ApiServer
from tests.backends.served_rows import line, spec, write
from tests.conftest import read_rows

pytest.importorskip("openai")
pytest.importorskip("aiolimiter")


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
