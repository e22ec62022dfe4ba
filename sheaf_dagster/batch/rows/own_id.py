"""Putting a row's own id into an answer that was made for another row of the same content."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import orjson
from pydantic import BaseModel

from sheaf_dagster.batch.rows.content import identity_field
from sheaf_dagster.batch.rows.ids import id_reader
from sheaf_dagster.contracts import row_identity

__all__ = ["have_own_ids", "with_own_id"]

_BEGINS = re.compile(rb'\{"request_id": ?"([^"\\]*)"').match
_VALUE = re.compile(rb'"(?:[^"\\]|\\.)*"|null')
_decoder = json.JSONDecoder()


def with_own_id(
    line: bytes, request: Any, contract: type[BaseModel], response: type[BaseModel]
) -> bytes | None:
    """The line with the id of a row in place of the one that it has.

    Args:
        line: An answer, or an error row.
        request: The row. By a method ``renamed(line)`` it may put in other ids that it makes.
        contract: The contract's request.
        response: The contract's response.

    Returns:
        None where the line has no such field, though the contract's answers have.
    """
    name, makes_others = _identity(contract, response)
    asked = None if name is None else row_identity(request)
    if asked is None or name is None:
        return line
    renamed = _with_own_id(line, name, orjson.dumps(str(asked)))
    return request.renamed(renamed) if renamed and makes_others else renamed


def have_own_ids(
    lines: Sequence[bytes],
    answers: Sequence[bytes],
    contract: type[BaseModel],
    response: type[BaseModel],
) -> bool:
    """Whether answers have the ids of their rows for certain: to see this takes a third of the time.

    Args:
        lines: Of rows, which are valid.
        answers: Of the rows.
        contract: The contract's request.
        response: The contract's response.
    """
    if id_reader(contract) is None or _identity(contract, response) != ("request_id", False):
        return False
    for line, answer in zip(lines, answers, strict=True):
        asked, found = _BEGINS(line), _BEGINS(answer)
        if asked is None or found is None or asked[1] != found[1]:
            return False
        # Of a name that stands twice the last counts, and letters may be written by their numbers.
        if line.count(b'"request_id"') > 1 or b"\\u" in line:
            return False
    return True


@lru_cache(maxsize=64)
def _identity(contract: type[BaseModel], response: type[BaseModel]) -> tuple[str | None, bool]:
    """The field of an answer that has its row's identity, and whether other ids depend on it."""
    name = identity_field(contract)
    return name if name in response.model_fields else None, hasattr(contract, "renamed")


def _with_own_id(line: bytes, name: str, own: bytes) -> bytes | None:
    key = b'"%s":' % name.encode()
    if line.count(key) == 1:
        if key + own in line:
            return line
        at = line.index(key) + len(key)
        found = _VALUE.match(line, at)
        return None if found is None else line[:at] + own + line[found.end() :]
    return _at_top_level(line, name, own)


def _at_top_level(line: bytes, name: str, own: bytes) -> bytes | None:
    """The same where what is inside of the answer has a field of that name, too."""
    try:
        text, at = line.decode(), 1
        while True:
            key, at = _decoder.raw_decode(text, at)
            _, end = _decoder.raw_decode(text, at + 1)
            if key == name:
                return text[: at + 1].encode() + own + text[end:].encode()
            if text[end] != ",":
                return None
            at = end + 1
    except (ValueError, IndexError):
        return None
