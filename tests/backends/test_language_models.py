"""Generation and classification with tiny random models, over texts and batch API lines."""

from __future__ import annotations

import json
from uuid import UUID

import pytest

from sheaf_dagster import BatchRunner, BatchSpec, ModelSpec, SpecError
from sheaf_dagster.backends.transformers_text import TransformersPipelineBackend
from sheaf_dagster.contracts import OpenAIBatchRequest, OpenAIBatchResponse, TextRequest
from sheaf_dagster.testing import check_backend
from tests.backends.weights import save_language_models
from tests.conftest import read_rows

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    return save_language_models(tmp_path_factory.mktemp("language"))


def row(i: int, text: str | None = "a photo of a cat", **fields) -> TextRequest:
    return TextRequest(request_id=UUID(int=i + 1), model_name="m", text=text, **fields)


def line(i: int, url: str = "completions", **body) -> OpenAIBatchRequest:
    name = "messages" if url.startswith("chat") else "prompt"
    given = {"messages": [{"role": "user", "content": "a cat"}], "prompt": "a red dog"}
    body = {"model": "tiny", name: given[name], **body}
    return OpenAIBatchRequest(custom_id=f"row-{i}", url=f"/v1/{url}", body=body)


def causal(models, **fields) -> TransformersPipelineBackend:
    options = {"device": "cpu", "dtype": "float32", "max_new_tokens": 8, "model_batch_size": 5}
    return TransformersPipelineBackend(models["causal"], **{**options, **fields})


TEXTS = [
    row(0),
    row(1, "dog", max_new_tokens=3),
    row(2, "the blue dog says a red cat a photo", temperature=1.0),
    row(3, "red", temperature=0.7, top_p=0.8, top_k=5, max_new_tokens=12),
    row(4, None, messages=[{"role": "user", "content": "a cat"}]),
    row(5, "blue", temperature=1.5, seed=7),
    row(6, "blue", temperature=1.5, seed=7),
]
LINES = [
    line(0, temperature=0),
    line(1, n=3, max_tokens=5, presence_penalty=0.5, frequency_penalty=0.5),
    line(2, "chat/completions", max_completion_tokens=4),
    line(3, prompt=["a cat", "the dog says"], top_p=0.9, seed=3),
    line(4, "chat/completions", messages=[{"role": "user", "content": [{"type": "text", "text": "dog"}]}]),
]  # fmt: skip


@pytest.mark.parametrize("rows", [TEXTS, LINES], ids=["texts", "batch_api"])
def test_mixed_rows_generate_like_single_ones(rows, models):
    check_backend(causal(models), rows)


def test_greedy_generation_is_the_librarys(models):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(models["causal"])
    tokenizer = AutoTokenizer.from_pretrained(models["causal"])
    backend = causal(models)
    backend.load()
    answers = backend.batch_predict([row(0), row(1, "dog")])

    for text, answer in zip(("a photo of a cat", "dog"), answers, strict=True):
        inputs = tokenizer(text, return_tensors="pt")
        made = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=8,
            do_sample=False,
        )[0, inputs["input_ids"].shape[1] :]
        assert answer.text == tokenizer.decode(made, skip_special_tokens=True)
        assert answer.completion_tokens == len(made)
        assert answer.prompt_tokens == inputs["input_ids"].shape[1]


