"""Rows whose key another row of the source has already.

A contract names its key: a class attribute ``unique_key`` with a field's name. The driver keeps 16
bytes a row, in which the key is a hash of 96 bits, and no rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel

__all__ = ["Duplicate", "KeysOfChunk", "SeenKeys", "unique_key"]

_RECORD = np.dtype([("high", "<u8"), ("low", "<u4"), ("line", "<u4")])


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


class KeysOfChunk:
    """Collects the keys of some lines."""

    def __init__(self, field: str) -> None:
        self.field = field
        self._records = bytearray()

    def add(self, request: Any, line: int) -> None:
        """Notes a valid row."""
        value = str(getattr(request, self.field)).encode("utf-8", "surrogatepass")
        self._records += hashlib.blake2b(value, digest_size=12).digest()
        self._records += line.to_bytes(4, "little")

    def packed(self) -> bytes:
        """What ``SeenKeys`` takes."""
        return bytes(self._records)


class SeenKeys:
    """The keys of a source's chunks, in their order.

    Attributes:
        field: The key's name.
    """

    def __init__(self) -> None:
        self.field = ""
        self._packed: list[bytes] = []
        self._ends: list[int] = [0]
        self._files: list[int] = []

    def add(self, file: int, field: str, packed: bytes) -> None:
        """Takes the keys of a source's next chunk."""
        if packed:
            self.field = field
            self._packed.append(packed)
            self._ends.append(self._ends[-1] + len(packed) // _RECORD.itemsize)
            self._files.append(file)

    def duplicates(self) -> tuple[int, Iterator[Duplicate]]:
        """How many rows have an earlier one's key, and which they are, in the source's order."""
        if not self._packed:
            return 0, iter(())
        records = np.frombuffer(b"".join(self._packed), dtype=_RECORD)
        order = np.argsort(records["high"], kind="stable")
        high = records["high"][order]
        close = np.flatnonzero(high[1:] == high[:-1])
        same = close[records["low"][order[close + 1]] == records["low"][order[close]]]
        starts = np.ones(len(order), dtype=bool)
        starts[same + 1] = False
        found = same + 1
        # A key's first row stands where its run in the sorted order begins.
        run_starts = np.flatnonzero(starts)
        firsts = run_starts[np.searchsorted(run_starts, found, side="right") - 1]
        pairs = np.stack([order[found], order[firsts]], axis=1)
        pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
        return len(pairs), (self._place(records, *pair) for pair in pairs.tolist())

    def _place(self, records: Any, row: int, first: int) -> Duplicate:
        files = [
            self._files[int(np.searchsorted(self._ends, at, side="right")) - 1]
            for at in (row, first)
        ]
        lines = records["line"]
        return Duplicate(files[0], int(lines[row]), files[1], int(lines[first]))
