"""Answers of servers that speak the OpenAI API, held against what they were asked."""

from __future__ import annotations

import base64
import struct
from typing import Any

import pytest

from sheaf_dagster.backends.language.bodies import response_of
from sheaf_dagster.backends.language.refusal import RefusedError
from sheaf_dagster.backends.language.server_answers import checked_answer, filtered, skipped_fields
from sheaf_dagster.contracts import TextRequest

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"


def chat(*texts: Any, **fields: Any) -> dict[str, Any]:
    """An answer to a chat: a choice for each text, or for each message that is an object."""
    messages = [t if isinstance(t, dict) else {"role": "assistant", "content": t} for t in texts]
    choices = [{"index": i, "message": m, "finish_reason": "stop"} for i, m in enumerate(messages)]
    return {"choices": choices, **fields}


def vectors(*pairs: tuple[int, Any]) -> dict[str, Any]:
    return {"data": [{"index": i, "embedding": v} for i, v in pairs]}


def ranked(*indices: Any) -> dict[str, Any]:
    return {"results": [{"index": i, "relevance_score": 0.5} for i in indices]}


ERROR = {"message": "no such model", "type": "not_found", "code": 404}


@pytest.mark.parametrize(
    ("url", "asked", "answer", "status", "message"),
    [
        (CHAT, {}, {"error": ERROR}, 404, "no such model"),
        (CHAT, {}, {"error": ERROR, "choices": []}, 404, "no such model"),
        (CHAT, {}, {"error": "out of memory"}, 502, "out of memory"),
        (CHAT, {}, {"object": "error", "message": "too long", "code": 400}, 400, "too long"),
        (CHAT, {}, [1], 502, "not a JSON object"),
        (CHAT, {}, "text", 502, "not a JSON object"),
        (CHAT, {}, {}, 502, "no list 'choices'"),
        (CHAT, {}, {"choices": None}, 502, "no list 'choices'"),
        (CHAT, {}, {"choices": []}, 502, "'choices' is empty"),
        (CHAT, {}, {"choices": ["a"]}, 502, "no list 'choices' of objects"),
        (CHAT, {}, {"choices": [{"message": None}]}, 502, "choice 0 has no 'message'"),
        (CHAT, {"n": 2}, chat("a"), 502, "length 1; 2 was asked for"),
        (CHAT, {}, chat("a", "b"), 502, "length 2; 1 was asked for"),
        (COMPLETIONS, {"prompt": "a"}, {"choices": [{"text": None}]}, 502, "choice 0 has no 'text'"),
        (COMPLETIONS, {"prompt": ["a", "b"], "n": 2}, {"choices": [{"text": "a"}]}, 502, "length 1; 4"),
        (COMPLETIONS, {"prompt": [1, 2]}, {"choices": [{"text": "a"}] * 2}, 502, "length 2; 1"),
        (EMBEDDINGS, {"input": ["a", "b"]}, vectors((0, [1.0])), 502, "length 1; 2"),
        (EMBEDDINGS, {"input": ["a", "b"]}, vectors((0, [1.0]), (0, [2.0])), 502, "each 'index'"),
        (EMBEDDINGS, {"input": ["a", "b"]}, vectors((0, [1.0]), ([1], [2.0])), 502, "each 'index'"),
        (EMBEDDINGS, {"input": "a"}, {"data": [{"index": 0}]}, 502, "no 'embedding'"),
        (EMBEDDINGS, {"input": "a"}, vectors((0, [])), 502, "no 'embedding'"),
        (EMBEDDINGS, {"input": "a"}, vectors((0, "no base64!")), 502, "not base64 of floats"),
        (EMBEDDINGS, {"input": "a", "dimensions": 2}, vectors((0, [1.0])), 502, "2 were asked for"),
        ("/v1/responses", {}, {"status": "queued", "output": []}, 502, "isn't finished"),
        ("/v1/responses", {}, {"status": "failed", "error": {"message": "a"}}, 502, "a"),
        ("/v1/responses", {}, {"status": "completed"}, 502, "no list 'output'"),
        ("/score", {}, {"data": []}, 502, "'data' is empty"),
        ("/rerank", {"documents": ["a", "b"]}, ranked(0), 502, "ranks 1 documents"),
        ("/rerank", {"documents": ["a", "b"]}, ranked(0, 0), 502, "ranks 1 documents"),
        ("/rerank", {"documents": ["a", "b"]}, ranked(0, 2), 502, "ranks 1 documents"),
        ("/rerank", {"documents": ["a", "b"]}, ranked(0, [1]), 502, "ranks 1 documents"),
        ("/rerank", {"documents": ["a", "b"], "top_n": 1}, ranked(0, 1), 502, "1 of 2 were"),
    ],
)  # fmt: skip
def test_what_can_not_be_the_asked_answer_is_refused(url, asked, answer, status, message):
    with pytest.raises(RefusedError, match=message) as caught:
        checked_answer(url, asked, answer)

    assert caught.value.status_code == status


