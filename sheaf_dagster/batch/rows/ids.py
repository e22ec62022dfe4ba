"""The id of a row without one: derived from its content, and from how many rows before it have that.

A row that is inserted, removed or moved doesn't change the ids of others, and neither does another
order of a row's fields. Equal rows have the ids of the first, the second and so on among them.

Rows that stay in a table's columns have ids of their position and content: to find equal ones before
they are run, each would have to be looked at.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple, Protocol
from uuid import UUID

import msgspec
from pydantic import BaseModel

from sheaf_dagster.batch.rows.columnar import content_of_line
from sheaf_dagster.batch.rows.content import content_digest
from sheaf_dagster.batch.rows.fast import Given
from sheaf_dagster.batch.rows.general import GeneralCodec
from sheaf_dagster.batch.rows.inside import given_fields
from sheaf_dagster.batch.rows.plain import PlainModel
from sheaf_dagster.contracts import row_identity
from sheaf_dagster.contracts.base import PASSES

__all__ = [
    "Identity",
    "OwnId",
    "derived_id",
    "id_reader",
    "is_answered_by",
    "own_id_of",
    "placed_id",
]

_NAMESPACE = UUID("5f0c3f0e-6d5e-5b3a-9a43-7d2f8f1e3c11").bytes
_VERSION_5 = 5 << 76 | 2 << 62
_RANDOM = ~(15 << 76 | 3 << 62)
"""The bits of a UUID that say neither its version nor its variant."""


def derived_id(digest: bytes, occurrence: int) -> UUID:
    """A UUIDv5 of a row's content.

    Args:
        digest: Of the content; see ``content_digest``.
        occurrence: Rows of the source before it that have the same content and no id either.
    """
    return _uuid5(digest + b":%d" % occurrence if occurrence else digest)


def placed_id(position: int, content: bytes) -> UUID:
    """A UUIDv5 of a row's position and content, for a table's row.

    Args:
        position: Its position in the source.
        content: What it says.
    """
    return _uuid5(b"%d:" % position + content)


class OwnId(Protocol):
    """Derives the id of a row that brings none."""

    def __call__(self, position: int, line: bytes, given: Given | None = None, /) -> UUID:
        """The id.

        Args:
            position: The row's position in the source.
            line: The row.
            given: Its fields, where they are known; see ``FastCodec.fields``.
        """
        ...


def own_id_of(
    contract: type[BaseModel], occurrence_of: Callable[[int], int], *, table: bool
) -> OwnId:
    """What derives the ids of rows.

    Args:
        contract: What the rows are.
        occurrence_of: How many rows before a position have the content of the row there.
        table: They are a table's.
    """
    if table:
        return lambda position, line, given=None: placed_id(position, content_of_line(line))
    content = content_digest(contract)

    def own_id(position: int, line: bytes, given: Given | None = None) -> UUID:
        digest = content(line) if given is None else content.of_plain(line, given)
        return derived_id(digest, occurrence_of(position))

    return own_id


class Identity(NamedTuple):
    """What stands for a request of which no more is needed."""

    request_id: UUID


class _Id(msgspec.Struct, gc=False):
    request_id: UUID | None = None


@lru_cache(maxsize=64)
def id_reader(contract: type[BaseModel]) -> Callable[[bytes], UUID | None] | None:
    """Reads the id of a valid line without the rest of the row, which takes a fourth of the time.

    Args:
        contract: What the rows are.

    Returns:
        A function of a line: None where it brings no id. No function where the contract may do more
        with an id than read it.
    """
    try:
        plain = PlainModel(contract)
    except Exception:
        return None
    known = all(hasattr(validator, PASSES) for validator in plain.validators)
    if not known or plain.types.get("request_id") is not UUID:
        return None
    decode = msgspec.json.Decoder(_Id).decode
    read_whole = GeneralCodec(contract).read

    def read(line: bytes) -> UUID | None:
        try:
            return decode(line).request_id
        except msgspec.MsgspecError:  # NaN, half a surrogate, another spelling of an id
            request: Any = read_whole(line)
            return request.request_id if "request_id" in given_fields(request) else None

    return read


def is_answered_by(request: Any, position: int, line: bytes, found: Any) -> bool:
    """Whether the identity that an answer has is that of a row; of a row without one it is any.

    Outputs of earlier versions have ids that were derived from the position and the bytes of a row.

    Args:
        request: The row.
        position: Its position in the source.
        line: Its line.
        found: The answer's identity.
    """
    asked = row_identity(request)
    if asked is None or str(found) == str(asked):
        return True
    return str(found) == str(placed_id(position, line.strip()))


def _uuid5(name: bytes) -> UUID:
    digest = hashlib.sha1(_NAMESPACE + name, usedforsecurity=False).digest()
    # ``UUID(bytes=…, version=5)`` does the same in twice the time.
    return UUID(int=int.from_bytes(digest[:16], "big") & _RANDOM | _VERSION_5)