def test_draws_follow_the_models_distribution_and_the_seed(models):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(models["causal"])
    tokenizer = AutoTokenizer.from_pretrained(models["causal"])
    inputs = tokenizer("red", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        wanted = (model(inputs).logits[0, -1] / 3).softmax(0)
    backend = causal(models, model_batch_size=512)
    backend.load()

    n = 1500
    one = backend.predict(line(0, prompt="red", n=n, max_tokens=1, temperature=3.0))
    other = backend.predict(line(1, prompt="red", n=n, max_tokens=1, temperature=3.0))

    texts = [c["text"] for c in one.response.body["choices"]]
    for token, p in enumerate(wanted.tolist()):
        word = tokenizer.decode([token], skip_special_tokens=True)
        if word:
            share = texts.count(word) / n
            assert abs(share - p) < 4 * (p * (1 - p) / n) ** 0.5 + 1e-3, word
    assert texts != [c["text"] for c in other.response.body["choices"]]


def test_rows_with_the_same_seed_and_text_draw_the_same(models):
    backend = causal(models)
    backend.load()
    answers = backend.batch_predict(TEXTS)

    again = causal(models, seed=1)
    again.load()

    assert answers[5].text == answers[6].text
    assert again.batch_predict(TEXTS)[2].text != answers[2].text


def test_a_stop_text_ends_its_row_alone(models):
    backend = causal(models)
    backend.load()
    whole = backend.predict(row(0, max_new_tokens=10))
    words = whole.text.split()
    stop = next(w for w in words[1:] if w != words[0])

    stopped, free = backend.batch_predict(
        [row(0, max_new_tokens=10, stop=[stop]), row(0, max_new_tokens=10)]
    )

    assert free.text == whole.text
    assert stopped.text == whole.text[: whole.text.index(stop)]
    assert stopped.finish_reason == "stop"
    assert stopped.completion_tokens < whole.completion_tokens


def test_a_batch_api_file_gives_a_batch_api_file(models, tmp_path):
    source, sink = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [*LINES, line(9, tools=[{"type": "function"}])]
    source.write_text("".join(r.model_dump_json() + "\n" for r in rows))
    model = ModelSpec(
        name="tiny",
        model_type="openai_batch",
        backend="transformers_pipeline",
        backend_kwargs={"model_id": models["causal"], "device": "cpu", "max_new_tokens": 8},
    )

    result = BatchRunner(model).run(
        BatchSpec(source=str(source), sink=str(sink), compute="local", on_error="record")
    )

    answers = [OpenAIBatchResponse.model_validate(r) for r in read_rows(sink)]
    assert [a.custom_id for a in answers] == [r.custom_id for r in rows]
    bodies = [a.response.body for a in answers[:-1]]
    assert [b["object"] for b in bodies] == [
        "text_completion", "text_completion", "chat.completion", "text_completion",
        "chat.completion",
    ]  # fmt: skip
    assert [len(b["choices"]) for b in bodies] == [1, 3, 1, 2, 1]
    assert bodies[2]["choices"][0]["message"]["role"] == "assistant"
    assert all(
        b["usage"]["total_tokens"] == b["usage"]["prompt_tokens"] + b["usage"]["completion_tokens"]
        for b in bodies
    )
    assert answers[-1].error.message == "row 'row-9': 'body' has tools, which isn't supported"
    assert result.error_rows == 1


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (row(0, "dog " * 70), r"are more than the model's 64"),
        (line(0, response_format={"type": "json_object"}), "response_format, which isn't"),
        (line(0, n="two"), r"'body\.n' must be a number, got 'two'"),
        (line(0, top_p=2), "top_p"),
        (
            OpenAIBatchRequest(custom_id="e", url="/v1/embeddings", body={"input": "a"}),
            "sentence_transformers",
        ),
    ],
)
def test_what_a_row_can_not_have_is_named(request_, message, models):
    backend = causal(models)
    backend.load()
    with pytest.raises(ValueError, match=message):
        backend.batch_predict([request_])


def test_an_encoder_decoder_rewrites_mixed_rows_like_single_ones(models):
    rows = [row(0), row(1, "dog", max_new_tokens=2), row(2, "red blue", temperature=2.0)]
    check_backend(
        TransformersPipelineBackend(
            models["seq2seq"],
            "summarization",
            device="cpu",
            dtype="float32",
            prefix="the ",
            max_new_tokens=8,
        ),
        rows,
    )


def test_classifiers_rank_the_labels_of_each_row(models):
    rows = [row(0), row(1, "dog"), row(2, "the blue dog says a red cat")]
    backend = TransformersPipelineBackend(models["moods"], "text-classification", device="cpu")
    check_backend(backend, rows)
    backend.load()

    answers = backend.batch_predict(rows)

    for answer in answers:
        assert {one.label for one in answer.labels} == {"good", "bad", "so so"}
        scores = [one.score for one in answer.labels]
        assert scores == sorted(scores, reverse=True)
        assert sum(scores) == pytest.approx(1, abs=1e-4)


def test_zero_shot_rows_may_have_labels_of_their_own(models):
    rows = [
        row(0, candidate_labels=["cat", "dog"]),
        row(1, "dog", candidate_labels=["red", "blue", "a"]),
        row(2, "red", candidate_labels=["cat", "dog"]),
    ]
    backend = TransformersPipelineBackend(
        models["entails"], "zero-shot-classification", device="cpu"
    )
    check_backend(backend, rows)
    backend.load()

    assert [len(a.labels) for a in backend.batch_predict(rows)] == [2, 3, 2]
    with pytest.raises(ValueError, match="needs 'candidate_labels'"):
        backend.predict(row(0))


def test_entities_come_with_their_places(models):
    backend = TransformersPipelineBackend(
        models["tokens"],
        "token-classification",
        device="cpu",
        pipeline_kwargs={"aggregation_strategy": "simple"},
    )
    check_backend(backend, [row(0), row(1, "dog")])
    backend.load()

    (answer,) = backend.batch_predict([row(0)])

    assert answer.entities
    assert all({"entity_group", "start", "end", "score"} <= set(e) for e in answer.entities)
    json.loads(answer.model_dump_json())


def test_an_unknown_task_is_refused():
    with pytest.raises(SpecError, match="task must be one of text-generation"):
        TransformersPipelineBackend(task="mind-reading")