def test_vectors_and_choices_are_put_in_the_order_of_what_was_asked():
    given = vectors((1, [2.0]), (0, [1.0]))
    several = {"choices": chat("a", "b", "c")["choices"][::-1]}

    made = checked_answer(EMBEDDINGS, {"input": ["a", "b"]}, given)
    choices = checked_answer(CHAT, {"n": 3}, several)["choices"]

    assert [part["embedding"] for part in made["data"]] == [[1.0], [2.0]]
    assert [choice["message"]["content"] for choice in choices] == ["a", "b", "c"]


@pytest.mark.parametrize("asked", [None, "float", "base64"])
@pytest.mark.parametrize("sent", ["float", "base64"])
def test_vectors_have_the_form_that_was_asked_for(asked, sent):
    numbers = [0.5, -2.0, 0.25]
    packed = base64.b64encode(struct.pack("<3f", *numbers)).decode()
    answer = vectors((0, numbers if sent == "float" else packed))

    made = checked_answer(EMBEDDINGS, {"input": "a", "encoding_format": asked}, answer)

    assert made["data"][0]["embedding"] == (packed if asked == "base64" else numbers)


@pytest.mark.parametrize(
    ("url", "asked", "answer"),
    [
        (CHAT, {}, chat({"content": None, "tool_calls": [{"id": "a"}]})),
        (CHAT, {}, {**chat("a"), "error": None}),
        (CHAT, {"n": 2.0}, chat("a", "b")),
        (COMPLETIONS, {"prompt": ["a", "b"]}, {"choices": [{"text": "a"}, {"text": "b"}]}),
        (EMBEDDINGS, {"input": "a"}, vectors((0, [[1.0], [2.0]]))),
        (EMBEDDINGS, {"messages": []}, vectors((0, [1.0]))),
        ("/v1/responses", {}, {"status": "incomplete", "output": [], "error": None}),
        ("/rerank", {"documents": ["a", "b"], "top_n": 1}, ranked(1)),
        ("/rerank", {"documents": ["a", "b"], "top_n": 0}, ranked(1, 0)),
        ("/v1/score", {}, {"data": [{"index": 0, "score": 1.0}]}),
    ],
)
def test_what_can_be_the_asked_answer_is_taken_as_it_is(url, asked, answer):
    assert checked_answer(url, asked, answer) == answer


USED = {"usage": {"completion_tokens": 9}}
FORM = {"response_format": {"type": "json_object"}}
CALLS = {"content": None, "tool_calls": [{"id": "a"}]}


@pytest.mark.parametrize(
    ("asked", "answer", "skipped"),
    [
        ({"max_tokens": 8}, chat("a", **USED), ["max_tokens"]),
        ({"max_completion_tokens": 8}, chat("a", **USED), ["max_completion_tokens"]),
        ({"max_tokens": 9}, chat("a", **USED), []),
        ({"max_tokens": 8, "n": 2}, chat("a", "b", **USED), []),
        ({"max_tokens": 8}, chat("a", usage=None), []),
        ({"logprobs": True}, chat("a"), ["logprobs"]),
        ({"logprobs": False}, chat("a"), []),
        (FORM, chat("Sure!"), ["response_format"]),
        (FORM, chat('{"a": 1}'), []),
        (FORM, chat(CALLS), []),
        ({"response_format": {"type": "text"}}, chat("a"), []),
        ({"tool_choice": "required"}, chat("a"), ["tool_choice"]),
        ({"tool_choice": {"type": "function"}}, chat("a"), ["tool_choice"]),
        ({"tool_choice": "none"}, chat(CALLS), ["tool_choice"]),
        ({"tool_choice": "auto"}, chat("a"), []),
        ({"tool_choice": "required"}, chat(CALLS), []),
    ],
)
def test_fields_that_visibly_had_no_effect_are_named(asked, answer, skipped):
    assert skipped_fields(CHAT, asked, answer) == skipped


def test_what_a_servers_filter_cut_is_seen():
    cut = chat("a")
    cut["choices"][0]["finish_reason"] = "content_filter"

    assert filtered(cut)
    assert filtered({"incomplete_details": {"reason": "content_filter"}, "output": []})
    assert not filtered(chat("a"))
    assert not filtered({"data": []})


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"content": None, "refusal": "I won't"}, "I won't"),
        ({"content": None, "reasoning": "hm"}, "finish_reason is 'stop'"),
    ],
)
def test_a_row_of_a_text_without_a_text_in_its_answer_is_an_error(message, reason):
    row = TextRequest(model_name="m", messages=[{"role": "user", "content": "a"}])

    with pytest.raises(RefusedError, match=f"the answer has no text: {reason}"):
        response_of(row, CHAT, chat(message))
