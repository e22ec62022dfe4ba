"""Rows whose key another row of the source has already.

A contract names its key, which no two rows may share: a class attribute ``unique_key`` with a
field's name. Of other contracts it is ``request_id``, which rows should not share; those that do are
counted, and refused where the job is strict. A key has 128 bits: a UUID's own, of a text a hash. They
are on the driver's disk (28 bytes a row). In its memory those of a million rows take 10 MB, and those of
ten million 25 MB. A row without an id costs nothing.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from sheaf_dagster.batch.rows.content import identity_field
from sheaf_dagster.batch.rows.spill import SortedSpill

__all__ = ["Duplicate", "KeysOfChunk", "SeenKeys", "key_field", "unique_key"]

_PACKED = np.dtype([("high", "<u8"), ("low", "<u8"), ("line", "<u4")])
_RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("file", "<u4"), ("line", "<u8")])
_KEY_BYTES = 16


class Duplicate(NamedTuple):
    """A row with the key of an earlier one; files are indices, lines count from 1."""

    file: int
    line: int
    first_file: int
    first_line: int


def unique_key(contract: type[BaseModel]) -> str | None:
    """The field whose value no two rows of a source may share, if the contract names one."""
    key = getattr(contract, "unique_key", None)
    return key if isinstance(key, str) and key in contract.model_fields else None


def key_field(contract: type[BaseModel]) -> str | None:
    """The field whose value is looked at: that of ``unique_key``, or else the row's identity."""
    return unique_key(contract) or identity_field(contract)


class KeysOfChunk:
    """The keys of a chunk's valid rows, by line.

    They are bytes at once: objects that stay would have Python look through all of its own.
    """

    def __init__(self) -> None:
        self._lines = array("I")
        self._bits = bytearray()

    def add(self, lines: Sequence[int], keys: Sequence[Any]) -> None:
        """Takes the keys of some lines."""
        self._lines.extend(lines)
        if {*map(type, keys)} == {UUID}:  # as in most chunks; ``UUID.bytes`` takes twice as long
            self._bits += b"".join([key.int.to_bytes(_KEY_BYTES, "big") for key in keys])
        else:
            self._bits += b"".join(map(_bits_of, keys))

    def packed(self) -> bytes:
        """What ``SeenKeys`` takes."""
        bits = np.frombuffer(bytes(self._bits), dtype=[("a", "<u8"), ("b", "<u8")])
        records = np.empty(len(bits), dtype=_PACKED)
        records["high"], records["low"] = _spread(bits["a"], bits["b"])
        records["line"] = np.frombuffer(self._lines, dtype=np.uintc)
        return records.tobytes()


def _bits_of(key: Any) -> bytes:
    if type(key) is UUID:
        return key.bytes
    text = str(key).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=_KEY_BYTES).digest()


def _spread(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> tuple[Any, Any]:
    """The same 128 bits, spread over their range: UUIDs may be counted up, and are sorted in buckets.

    Different keys stay different (a Feistel network), so no two need be compared any further.
    """
    for _ in range(2):
        a = a ^ _mixed(b)
        b = b ^ _mixed(a)
    return a, b


def _mixed(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The last step of the generator SplitMix64 (Steele, Lea and Flood, 2014)."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


class SeenKeys:
    """The keys of a source's chunks, in their order."""

    def __init__(self) -> None:
        self._spill = SortedSpill(_RECORD)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._spill.close()

    def add(self, file: int, packed: bytes) -> None:
        """Takes the keys of a source's next chunk."""
        if not packed:
            return
        given = np.frombuffer(packed, dtype=_PACKED)
        records = np.empty(len(given), dtype=_RECORD)
        for name in ("high", "low", "line"):
            records[name] = given[name]
        records["file"] = file
        self._spill.add(records)

    def duplicates(self) -> tuple[int, Iterator[Duplicate]]:
        """How many rows have an earlier one's key, and which they are, in the source's order."""
        pairs = [_pairs_in(block) for block in self._spill.in_order(repeated=True)]
        found = np.concatenate(pairs) if pairs else np.empty((0, 4), dtype=np.int64)
        found = found[np.lexsort((found[:, 1], found[:, 0]))]
        return len(found), (Duplicate(*pair.tolist()) for pair in found)


def _pairs_in(records: NDArray[np.void]) -> NDArray[np.int64]:
    """Of sorted records those with the key of an earlier one, each with the first (n × 4)."""
    same = (records["high"][1:] == records["high"][:-1]) & (
        records["low"][1:] == records["low"][:-1]
    )
    later = np.flatnonzero(same) + 1
    starts = np.flatnonzero(np.concatenate([[True], ~same]))
    # A key's first row stands where its run begins.
    first = starts[np.searchsorted(starts, later, side="right") - 1]
    columns = [records[name][rows] for rows in (later, first) for name in ("file", "line")]
    return np.stack(columns, axis=1).astype(np.int64)
