"""Answers: from a typed response, or an error, to a line."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import orjson
from pydantic import BaseModel
from pydantic_core import to_json

from sheaf_dagster.batch.messages import shortened
from sheaf_dagster.batch.rows.repeatable import repeatable
from sheaf_dagster.batch.rows.schemas import schemas_in
from sheaf_dagster.errors import SheafError
from sheaf_dagster.masking import masked

__all__ = ["error_line", "has_non_finite", "response_lines"]


def response_lines(responses: Sequence[BaseModel]) -> tuple[list[bytes], int]:
    """Responses as lines of RFC 8259 JSON, and how many numbers in them were not finite.

    Those become ``null``. The lines have no newline yet.
    """
    lines = _plain_lines(responses)
    if lines is None:
        lines = [r.__pydantic_serializer__.to_json(r) for r in responses]
    # As many nulls as the responses have None fields means that no number became one: the common
    # case costs a few scans of bytes for the whole batch. Anything else is counted one by one.
    text = b"\n".join(lines)
    if not _has_constants(text):
        nulls = text.count(b"null")
        if not nulls or nulls == _nones(responses):
            return lines, 0
    bad = 0
    for i, (line, response) in enumerate(zip(lines, responses, strict=True)):
        nulls, constants = line.count(b"null"), _has_constants(line)
        if constants or (nulls and nulls != _nones([response])):
            bad += _count_non_finite(response.model_dump(mode="python"))
        if constants:
            lines[i] = to_json(response.model_dump(mode="json"), inf_nan_mode="null")
    return lines, bad


def has_non_finite(response: BaseModel) -> bool:
    """Whether a number of a response is not finite; False where it can't be written at all."""
    try:
        return response_lines([response])[1] > 0
    except Exception:
        return False


def _plain_lines(responses: Sequence[BaseModel]) -> list[bytes] | None:
    """What pydantic would write, where that is each field's value as it is, in a third of the time.

    None where a response has fields, or values, that pydantic and orjson may write differently. Of
    values that nobody has validated (``model_construct``), whole numbers in a field of floats stay
    whole.
    """
    if not all(map(_is_plain, {type(r) for r in responses})):
        return None
    dumps = orjson.dumps
    try:
        return [dumps(r.__dict__, None, _AS_PYDANTIC) for r in responses]
    except TypeError:
        return None


_AS_PYDANTIC = (
    orjson.OPT_PASSTHROUGH_DATACLASS
    | orjson.OPT_PASSTHROUGH_DATETIME
    | orjson.OPT_PASSTHROUGH_SUBCLASS
)
"""What pydantic writes in a form of its own, or as a field's type has it, is a TypeError."""


@lru_cache(maxsize=32)
def _is_plain(response: type[BaseModel]) -> bool:
    """Whether the fields' values are all that is written, under the fields' names."""
    schema: Any = response.__pydantic_core_schema__
    while isinstance(schema, dict) and schema["type"] == "function-after":
        if "serialization" in schema:
            return False
        schema = schema["schema"]
    if not isinstance(schema, dict) or schema["type"] != "model" or schema.get("root_model"):
        return False
    fields = schema["schema"]
    config = schema.get("config", {})
    if (
        fields["type"] != "model-fields"
        or fields.get("computed_fields")
        or config.get("extra_fields_behavior") == "allow"
        or any(key.startswith(("ser", "json_")) for key in config)
        or any("serialization_alias" in field for field in fields["fields"].values())
    ):
        return False
    kinds = (node["type"] for field in fields["fields"].values() for node in schemas_in(field))
    return _PLAIN_KINDS.issuperset(kinds) and not _may_hide_fields(response)


_PLAIN_KINDS = frozenset(
    {
        "any",
        "bool",
        "default",
        "dict",
        "enum",
        "float",
        "int",
        "list",
        "literal",
        "model-field",
        "none",
        "nullable",
        "str",
        "union",
        "uuid",
    }
)


def _nones(responses: Sequence[BaseModel]) -> int:
    """None fields of responses; -1 where they needn't be nulls in their lines."""
    if any(map(_may_hide_fields, {type(r) for r in responses})):
        return -1
    return len([0 for r in responses for value in r.__dict__.values() if value is None])


@lru_cache(maxsize=32)
def _may_hide_fields(response: type[BaseModel]) -> bool:
    """Whether a None in one of its fields may be written as something else, or left out."""
    for node in schemas_in(response.__pydantic_core_schema__):
        if "serialization_exclude" in node or "serialization_exclude_if" in node:
            return True
        # Of the ways to write a field that pydantic knows these write None as null.
        if node.get("serialization", _AS_IT_IS)["type"] not in ("to-string", "format"):
            return True
    return False


_AS_IT_IS = {"type": "to-string"}


def _has_constants(data: bytes) -> bool:
    # Looking for one byte first takes a tenth of the time.
    return (b"N" in data and b"NaN" in data) or (b"I" in data and b"Infinity" in data)


def _count_non_finite(value: Any) -> int:
    if isinstance(value, float):
        return value != value or value in (float("inf"), float("-inf"))
    if isinstance(value, dict):
        return sum(map(_count_non_finite, value.values()))
    if isinstance(value, (list, tuple, set, frozenset)):
        return sum(map(_count_non_finite, value))
    return 0


_LOOKED_AT = 8000
"""Characters of an error's text of which the beginning is written."""


def error_line(request: Any, error: BaseException, *, redact: bool = False) -> bytes:
    """The line that stands in for a failed row's response (``on_error="record"``).

    It has no newline yet, and is the same at each run. A request type may have a form of its own:
    a method ``error_record(error) -> dict``.
    """
    name, said = type(error).__name__, shortened(masked(str(error)), _LOOKED_AT)
    # A name of a file that isn't UTF-8 has characters that JSON can't hold.
    text = shortened(repeatable(said.encode("utf-8", "backslashreplace").decode(), request))
    if redact and not isinstance(error, SheafError):  # our own errors quote no row
        text = "left out: redact_rows"
    if text != str(error):
        known = {k: getattr(error, k) for k in ("status_code", "kind") if hasattr(error, k)}
        error = type(name, (Exception,), known)(text)
    own_form = getattr(request, "error_record", None)
    if callable(own_form):
        return orjson.dumps(own_form(error))
    record = {
        key: str(getattr(request, key))
        for key in ("request_id", "model_type", "model_name")
        if getattr(request, key, None) is not None
    }
    code = getattr(error, "status_code", None)
    status = {} if code is None else {"status_code": code}
    return orjson.dumps({**record, "error": {"type": name, "message": text, **status}})
