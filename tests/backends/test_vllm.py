"""The backend ``vllm`` on vLLM itself, on a CPU: ``make test-vllm``."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest

from sheaf_dagster import (
    BatchRunner,
    BatchSpec,
    ModelSpec,
    ResourceConfig,
    ServiceDownError,
    SpecError,
)
from sheaf_dagster.backends.language.refusal import RefusedError
from sheaf_dagster.contracts import OpenAIBatchRequest, TextRequest, deviations_of
from sheaf_dagster.contracts.tokens import tokens_of
from tests.api_server import ApiServer
from tests.backends.small_llama import TEXT, save_small_llama
from tests.conftest import read_rows
from tests.ports import free_ports
from tests.vllm_server import ENVIRONMENT, served, words_of

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]
pytest.importorskip("vllm")

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
LENGTH = 512
OPTIONS = {"enforce_eager": True, "max_model_len": LENGTH, "enable_auto_tool_choice": True,
           "tool_call_parser": "hermes",
           "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True}}  # fmt: skip
"""A model of random weights may write space for ever where JSON may have some."""
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "parameters": {
            "type": "object",
            "properties": {"red": {"type": "boolean"}},
            "required": ["red"],
            "additionalProperties": False,
        },
    },
}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
SCHEMA = TOOL["function"]["parameters"]


@pytest.fixture(scope="session", autouse=True)
def small_engine() -> None:
    """What vLLM reads from the environment."""
    os.environ.update(ENVIRONMENT)


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> str:
    return save_small_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def backend(model):
    from sheaf_dagster.backends.vllm import VllmBackend

    made = VllmBackend(model, dtype="float32", engine_args=OPTIONS)
    made.load()
    yield made
    made.close()


def spec(model: str) -> ModelSpec:
    return ModelSpec(
        name="small",
        model_type="openai_batch",
        backend="vllm",
        backend_kwargs={"model_id": model, "dtype": "float32", "engine_args": OPTIONS},
        resources=ResourceConfig(num_cpus=1, num_gpus=0),
    )


def line(i: int, url: str = CHAT, **body: Any) -> dict[str, Any]:
    asked = {"messages": [{"role": "user", "content": f"Tell me of chunk {i}"}]}
    given = asked if url == CHAT else {"prompt": "A chunk is"} if url == COMPLETIONS else {}
    fixed = {"model": "small", "temperature": 0, "max_tokens": 12} if given else {}
    body = {**fixed, **given, **body}
    return {"custom_id": f"row-{i}", "method": "POST", "url": url, "body": body}


def chats(n: int) -> list[dict[str, Any]]:
    rng = random.Random(1)
    words = TEXT.read_text().split()
    return [
        line(
            i,
            messages=[
                {"role": "user", "content": " ".join(rng.choices(words, k=rng.randint(5, 60)))}
            ],
            max_tokens=rng.randint(8, 48),
        )
        for i in range(n)
    ]


def asked(row: dict[str, Any]) -> OpenAIBatchRequest:
    return OpenAIBatchRequest.model_validate(row)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def test_answers_are_those_of_vllms_own_batch_run(model, backend, tmp_path):
    rows = [
        *chats(16),
        line(16, logprobs=True, top_logprobs=3),
        line(17, tools=[TOOL], tool_choice={"type": "function", "function": {"name": "look_up"}},
             max_tokens=40),
        line(18, response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}},
             max_tokens=40),
        line(19, structured_outputs={"choice": ["chunk", "part"]}),
        line(20, min_tokens=5, repetition_penalty=1.3, logit_bias={"40": 5}, stop_token_ids=[7]),
        line(21, n=2, temperature=0.9, seed=5),
        line(22, messages=[{"role": "user", "content": "long " * 2 * LENGTH}]),
    ]  # fmt: skip
    source, sink = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    tool = Path(sys.executable).with_name("vllm")
    subprocess.run(
        [tool, "run-batch", "-i", source, "-o", sink, "--model", model, "--served-model-name",
         "small", "--dtype", "float32", *words_of(OPTIONS)],
        check=True,
    )  # fmt: skip
    theirs = read_rows(sink)

    ours = backend.batch_predict([asked(row) for row in rows[:-1]])

    for mine, their in zip(ours, theirs[:-1], strict=True):
        one, other = mine.response.body, their["response"]["body"]
        assert one["usage"] == other["usage"], mine.custom_id
        for a, b in zip(one["choices"], other["choices"], strict=True):
            for call in (*a["message"].get("tool_calls", ()), *b["message"].get("tool_calls", ())):
                call.pop("id", None)
            assert a == b, mine.custom_id
    with pytest.raises(RefusedError) as caught:
        backend.predict(asked(rows[-1]))
    assert caught.value.status_code == theirs[-1]["response"]["status_code"] == 400
    assert str(caught.value) == theirs[-1]["error"]["error"]["message"]


def test_structured_outputs_and_calls_of_tools_parse(backend):
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}
    choice = {"type": "function", "function": {"name": "look_up"}}

    formed, chosen, called = backend.batch_predict(
        [
            asked(line(0, response_format=form, max_tokens=200)),
            asked(line(1, structured_outputs={"choice": ["chunk", "part"]})),
            asked(line(2, tools=[TOOL], tool_choice=choice, max_tokens=200)),
        ]
    )

    def said(answer) -> dict[str, Any]:
        return answer.response.body["choices"][0]["message"]

    assert isinstance(json.loads(said(formed)["content"])["red"], bool)
    assert said(chosen)["content"] in ("chunk", "part")
    (call,) = said(called)["tool_calls"]
    assert call["function"]["name"] == "look_up"
    json.loads(call["function"]["arguments"])  # what it holds is compared with vLLM's own run


def test_tokens_are_a_prompt_like_their_text(backend, model):
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(model)("A chunk is")["input_ids"]

    text, by_tokens, several = backend.batch_predict(
        [
            asked(line(0, COMPLETIONS, logprobs=2)),
            asked(line(1, COMPLETIONS, prompt=tokens, logprobs=2)),
            asked(line(2, COMPLETIONS, prompt=[tokens, tokens])),
        ]
    )

    choice = text.response.body["choices"][0]
    assert by_tokens.response.body["choices"][0] == choice
    assert len(choice["logprobs"]["tokens"]) == text.response.body["usage"]["completion_tokens"]
    assert [c["text"] for c in several.response.body["choices"]] == [choice["text"]] * 2


def test_rows_of_texts_are_answered_as_the_same_lines(backend):
    fields = {"model_name": "small", "max_new_tokens": 12}
    text, chat, labelled = (
        TextRequest(request_id=UUID(int=1), text="A chunk is", **fields),
        TextRequest(
            request_id=UUID(int=2),
            messages=[{"role": "user", "content": "Tell me of chunk 7"}],
            **fields,
        ),
        TextRequest(request_id=UUID(int=3), text="A", candidate_labels=["b"], **fields),
    )

    answers = backend.batch_predict([text, chat, labelled])
    lines = backend.batch_predict([asked(line(0, COMPLETIONS)), asked(line(7))])

    bodies = [a.response.body for a in lines]
    assert answers[0].text == bodies[0]["choices"][0]["text"]
    assert answers[1].text == bodies[1]["choices"][0]["message"]["content"]
    assert answers[1].prompt_tokens == bodies[1]["usage"]["prompt_tokens"]
    assert deviations_of(answers[2]) == ("ignored_field",)


def test_draws_without_a_seed_are_the_same_at_each_run(backend):
    rows = [asked(line(i, temperature=1.0)) for i in range(3)]

    first, again = backend.batch_predict(rows), backend.batch_predict(rows[::-1])[::-1]

    assert [a.model_dump() for a in first] == [a.model_dump() for a in again]
    texts = {a.response.body["choices"][0]["message"]["content"] for a in first}
    assert len(texts) == 3


def test_responses_are_drawn_the_same_at_each_run(backend):
    rows = [
        asked(line(i, "/v1/responses", input="Tell me", max_output_tokens=12)) for i in range(2)
    ]

    first, again = backend.batch_predict(rows), backend.batch_predict(rows[::-1])[::-1]

    assert [a.model_dump() for a in first] == [a.model_dump() for a in again]
    one, two = (a.response.body["output"][0]["content"][0]["text"] for a in first)
    assert one != two


@pytest.mark.parametrize(
    ("row", "status", "message"),
    [
        (line(0, guided_json={"type": "object"}), 400, "'body' has guided_json, which vLLM"),
        (line(0, temprature=0.3), 400, "'body' has temprature, which vLLM doesn't know"),
        (
            line(0, response_format={"type": "json_object", "schema": SCHEMA}),
            400,
            r"'body' has response_format\.schema, which vLLM doesn't know",
        ),
        (
            line(0, tools=[{**TOOL, "function": {**TOOL["function"], "strikt": True}}]),
            400,
            r"'body' has tools\.0\.function\.strikt, which",
        ),
        (
            line(0, chat_template_kwargs={"enable_thinking": False}),
            400,
            r"chat_template_kwargs\.enable_thinking, which would have no effect",
        ),
        (line(0, reasoning_effort="low"), 400, "has reasoning_effort, which would have no effect"),
        (line(0, length_penalty=2), 400, "has length_penalty, which would have no effect"),
        (
            line(0, "/v1/responses", input="A", max_tool_calls=1),
            400,
            "has max_tool_calls, which would have no effect",
        ),
        (line(0, "/v1/embeddings", input="a"), 404, "doesn't answer /v1/embeddings"),
        (line(0, logprobs=True, top_logprobs=999), 400, "logprobs"),
        (line(0, messages=[{"role": "user", "content": [PICTURE]}]), 400, "multimodal"),
        (line(0, "/v1/responses", input="A", previous_response_id="resp_1"), 404, "resp_1"),
        (line(0, best_of_all={"a": 1}, response_format={"type": "poem"}), 400, "response_format"),
    ],
)
def test_what_the_engine_refuses_is_that_rows_error(row, status, message, backend):
    with pytest.raises(RefusedError, match=message) as caught:
        backend.predict(asked(row))

    assert caught.value.status_code == status


def test_responses_are_answered_as_the_same_chats(backend):
    function = {"type": "function", "strict": True, **TOOL["function"]}
    rows = [
        asked(line(0, "/v1/responses", input="Tell me of chunk 7", temperature=0,
                   max_output_tokens=12)),
        asked(line(1, "/v1/responses", input="Tell me of chunk 7", temperature=0, tools=[function],
                   tool_choice="required", parallel_tool_calls=False, max_output_tokens=200)),
    ]  # fmt: skip

    said, called = backend.batch_predict(rows)
    again = backend.batch_predict(rows)
    chat = backend.predict(asked(line(7)))

    (message,) = said.response.body["output"]
    assert message["content"][0]["text"] == chat.response.body["choices"][0]["message"]["content"]
    assert tokens_of(said) == tokens_of(chat)
    assert any(item["type"] == "function_call" for item in called.response.body["output"])
    for first, second in zip([said, called], again, strict=True):
        for answer in (first, second):  # which of them found the prompt in the cache
            answer.response.body["usage"].pop("input_tokens_details")
        assert first.model_dump() == second.model_dump()


def test_texts_are_embedded_scored_and_ranked_as_by_hand(model):
    import torch
    from transformers import AutoModel, AutoTokenizer

    from sheaf_dagster.backends.vllm import VllmBackend

    texts = ["A chunk is a range of bytes", "a worker", "the sink"]
    embedder = VllmBackend(
        model,
        dtype="float32",
        engine_args={"enforce_eager": True, "max_model_len": LENGTH, "runner": "pooling",
                     "convert": "embed"},
    )  # fmt: skip
    embedder.load()
    try:
        embedded, scored, ranked = embedder.batch_predict(
            [
                asked(line(0, "/v1/embeddings", input=texts)),
                asked(line(1, "/score", text_1=texts[0], text_2=texts[1:])),
                asked(line(2, "/rerank", query=texts[0], documents=texts[1:])),
            ]
        )
        with pytest.raises(RefusedError, match="doesn't answer /v1/chat/completions"):
            embedder.predict(asked(line(3)))
    finally:
        embedder.close()

    tokenizer, network = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model)
    with torch.no_grad():
        ids = [torch.tensor([tokenizer(text)["input_ids"]]) for text in texts]
        last = torch.stack([network.float()(i).last_hidden_state[0, -1] for i in ids])
    by_hand = torch.nn.functional.normalize(last, dim=1)
    vectors = torch.tensor([d["embedding"] for d in embedded.response.body["data"]])
    likeness = (by_hand[1:] @ by_hand[0]).tolist()
    assert torch.allclose(vectors, by_hand, atol=1e-4)
    assert [d["score"] for d in scored.response.body["data"]] == pytest.approx(likeness, abs=1e-4)
    found = {r["index"]: r["relevance_score"] for r in ranked.response.body["results"]}
    assert [found[i] for i in range(2)] == pytest.approx(likeness, abs=1e-4)
    assert tokens_of(embedded)["prompt"] == sum(i.shape[1] for i in ids)


def test_a_server_with_faults_that_is_killed_half_way_answers_as_the_worker_does(
    model, backend, tmp_path
):
    rows = chats(24)
    faults = ["429*1", "500*1", "503*1", "reset*1", "stall*1"]
    for row, fault in zip(rows[3:], faults, strict=False):
        row["body"]["messages"][0]["content"] += f" fault={fault}"
    wanted = [a.response.body["choices"][0] for a in backend.batch_predict([*map(asked, rows)])]
    source = str(write(tmp_path / "in.jsonl", rows))
    options = {"served_model_name": "small", "dtype": "float32", "enforce_eager": True,
               "max_model_len": LENGTH}  # fmt: skip
    proxy = ApiServer()
    kwargs = {"base_url": proxy.url, "timeout_s": 60, "max_in_flight": 4, "max_retries": 2}
    runner = BatchRunner(
        ModelSpec(
            name="small",
            model_type="openai_batch",
            backend="openai_endpoint",
            backend_kwargs=kwargs,
        )
    )

    def job(name: str) -> BatchSpec:
        sink = str(tmp_path / f"{name}.jsonl")
        return BatchSpec(source=source, sink=sink, batch_size=2, compute="local")

    def choices(name: str) -> list[dict[str, Any]]:
        return [
            row["response"]["body"]["choices"][0] for row in read_rows(tmp_path / f"{name}.jsonl")
        ]

    with served(model, *free_ports(1), **options) as server:
        proxy.upstream = server.url
        runner.run(job("faults"))
        proxy.on_answer = lambda answered: server.process.kill() if answered >= 36 else None
        with pytest.raises(ServiceDownError, match="can't be reached"):
            runner.run(job("killed"))
    proxy.on_answer = lambda answered: None
    with served(model, *free_ports(1), **options) as server:
        proxy.upstream = server.url
        result = runner.run(job("killed"))
    proxy.stop()

    assert choices("faults") == choices("killed") == wanted
    assert 0 < result.resumed_rows < len(rows)


def test_an_option_that_vllm_does_not_know_is_named_at_load(model):
    from sheaf_dagster.backends.vllm import VllmBackend

    with pytest.raises(SpecError, match="max-modell-len"):
        VllmBackend(model, engine_args={"max_modell_len": 5}).load()


_JOB = """
import os, pathlib, psutil, signal, sys, threading, time
from sheaf_dagster import BatchRunner, BatchSpec, ModelSpec

