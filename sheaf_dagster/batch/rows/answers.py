"""Answers: from a typed response, or an error, to a line."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

import orjson
from pydantic import BaseModel
from pydantic_core import to_json

from sheaf_dagster.batch.messages import shortened
from sheaf_dagster.batch.rows.codec import RowCodec
from sheaf_dagster.batch.rows.fast import fast_codec, may_hide_fields
from sheaf_dagster.batch.rows.general import GeneralCodec
from sheaf_dagster.batch.rows.repeatable import repeatable
from sheaf_dagster.errors import SheafError
from sheaf_dagster.masking import masked

__all__ = ["ErrorLine", "error_line", "has_non_finite", "non_finite_in", "response_lines"]


class ErrorLine(bytes):
    """The finished line of a failed row, without its newline, in place of a response."""


def response_lines(responses: Sequence[BaseModel]) -> tuple[list[bytes], int]:
    """Responses as lines of RFC 8259 JSON, and how many numbers in them were not finite.

    Those become ``null``. The lines have no newline yet.
    """
    if not responses:
        return [], 0
    lines = _lines(responses)
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
            bad += non_finite_in(response.model_dump(mode="python"))
        if constants:
            lines[i] = to_json(response.model_dump(mode="json"), inf_nan_mode="null")
    return lines, bad


def has_non_finite(response: BaseModel) -> bool:
    """Whether a number of a response is not finite; False where it can't be written at all."""
    try:
        return response_lines([response])[1] > 0
    except Exception:
        return False


def _lines(responses: Sequence[BaseModel]) -> list[bytes]:
    kinds = {type(r) for r in responses}
    if len(kinds) > 1:
        return [line for response in responses for line in _lines([response])]
    (kind,) = kinds
    codecs: tuple[RowCodec, ...] = (fast_codec(kind), GeneralCodec(kind))
    tried = (codec.write(responses) for codec in codecs)
    return next(lines for lines in tried if lines is not None)


def _nones(responses: Sequence[BaseModel]) -> int:
    """None fields of responses; -1 where they needn't be nulls in their lines."""
    if any(map(may_hide_fields, {type(r) for r in responses})):
        return -1
    return len([0 for r in responses for value in r.__dict__.values() if value is None])


def _has_constants(data: bytes) -> bool:
    # Looking for one byte first takes a tenth of the time.
    return (b"N" in data and b"NaN" in data) or (b"I" in data and b"Infinity" in data)


def non_finite_in(value: Any) -> int:
    """Numbers in a value that are not finite."""
    if isinstance(value, float):
        return value != value or value in (float("inf"), float("-inf"))
    if isinstance(value, dict):
        return sum(map(non_finite_in, value.values()))
    if isinstance(value, (list, tuple, set, frozenset)):
        if {*map(type, value)} == {float} and all(map(isfinite, value)):
            return 0  # the common case, in a fraction of the time
        return sum(map(non_finite_in, value))
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
