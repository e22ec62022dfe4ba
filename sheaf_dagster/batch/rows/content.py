"""What a row asks, apart from who asks: rows of equal content may share an answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import msgspec
from pydantic import BaseModel

from sheaf_dagster.batch.rows.fast import Given, fast_codec
from sheaf_dagster.batch.rows.inside import core_schema_of, schemas_in

__all__ = ["DIGEST_BYTES", "ContentDigest", "content_digest", "identity_field"]

DIGEST_BYTES = 16

_read = msgspec.json.Decoder().decode
_write_sorted = msgspec.msgpack.Encoder(order="deterministic").encode
"""Sorts names, and writes a float as its eight bytes: its digits would take ten times as long."""

_write_as_given = msgspec.msgpack.Encoder().encode
"""The same with the names of objects in the order in which they are."""

_OPEN = {"any", "dict", "function-plain", "is-instance"}
"""What a contract calls fields that take objects as they are, in their order."""

_SHORT = b"m"
_EXACT = b"e"
_AS_IT_IS = b"l"
"""Digests of the three ways to write a row down never meet."""


@lru_cache(maxsize=64)
def identity_field(contract: type[BaseModel]) -> str | None:
    """The field by which a row is told from others of equal content, if the contract has one."""
    names = (name for name in ("request_id", "custom_id") if name in contract.model_fields)
    return next(names, None)


class ContentDigest:
    """Hashes the content of lines: their JSON in one form, without the row's identity.

    The order of fields and the space between them don't count. Of a plain row the values count as
    the contract reads them: in a field of floats 1 is the same as 1.0. Of any other row the kind of a
    number counts, too, and each digit where the contract has decimals. Inside of a field the order
    counts where the contract has any that takes objects as they are, such as a dictionary or
    the body of a call: a model may see it, as in a prompt. What a row points to, a file say, isn't
    looked at.

    Args:
        contract: What the rows are.
        whole: With the identity.
    """

    def __init__(self, contract: type[BaseModel], *, whole: bool) -> None:
        self._identity = (None if whole else identity_field(contract)) or ""
        self._plain = fast_codec(contract).fields
        self._by_digits = _has(contract, lambda node: node["type"] == "decimal")
        self._by_order = _has(contract, _takes_objects_as_they_are)

    def __call__(self, line: bytes) -> bytes:
        """The digest of a line, of ``DIGEST_BYTES``."""
        given = self._plain(line)
        return self.of_any(line) if given is None else self.of_plain(line, given)

    def of_plain(self, line: bytes, given: Given) -> bytes:
        """The digest of a line whose fields are known; see ``FastCodec.fields``.

        Args:
            line: The line.
            given: Its fields, with or without the row's identity.
        """
        try:
            return _hashed(_SHORT + self._packed(self._without_identity(given)))
        except (ValueError, OverflowError, RecursionError):
            return self.of_any(line)

    def of_any(self, line: bytes) -> bytes:
        """The digest of a line that isn't plain."""
        try:
            row = None if self._by_digits else _read(line)
            if type(row) is dict:
                return _hashed(_SHORT + self._packed(self._without_identity(row)))
        except (ValueError, OverflowError, RecursionError):
            pass  # NaN, half a surrogate, a whole number of more than 64 bits
        try:
            return _hashed(_EXACT + _exactly(line, self._identity, by_order=self._by_order))
        except (ValueError, RecursionError):
            return _hashed(_AS_IT_IS + line.strip())

    def _without_identity(self, row: dict[str, Any]) -> dict[str, Any]:
        if self._identity not in row:
            return row
        return {name: value for name, value in row.items() if name != self._identity}

    def _packed(self, row: dict[str, Any]) -> bytes:
        if not self._by_order:
            return _write_sorted(row)
        return _write_as_given({name: row[name] for name in sorted(row)})


def _hashed(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()[:DIGEST_BYTES]


@lru_cache(maxsize=64)
def content_digest(contract: type[BaseModel], *, whole: bool = False) -> ContentDigest:
    """What hashes the content of a contract's lines; see ``ContentDigest``."""
    return ContentDigest(contract, whole=whole)


def _has(contract: type[BaseModel], what: Callable[[dict[str, Any]], bool]) -> bool:
    """Whether something is anywhere in a contract."""
    try:
        return any(map(what, schemas_in(core_schema_of(contract))))
    except Exception:  # its types aren't all defined yet
        return True


def _takes_objects_as_they_are(node: dict[str, Any]) -> bool:
    extra = node.get("extra_behavior") or (node.get("config") or {}).get("extra_fields_behavior")
    return node["type"] in _OPEN or extra == "allow"


def _exactly(text: bytes, identity: str, *, by_order: bool) -> bytes:
    """As Python shows it: numbers by their digits, objects as tuples, sorted if they needn't be as given."""
    in_order = _as_given if by_order else _in_order
    read = json.loads(text, parse_float=_Digits, parse_int=_Digits, object_pairs_hook=in_order)
    if isinstance(read, tuple):
        read = tuple(sorted(field for field in read if field[0] != identity))
    return repr(read).encode()


class _Digits(str):
    __slots__ = ()
    __repr__ = str.__str__


def _in_order(fields: list[tuple[str, Any]]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(dict(fields).items()))


def _as_given(fields: list[tuple[str, Any]]) -> tuple[tuple[str, Any], ...]:
    return tuple(dict(fields).items())
