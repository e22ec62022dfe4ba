"""What is known of a batch API line without the model that will answer it."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from sheaf_dagster.contracts import OpenAIBatchRequest, TextRequest

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
HELLO = {"role": "user", "content": "hello"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def line(url: str, **fields) -> OpenAIBatchRequest:
    needed = {CHAT: {"messages": [HELLO]}, COMPLETIONS: {"prompt": "a"}, EMBEDDINGS: {"input": "a"}}
    return OpenAIBatchRequest(custom_id="a", url=url, body={**needed.get(url, {}), **fields})


@pytest.mark.parametrize(
    ("url", "fields", "place"),
    [
        (CHAT, {"max_tokens": -1}, "body.max_tokens"),
        (CHAT, {"max_tokens": 0}, "body.max_tokens"),
        (CHAT, {"max_completion_tokens": 0}, "body.max_completion_tokens"),
        (CHAT, {"max_tokens": 3, "max_completion_tokens": 4}, "body"),
        (CHAT, {"max_tokens": 2.5}, "body.max_tokens"),
        (CHAT, {"max_tokens": "5"}, "body.max_tokens"),
        (CHAT, {"max_tokens": True}, "body.max_tokens"),
        (CHAT, {"n": 0}, "body.n"),
        (CHAT, {"n": "two"}, "body.n"),
        (CHAT, {"seed": "x"}, "body.seed"),
        (CHAT, {"stop": [""]}, "body.stop"),
        (CHAT, {"stop": ""}, "body.stop"),
        (CHAT, {"stop": 5}, "body.stop"),
        (CHAT, {"stop": ["a", 5]}, "body.stop"),
        (CHAT, {"temperature": -0.1}, "body.temperature"),
        (CHAT, {"temperature": float("nan")}, "body.temperature"),
        (CHAT, {"top_p": 2}, "body.top_p"),
        (CHAT, {"presence_penalty": 3}, "body.presence_penalty"),
        (CHAT, {"logprobs": 0}, "body.logprobs"),
        (CHAT, {"top_logprobs": 3}, "body"),
        (CHAT, {"tools": "all"}, "body.tools"),
        (CHAT, {"stream": True}, "body"),
        (CHAT, {"messages": []}, "body"),
        (CHAT, {"messages": "hello"}, "body"),
        (CHAT, {"messages": [{"role": "me", "content": "a"}]}, "body.messages.0.role"),
        (CHAT, {"messages": [HELLO, {"role": "user"}]}, "body.messages.1"),
        (CHAT, {"messages": [{"role": "user", "content": None}]}, "body.messages.0"),
        (CHAT, {"messages": [{"role": "user", "content": {"a": 1}}]}, "body.messages.0.content"),
        (CHAT, {"messages": [{"role": "user", "content": 7}]}, "body.messages.0.content"),
        (CHAT, {"messages": [{"role": "user", "content": []}]}, "body.messages.0.content"),
        (CHAT, {"messages": [{"role": "user", "content": [7]}]}, "body.messages.0.content"),
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 7}]}]},
            "body.messages.0.content",
        ),
        (CHAT, {"messages": [{**HELLO, "name": 7}]}, "body.messages.0.name"),
        (COMPLETIONS, {"prompt": 7}, "body"),
        (COMPLETIONS, {"prompt": []}, "body"),
        (COMPLETIONS, {"prompt": ["a", 7]}, "body"),
        (COMPLETIONS, {"prompt": [[1], []]}, "body"),
        (COMPLETIONS, {"max_tokens": 0}, "body"),
        (COMPLETIONS, {"logprobs": "all"}, "body.logprobs"),
        (EMBEDDINGS, {"input": None}, "body"),
        (EMBEDDINGS, {"dimensions": 0}, "body.dimensions"),
        (EMBEDDINGS, {"encoding_format": "int8"}, "body.encoding_format"),
        ("/v1/responses", {"input": "a", "background": True}, "body.background"),
        ("/v1/responses", {"input": "a", "stream": True}, "body"),
        ("/v1/responses", {"input": "a", "max_output_tokens": 0}, "body.max_output_tokens"),
        ("/rerank", {"query": "a", "documents": ["b"], "top_n": -1}, "body.top_n"),
        ("/v1/rerank", {"documents": ["b"]}, "body.query"),
        ("/v2/rerank", {"query": "a"}, "body.documents"),
        ("/v1/images", {}, "url"),
    ],
)
def test_what_no_model_can_answer_is_refused_with_its_place(url, fields, place):
    with pytest.raises(ValidationError) as caught:
        line(url, **fields)

    assert [".".join(map(str, e["loc"])) for e in caught.value.errors()] == [place]


@pytest.mark.parametrize(
    ("url", "fields"),
    [
        (CHAT, {"max_tokens": 3, "max_completion_tokens": 3.0, "temperature": 1, "stop": "a"}),
        (CHAT, {"stop": None, "stream": False, "logprobs": True, "top_logprobs": 2}),
        (CHAT, {"messages": [HELLO, {"role": "assistant", "content": None, "tool_calls": [CALL]}]}),
        (CHAT, {"messages": [{"role": "user", "content": ["a", {"type": "text", "text": "b"}]}]}),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
        (CHAT, {"structured_outputs": {"choice": ["a"]}, "of_some_engine": [1, {"b": None}]}),
        (COMPLETIONS, {"prompt": [1, 2, 3]}),
        (COMPLETIONS, {"prompt": [[1, 2], [3]]}),
        (COMPLETIONS, {"max_tokens": 0, "echo": True, "logprobs": 0}),
        (EMBEDDINGS, {"input": ["a", "b"], "encoding_format": "base64", "dimensions": 8}),
        ("/v1/score", {"text_1": "a", "text_2": "b"}),
        ("/rerank", {"query": "a", "documents": ["b", {"content": []}], "top_n": 0}),
        ("/v1/responses", {"input": "a"}),
    ],
)
def test_a_body_reaches_the_backend_as_it_is(url, fields):
    made = line(url, **fields)

    assert {name: made.body[name] for name in fields} == fields


def test_a_field_beside_the_body_is_refused():
    with pytest.raises(ValidationError, match="custom_idd"):
        OpenAIBatchRequest(custom_id="a", custom_idd="b", url=COMPLETIONS, body={"prompt": "a"})


def test_rows_that_are_equal_have_ids_of_their_own_by_their_places():
    rows = [line(COMPLETIONS) for _ in range(2)]
    for position, row in enumerate(rows):
        row.placed(position)

    assert len({row.answer({}).id for row in rows}) == 2
    again = line(COMPLETIONS)
    again.placed(1)
    assert again.answer({}).id == rows[1].answer({}).id


def test_what_a_server_said_of_a_failed_row_is_in_its_line():
    refusal = ValueError("too long")
    refusal.status_code = 400

    record = line(COMPLETIONS).error_record(refusal)

    assert record["error"] == {"code": "ValueError", "message": "too long"}
    assert record["response"]["status_code"] == 400
    assert record["response"]["body"]["error"]["message"] == "too long"
    assert line(COMPLETIONS).error_record(ValueError("no"))["response"] is None


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"text": "a", "stop": [""]}, "stop.0"),
        ({"messages": [{"role": "user"}]}, "messages.0"),
        ({"messages": [{**HELLO, "mood": "good"}]}, "messages.0.mood"),
        ({"messages": [{"role": "assistant", "tool_calls": []}]}, "messages.0"),
    ],
)
def test_rows_of_texts_are_held_to_the_same(fields, place):
    with pytest.raises(ValidationError) as caught:
        TextRequest(model_name="m", **fields)

    assert [".".join(map(str, e["loc"])) for e in caught.value.errors()] == [place]
