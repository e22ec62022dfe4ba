"""Texts that tiny random models write, for rows of texts and for lines of the batch API."""

from __future__ import annotations

import json
import shutil
from uuid import UUID

import pytest

from sheaf_dagster import BatchRunner, BatchSpec, ModelSpec, SpecError
from sheaf_dagster.backends.transformers_text import TransformersPipelineBackend
from sheaf_dagster.contracts import (
    OpenAIBatchRequest,
    OpenAIBatchResponse,
    deviations_of,
)
from sheaf_dagster.testing import check_backend
from tests.backends.language_rows import LONG, TEXTS, causal, line, row
from tests.backends.weights import WORDS, greedy, tokenizer
from tests.conftest import read_rows

pytestmark = pytest.mark.model


IMAGE = {"type": "image_url", "image_url": {"url": "file:///a.png"}}


def called(tool: str) -> list[dict]:
    function = {"name": tool, "arguments": '{"red": "blue"}'}
    return [
        {"role": "user", "content": "a cat"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "function": function}]},
        {"role": "tool", "tool_call_id": "c1", "content": "dog"},
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
        (row(0, "dog " * 70), r"but the model has room for 64"),
        (line(0, response_format={"type": "json_object"}), "response_format, which isn't"),
        (line(0, prompt=[[3, 4], [5]]), r"'body\.prompt' must be a text .* takes no tokens"),
        (line(0, "chat/completions", messages=[{"role": "user", "content": [IMAGE]}]), "image_url"),
        (
            line(0, "chat/completions", messages=[{"role": "user", "content": "a", "mood": "x"}]),
            r"'body\.messages\.0\.mood' isn't supported",
        ),
        (
            line(0, "chat/completions", messages=called("dog")),
            "'tool_calls', which the model's chat template leaves out",
        ),
        (
            OpenAIBatchRequest(
                custom_id="r", url="/v1/rerank", body={"query": "a", "documents": ["b"]}
            ),
            "doesn't answer /v1/rerank",
        ),
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


@pytest.mark.parametrize(
    "field",
    [
        {"tool_choice": "auto"},
        {"guided_json": {"type": "object"}},
        {"structured_outputs": {"choice": ["a"]}},
        {"stop_token_ids": [4]},
        {"ignore_eos": True},
        {"min_tokens": 3},
        {"repetition_penalty": 1.2},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"reasoning_effort": "low"},
        {"prompt_logprobs": 0},
        {"logprobs": 0},
        {"min_p": 0.1},
        {"temprature": 0.1},
        {"max_completion_tokens": 3},
    ],
)
def test_a_field_that_would_change_the_answer_is_refused_by_name(field, models):
    backend = causal(models)
    backend.load()

    with pytest.raises(ValueError, match=f"row 'row-0': 'body' has {next(iter(field))}, which"):
        backend.predict(line(0, **field))


def test_fields_that_ask_for_what_is_done_anyway_are_taken(models):
    backend = causal(models)
    backend.load()
    plain = backend.predict(line(0, temperature=0))
    same = {"stream": False, "logprobs": False, "tools": [], "user": "u", "min_tokens": 0, "n": 1.0,
            "response_format": {"type": "text"}, "stop": None, "repetition_penalty": 1.0, "top_k": -1}  # fmt: skip

    answer = backend.predict(line(0, "chat/completions", temperature=0, **same))
    other = backend.predict(line(0, temperature=0, **{**same, "logprobs": None}))

    assert answer.response.body["choices"][0]["logprobs"] is None
    assert other.response.body["choices"] == plain.response.body["choices"]