def kill_after_the_first_part():
    folder = pathlib.Path(sys.argv[3]).parent
    while not list(folder.rglob("part-*.jsonl")):
        time.sleep(0.005)
    children = psutil.Process().children(recursive=True)
    open(sys.argv[4], "w").write(" ".join(str(c.pid) for c in children))
    os.kill(os.getpid(), signal.SIGKILL)

model = ModelSpec.model_validate_json(sys.argv[1])
model.backend_kwargs["max_in_flight"] = 2  # so that the first part isn't the last one, too
job = BatchSpec(source=sys.argv[2], sink=sys.argv[3], batch_size=4, compute="local")
threading.Thread(target=kill_after_the_first_part, daemon=True).start()
BatchRunner(model).run(job)
"""


@pytest.mark.ray
def test_a_job_that_is_killed_goes_on_and_ray_answers_the_same(model, tmp_path, ray_cluster):
    rows = chats(24)
    source = str(write(tmp_path / "in.jsonl", rows))
    sinks = {name: str(tmp_path / f"{name}.jsonl") for name in ("local", "tasks", "actors")}
    pids = tmp_path / "pids"
    killed = subprocess.run(
        [sys.executable, "-c", _JOB, spec(model).model_dump_json(), source, sinks["local"], pids]
    )
    assert killed.returncode == -signal.SIGKILL
    engine = [pid for pid in map(int, pids.read_text().split()) if psutil.pid_exists(pid)]
    psutil.wait_procs([psutil.Process(pid) for pid in engine], timeout=60)
    assert not any(map(psutil.pid_exists, engine))
    runner = BatchRunner(spec(model))

    resumed = runner.run(
        BatchSpec(source=source, sink=sinks["local"], batch_size=4, compute="local")
    )
    for compute in ("tasks", "actors"):
        runner.run(
            BatchSpec(
                source=source,
                sink=sinks[compute],
                batch_size=12,
                compute=compute,
                num_actors=1 if compute == "actors" else None,
            )
        )

    assert 0 < resumed.resumed_rows < len(rows)
    answers = {name: read_rows(Path(sink)) for name, sink in sinks.items()}
    assert [a["custom_id"] for a in answers["local"]] == [r["custom_id"] for r in rows]
    assert answers["tasks"] == answers["actors"] == answers["local"]
