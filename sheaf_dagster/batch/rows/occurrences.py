"""How many rows before a row have its content: what tells the derived ids of equal rows apart.

Validating a chunk leaves a hash of 8 bytes for each of its rows that gets a derived id. The driver
takes the hashes to its disk, finds those that occur more than once, and counts these in the order
of the rows. In memory it has 16 bytes for each content that several rows share, and of all others
nothing. Two contents of one hash would only have each other's rows counted: ids are made from more.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import cache
from itertools import islice
from tempfile import SpooledTemporaryFile

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import BaseModel

from sheaf_dagster.batch.rows.content import DIGEST_BYTES, content_digest
from sheaf_dagster.batch.rows.fast import Given, Told
from sheaf_dagster.batch.rows.spill import SortedSpill

__all__ = [
    "ContentsOfChunk",
    "OccurrenceOf",
    "Occurrences",
    "always_first",
    "occurrence_in",
    "occurrence_in_lines",
]

OccurrenceOf = Callable[[int], int]
"""Says of a row's position how many rows before it have its content, and no id either."""

_HASH_BYTES = 8
_HASH = np.dtype("<u8")
_RECORD = np.dtype([("high", _HASH)])
_NONE = np.empty(0, dtype=_HASH)
_IN_MEMORY = 2**20
_BLOCK = 2**17
"""Hashes that are read at a time."""
_LINES = 2**12


def always_first(position: int) -> int:
    """Says it of rows that need not be told apart."""
    return 0


class ContentsOfChunk:
    """What validating a chunk notes of the contents of its rows.

    Args:
        contract: What the rows are.
        digests: Note the digest of each valid row.
        keep: Fields that rows may have, though the contract doesn't know them.
    """

    def __init__(
        self, contract: type[BaseModel], *, digests: bool, keep: Sequence[str] = ()
    ) -> None:
        self._foreign = frozenset(keep).difference(contract.model_fields)
        self._digest = content_digest(contract)
        self._has_id = "request_id" in contract.model_fields
        self._counted = _counted_whole(contract)
        self._digests = bytearray() if digests else None
        self._rows: list[int] = []
        self._hashes = bytearray()
        self.of_each = self._counted is not None or (digests and bool(self._foreign))
        """Whether it is to be told of each row by itself. If not, of those without an id; of plain
        rows with one it is told by ``tell``, if any."""
        self.tell: Told | None = self._tell if digests and not self.of_each else None

    def add(self, line: bytes, row: int, *, named: bool, given: Given | None = None) -> None:
        """Takes a valid row.

        Args:
            line: The row.
            row: Its number in the chunk.
            named: It brings an id, or needs none.
            given: Its fields, where they are known; see ``FastCodec.fields``.
        """
        digest = b""
        if self._digests is not None or not named:
            digest = self._digest(line) if given is None else self._digest_of(line, given)
        if self._digests is not None:
            self._digests += digest
        self._count(line, row, b"" if named else digest)

    def _digest_of(self, line: bytes, given: Given) -> bytes:
        if self._foreign.isdisjoint(given):
            return self._digest.of_plain(line, given)
        return self._digest.of_any(line)

    def _tell(self, line: bytes, given: Given) -> None:
        assert self._digests is not None
        self._digests += self._digest.of_plain(line, given)

    def forget_after(self, rows: int) -> None:
        """Forgets what ``tell`` was told beyond so many rows of the chunk."""
        if self._digests is not None:
            del self._digests[rows * DIGEST_BYTES :]

    def add_invalid(self, line: bytes, row: int) -> None:
        """Takes a row that breaks its contract, and may become an error row."""
        if self._digests is not None:
            self._digests += bytes(DIGEST_BYTES)
        named = not self._has_id or says_id(line)
        self._count(line, row, b"" if named else self._digest(line))

    def _count(self, line: bytes, row: int, digest: bytes) -> None:
        if self._counted is not None:
            digest = self._counted(line)
        if digest:
            self._rows.append(row)
            self._hashes += digest[:_HASH_BYTES]

    def digests(self) -> bytes:
        """Of each row its digest, or zeros."""
        return bytes(self._digests or b"")

    def hashes(self, rows: int) -> bytes:
        """Of each row its hash, or zeros; nothing at all where no row gets a derived id.

        Args:
            rows: Of the chunk.
        """
        if not self._rows:
            return b""
        hashes = np.zeros(rows, dtype=_HASH)
        hashes[self._rows] = np.frombuffer(self._hashes, dtype=_HASH)
        return hashes.tobytes()