def test_calls_of_tools_and_names_reach_the_chat_template(models, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = shutil.copytree(models["causal"], tmp_path / "tools")
    tokens = AutoTokenizer.from_pretrained(folder)
    tokens.chat_template = (
        "{% for m in messages %}{{ m.role }} {{ m.name or '' }} says {{ m.content }} "
        "{% for c in m.tool_calls or [] %}{{ c.function.name }} "
        "{% for k, v in c.function.arguments.items() %}{{ k }} {{ v }} {% endfor %}{% endfor %}"
        "{{ m.tool_call_id or '' }} {% endfor %}"
    )
    tokens.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    backend = causal({"causal": str(folder)})
    backend.load()
    said = []

    for messages in (called("dog"), called("cat"), [{**called("dog")[0], "name": "blue"}]):
        chat = line(0, "chat/completions", messages=messages, temperature=0, max_tokens=6)
        (choice,) = backend.predict(chat).response.body["choices"]
        told = json.loads(json.dumps(messages).replace(json.dumps('{"red": "blue"}'), "{}"))
        for call in (c for m in told for c in m.get("tool_calls", ())):
            call["function"]["arguments"] = {"red": "blue"}
        told = [{**m, "content": m["content"] or ""} for m in told]
        prompt = tokens.apply_chat_template(told, tokenize=False)
        said.append(prompt)
        inputs = tokens(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
        made = model.generate(input_ids=inputs, max_new_tokens=6, do_sample=False)[0]
        wanted = tokens.decode(made[inputs.shape[1] :], skip_special_tokens=True)
        assert choice["message"]["content"] == wanted

    assert len(set(said)) == 3


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


def test_an_unknown_task_is_refused():
    with pytest.raises(SpecError, match="task must be one of text-generation"):
        TransformersPipelineBackend(task="mind-reading")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", 0),
        ("model_batch_size", 0),
        ("temperature", -0.1),
        ("top_k", -1),
        ("top_p", 0),
        ("top_p", 1.5),
        ("pipeline_kwargs", {"top_k": 3}),
    ],
)
def test_arguments_of_generation_that_cannot_work_are_refused_at_once(field, value):
    with pytest.raises(SpecError, match=field):
        TransformersPipelineBackend("nowhere", **{field: value})


def test_a_text_longer_than_an_encoder_reads_is_that_rows_error(models, tmp_path):
    import torch
    from transformers import BartConfig, BartForConditionalGeneration

    torch.manual_seed(0)
    layers = {f"{part}_{what}": n for part in ("encoder", "decoder")
              for what, n in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 32))}  # fmt: skip
    config = BartConfig(vocab_size=len(WORDS), d_model=32, max_position_embeddings=64, pad_token_id=0,
                        bos_token_id=1, eos_token_id=2, decoder_start_token_id=2, **layers)  # fmt: skip
    BartForConditionalGeneration(config).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    backend = TransformersPipelineBackend(str(tmp_path), "summarization", device="cpu")
    backend.load()

    with pytest.raises(ValueError, match="has 86 tokens, but the model reads at most 64"):
        backend.predict(row(0, LONG))
    assert backend.predict(row(0, "the blue dog")).completion_tokens


def saved_with(models, name: str, folder, **settings) -> str:
    """A copy of a model with further settings of its generation."""
    copied = shutil.copytree(models[name], folder / f"{name}-{'-'.join(settings)}")
    saved = copied / "generation_config.json"
    saved.write_text(json.dumps({**json.loads(saved.read_text()), **settings}))
    return str(copied)


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.8, "pad_token_id": 2},
        {"no_repeat_ngram_size": 1},
        {"forced_bos_token_id": 7},
        {"forced_eos_token_id": 2},
        {"encoder_repetition_penalty": 2.0},
        {"min_length": 9},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_saved_with_a_model_hold_in_any_batch(settings, models, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = saved_with(models, "causal", tmp_path, **settings)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    backend = TransformersPipelineBackend(folder, device="cpu", dtype="float32")
    backend.load()
    asked = [("a photo of a cat", 8), ("dog", 8), ("the blue dog says a red cat", 5), ("red", 8)]

    answers = backend.batch_predict(
        [row(i, text, max_new_tokens=most) for i, (text, most) in enumerate(asked)]
    )

    for (text, most), answer in zip(asked, answers, strict=True):
        assert answer.text == greedy(model, tokenizer, text, most)


def test_scores_that_are_no_numbers_fail_their_row(models):
    import torch

    backend = causal(models)
    backend.load()
    with torch.no_grad():  # of one word, which overflows
        backend._generator._model.get_input_embeddings().weight[WORDS.index("dog")] = torch.inf

    with pytest.raises(ValueError, match=rf"{UUID(int=2)}: the model's token scores .* in float32"):
        backend.batch_predict([row(0, "cat", max_new_tokens=1), row(1, "dog", max_new_tokens=1)])
    assert backend.predict(row(0, "cat", max_new_tokens=1)).text is not None


def test_a_model_saved_with_beams_says_that_its_answers_are_made_without(models, tmp_path):
    folder = saved_with(models, "causal", tmp_path, num_beams=4)
    rows = [row(0, max_new_tokens=5), line(1, max_tokens=5)]

    def answers(folder):
        backend = TransformersPipelineBackend(str(folder), device="cpu", dtype="float32")
        backend.load()
        return [backend.predict(r) for r in rows]

    greedy, beams = answers(models["causal"]), answers(folder)
    assert [deviations_of(a) for a in greedy] == [(), ()]
    assert [deviations_of(a) for a in beams] == [("fell_back",), ("fell_back",)]
    assert beams[0].text == greedy[0].text
