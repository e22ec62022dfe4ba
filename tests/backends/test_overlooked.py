"""Fields of a body that an engine would take and overlook, found by its own models of bodies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sheaf_dagster.backends.language.overlooked import unknown_fields, without_effect
from sheaf_dagster.contracts import OpenAIBatchRequest


@dataclass
class Constraint:
    regex: str | None = None


class Format(BaseModel):
    model_config = ConfigDict(extra="allow")
    kind: str
    own: dict[str, Any] | None = Field(default=None, alias="schema")


class Tool(BaseModel):
    model_config = ConfigDict(extra="allow")
    function: Format


class Body(BaseModel):
    model_config = ConfigDict(extra="allow")
    messages: list[Format]
    format: Format | None = None
    tools: list[Tool] = []
    constraint: Constraint | None = None
    template: dict[str, Any] | None = None


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, []),
        ({"temprature": 1}, ["temprature"]),
        ({"format": {"kind": "a", "schema": {"any": {"key": 1}}}}, []),
        ({"format": {"kind": "a", "skema": {}}}, ["format.skema"]),
        ({"tools": [{"function": {"kind": "a"}}, {"function": {"kind": "b", "strikt": 1}, "x": 2}]},
         ["tools.1.function.strikt", "tools.1.x"]),
        ({"constraint": {"regex": "a", "regx": "b"}}, ["constraint.regx"]),
        ({"template": {"anything": {"at": "all"}}}, []),
    ],
)  # fmt: skip
def test_names_that_a_model_lacks_are_found_at_any_depth(body, expected):
    given = {"messages": [{"kind": "user", "thinking": "of the model's own"}], **body}
    parsed = Body.model_validate(given)

    assert unknown_fields(parsed, given) == expected


@pytest.mark.parametrize(
    ("url", "body", "expected"),
    [
        ("/v1/chat/completions", {"length_penalty": 1.0}, []),
        ("/v1/chat/completions", {"length_penalty": 2.0}, ["length_penalty"]),
        ("/v1/completions", {"length_penalty": 2.0, "use_beam_search": True}, []),
        ("/v1/responses", {"max_tool_calls": 3, "text": {"verbosity": "low"}},
         ["max_tool_calls", "text.verbosity"]),
        ("/v1/responses", {"text": {"format": {"type": "text"}}, "max_tool_calls": None}, []),
    ],
)  # fmt: skip
def test_fields_that_nothing_reads_are_named(url, body, expected):
    assert without_effect(url, body) == expected


@pytest.mark.parametrize("bias", [100.5, -101])
def test_a_bias_that_engines_would_hold_to_a_limit_is_refused(bias):
    body = {"prompt": "a", "logit_bias": {"5": bias}}
    with pytest.raises(ValidationError, match="100"):
        OpenAIBatchRequest(custom_id="a", url="/v1/completions", body=body)
    body["logit_bias"] = {"5": -100, "6": 100}
    OpenAIBatchRequest(custom_id="a", url="/v1/completions", body=body)