def says_id(line: bytes) -> bool:
    """Whether a line that may be no row says an id of its own."""
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return isinstance(row, dict) and isinstance(row.get("request_id"), str)


def _counted_whole(contract: type[BaseModel]) -> Callable[[bytes], bytes] | None:
    """What tells rows apart of a contract that makes ids itself (``placed``), out of all they say."""
    return content_digest(contract, whole=True) if hasattr(contract, "placed") else None


class Occurrences:
    """Counts the rows of a source by their hashes; ``add`` each chunk, then ``by_chunk``."""

    def __init__(self) -> None:
        self._sizes: list[int] = []
        self._file = SpooledTemporaryFile[bytes](_IN_MEMORY)

    def add(self, hashes: bytes) -> None:
        """Takes the hashes of the next chunk, as ``ContentsOfChunk`` has them."""
        self._sizes.append(len(hashes))
        self._file.write(hashes)

    def by_chunk(self) -> Iterator[bytes]:
        """What ``occurrence_in`` reads, of each chunk."""
        with self._file:
            shared = self._shared()
            seen = np.zeros(len(shared), dtype=np.int64)
            self._file.seek(0)
            for size in self._sizes:
                hashes = np.frombuffer(self._file.read(size), dtype=_HASH)
                yield _packed(*_counted(hashes, shared, seen)) if len(shared) else b""

    def _shared(self) -> NDArray[np.uint64]:
        """The hashes that occur more than once, sorted."""
        self._file.seek(0)
        found = [_NONE]
        with closing(SortedSpill(_RECORD)) as spill:
            while data := self._file.read(_BLOCK * _HASH_BYTES):
                hashes = np.frombuffer(data, dtype=_HASH)
                spill.add(hashes[hashes != 0].view(_RECORD))
            for records in spill.in_order(repeated=True):
                hashes = records["high"]
                found.append(np.unique(hashes[1:][hashes[1:] == hashes[:-1]]))
        return np.concatenate(found)


def _counted(
    hashes: NDArray[np.uint64], shared: NDArray[np.uint64], seen: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows that others before have the content of, and how many; ``seen`` is brought up to date."""
    at = np.minimum(np.searchsorted(shared, hashes), len(shared) - 1)
    rows = np.flatnonzero(shared[at] == hashes)
    order = rows[np.argsort(at[rows], kind="stable")]
    which = at[order]
    new = np.ones(len(which), dtype=bool)
    new[1:] = which[1:] != which[:-1]
    begin = np.maximum.accumulate(np.where(new, np.arange(len(which)), 0))
    before = seen[which] + np.arange(len(which)) - begin
    np.add.at(seen, which, 1)
    again = before > 0
    order, before = order[again], before[again]
    by_row = np.argsort(order)
    return order[by_row], before[by_row]


def _packed(rows: NDArray[np.int64], before: NDArray[np.int64]) -> bytes:
    # Differences: a source of one row over and over needs next to nothing.
    both = np.concatenate([np.diff(rows, prepend=0), np.diff(before, prepend=0)])
    return zlib.compress(both.astype("<i8").tobytes(), 1) if len(rows) else b""


def occurrence_in(packed: bytes, first_row: int) -> OccurrenceOf:
    """The rows of a chunk.

    Args:
        packed: What ``Occurrences`` said of the chunk.
        first_row: Position of the chunk's first row.
    """
    if not packed:
        return always_first
    rows, before = np.frombuffer(zlib.decompress(packed), dtype="<i8").reshape(2, -1)
    positions = np.cumsum(rows) + first_row
    found = dict(zip(positions.tolist(), np.cumsum(before).tolist(), strict=True))
    return lambda position: found.get(position, 0)


def occurrence_in_lines(
    contract: type[BaseModel], lines: Callable[[], Iterator[bytes]]
) -> OccurrenceOf:
    """The rows of a file that nobody has validated; it is read when the first row is asked for.

    Args:
        contract: What the rows are.
        lines: Reads them from the first on.
    """

    @cache
    def counted() -> list[OccurrenceOf]:
        found, reading = Occurrences(), lines()
        while some := list(islice(reading, _LINES)):
            contents = ContentsOfChunk(contract, digests=False)
            for row, line in enumerate(some):
                contents.add_invalid(line, row)
            found.add(contents.hashes(len(some)))
        return [occurrence_in(p, n * _LINES) for n, p in enumerate(found.by_chunk())]

    return lambda position: counted()[position // _LINES](position)
