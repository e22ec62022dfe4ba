"""What a line of an output says when it is read again: that its row failed, or what it counts for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, get_args

import orjson
from pydantic import BaseModel, ValidationError

from sheaf_dagster.batch.kept import KEPT_TOKENS
from sheaf_dagster.contracts import deviations_of
from sheaf_dagster.contracts.tokens import tokens_of

__all__ = ["FailedLines", "counted", "record_of"]


class FailedLines:
    """Tells the error rows of an output from its answers.

    Args:
        request: The contract's request, which may give its error rows a form of their own.
        response: The contract's response.
    """

    def __init__(self, request: type[BaseModel], response: type[BaseModel]) -> None:
        self._response = response
        self._own_form = callable(getattr(request, "error_record", None))
        self._may_have_error = "error" in response.model_fields

    @property
    def mark(self) -> bytes | None:
        """What every error row holds; None where they have a form of their own."""
        return None if self._own_form else b'"error"'

    def is_failed(self, line: bytes) -> bool:
        """Whether a line stands for a row that failed."""
        if self.mark is not None and self.mark not in line:
            return False
        error = record_of(line).get("error")
        if self._own_form:
            return bool(error) or not self._is_answer(line)
        if not (isinstance(error, dict) and {"type", "message"} <= error.keys()):
            return False
        return not (self._may_have_error and self._is_answer(line))

    def _is_answer(self, line: bytes) -> bool:
        try:
            self._response.model_validate_json(line)
        except ValidationError as e:
            return _nulls(e) == e.error_count()  # numbers that were not finite
        return True


def record_of(line: bytes) -> Mapping[str, Any]:
    """What a line says; nothing where it is no JSON object, as in a file that was damaged."""
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        return {}
    return record if isinstance(record, dict) else {}


def counted(lines: Sequence[bytes], response: type[BaseModel]) -> tuple[Counter[str], int]:
    """What kept answers count for.

    Args:
        lines: The answers.
        response: Their contract.

    Returns:
        Deviations by the first letters of their kinds and tokens by those of ``KEPT_TOKENS``, and
        how many numbers were not finite.
    """
    counts: Counter[str] = Counter()
    non_finite = 0
    if _tells_nothing(b"\n".join(lines), response):  # the common case, at a glance
        return counts, non_finite
    for line in lines:
        if not _tells_nothing(line, response):
            non_finite += _count(line, response, counts)
    return counts, non_finite


def _tells_nothing(text: bytes, response: type[BaseModel]) -> bool:
    """Whether there is surely nothing to count in some lines."""
    tells = b'"deviations"' in text or _tells_tokens(response)
    return not tells and _may_be_null(text, response)


def _count(line: bytes, response: type[BaseModel], into: Counter[str]) -> int:
    answer: Any
    non_finite = 0
    try:
        answer = response.model_validate_json(line)
    except ValidationError as e:
        non_finite, answer = _nulls(e), orjson.loads(line)
    into.update(kind[0] for kind in deviations_of(answer))
    for kind, tokens in tokens_of(answer).items():
        into[KEPT_TOKENS[kind]] += tokens
    return non_finite


def _may_be_null(text: bytes, response: type[BaseModel]) -> bool:
    """Whether each null of some answers is surely the value of a field that may be null."""
    nulls = text.count(b"null")
    return not nulls or nulls == sum(map(text.count, _null_fields(response)))


@lru_cache(maxsize=64)
def _null_fields(response: type[BaseModel]) -> list[bytes]:
    fields = response.model_fields.items()
    return [b'"%s":null' % n.encode() for n, f in fields if type(None) in get_args(f.annotation)]


@lru_cache(maxsize=64)
def _tells_tokens(response: type[BaseModel]) -> bool:
    return callable(getattr(response, "token_usage", None))


def _nulls(error: ValidationError) -> int:
    """At how many places a null stands for a number."""
    found = error.errors(include_url=False, include_context=False, include_input=True)
    return len({e["loc"] for e in found if e["input"] is None})
