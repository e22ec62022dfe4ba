"""The index beside an output: where the answer to which content is.

::

    columns, sorted by digest     digest: 8 and 8 bytes, place: 8, check: 4
    head                          JSON: what made the answers, and what the records are
    length of the head            4 bytes
    the word ``sheafidx``

The head comes last, so that an index that was cut short has none. A place is an offset in the
output's text (40 bits) and a length (24 bits). The check is the CRC-32 of the answer that is there,
so that no other one is ever taken for it, whatever has become of the output since.
"""

from __future__ import annotations

import json
import mmap
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from tempfile import TemporaryFile
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from zlib_ng.zlib_ng import crc32

from sheaf_dagster.batch.kept import Lines
from sheaf_dagster.batch.rows.spill import Digests, SortedSpill
from sheaf_dagster.storage import Location, store_at

__all__ = [
    "AnswerIndex",
    "IndexDamagedError",
    "IndexHead",
    "IndexWriter",
    "index_of",
    "open_index",
    "remove_index",
]

_RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("place", "<u8"), ("check", "<u4")])
_COLUMNS = ("high", "low", "place", "check")
_WORD = b"sheafidx"
_TAIL = 4 + len(_WORD)
_LENGTH_BITS = 24
_LONGEST = 2**_LENGTH_BITS
_FARTHEST = 2**40
_BLOCK = 8 * 2**20


class IndexDamagedError(Exception):
    """An index can't be read; the message says why."""


def index_of(output: Location) -> Location:
    """Where the index of an output lies."""
    return output.parent.child(f".{output.name}.sheaf-index")


def remove_index(output: Location) -> None:
    """Removes the index of what an output was before it was written without one.

    Where that fails, the checks in the index tell that its answers are gone.
    """
    with suppress(Exception):
        store_at(index_of(output)).remove()


@dataclass(frozen=True)
class IndexHead:
    """What an index says of itself.

    Attributes:
        made_by: What made the answers: model, contract and settings, by name.
        rows: Number of records.
        crc: CRC-32 of the records.
    """

    made_by: dict[str, str]
    rows: int = 0
    crc: int = 0


_HEAD = TypeAdapter(IndexHead)


class IndexWriter:
    """Makes the index of an output, chunk by chunk, in little memory.

    ::

        with IndexWriter(made_by) as writer:
            writer.add(digests, lines)      # each chunk, in order
            writer.finish()
            …                               # the output is committed
            writer.write(index_of(output))
    """

    def __init__(self, made_by: dict[str, str]) -> None:
        self._made_by = made_by
        self._offset = 0
        self._spill = SortedSpill(_RECORD)
        self._file: IO[bytes] = TemporaryFile()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._spill.close()
        self._file.close()

    def add(self, digests: Digests, lines: Lines) -> None:
        """Takes the next chunk.

        Args:
            digests: Of its rows; those that are all zeros have none.
            lines: Of their answers.
        """
        sizes = lines["length"].astype(np.int64) + 1
        starts = self._offset + np.cumsum(sizes) - sizes
        self._offset += int(sizes.sum())
        fits = (lines["length"] < _LONGEST) & (starts < _FARTHEST)
        has_content = (digests["high"] != 0) | (digests["low"] != 0)
        of_use = np.flatnonzero(lines["answers"] & fits & has_content)
        records = np.empty(len(of_use), dtype=_RECORD)
        records["high"], records["low"] = digests["high"][of_use], digests["low"][of_use]
        records["place"] = (starts[of_use] << _LENGTH_BITS) | lines["length"][of_use]
        records["check"] = lines["check"][of_use]
        self._spill.add(records)

    def finish(self) -> None:
        """Puts the index together, on this machine."""
        crc, rows = 0, 0
        with ExitStack() as stack:
            columns = {name: stack.enter_context(TemporaryFile()) for name in _COLUMNS}
            for records in self._spill.in_order():
                first = np.ones(len(records), dtype=bool)
                first[1:] = (records["high"][1:] != records["high"][:-1]) | (
                    records["low"][1:] != records["low"][:-1]
                )
                rows += int(first.sum())
                for name, column in columns.items():
                    column.write(records[name][first].tobytes())
            for column in columns.values():
                column.seek(0)
                while data := column.read(_BLOCK):
                    crc = crc32(data, crc)
                    self._file.write(data)
        head = json.dumps(asdict(IndexHead(self._made_by, rows, crc))).encode()
        self._file.write(head + len(head).to_bytes(4, "little") + _WORD)

    def write(self, location: Location) -> None:
        """Copies it to its place."""
        self._file.seek(0)
        with store_at(location).create() as target:
            shutil.copyfileobj(self._file, target, _BLOCK)


class AnswerIndex:
    """An index that is open for look-ups.

    Attributes:
        head: What it says of itself.
    """

    def __init__(self, head: IndexHead, mapped: mmap.mmap | None) -> None:
        self.head = head
        self._mapped = mapped
        self._columns: dict[str, NDArray[Any]] = {}
        offset = 0
        for name in _COLUMNS if mapped is not None else ():
            dtype = _RECORD[name]
            self._columns[name] = np.frombuffer(mapped, dtype, head.rows, offset)  # type: ignore[arg-type]
            offset += head.rows * dtype.itemsize

    def places(self, digests: Digests) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Start, length and check of the answers to these contents; length 0: there is none."""
        found = np.zeros(len(digests), dtype=np.uint64)
        checks = np.zeros(len(digests), dtype=np.uint32)
        if self.head.rows:
            # In order, so that a page is read once.
            order = np.lexsort((digests["low"], digests["high"]))
            highs, lows = digests["high"][order], digests["low"][order]
            at = np.searchsorted(self._columns["high"], highs)
            at = np.minimum(at, self.head.rows - 1)
            same = (self._columns["high"][at] == highs) & (self._columns["low"][at] == lows)
            found[order[same]] = self._columns["place"][at[same]]
            checks[order[same]] = self._columns["check"][at[same]]
            self._let_go()
        return found >> np.uint64(_LENGTH_BITS), found & np.uint64(_LONGEST - 1), checks

    def _let_go(self) -> None:
        """Leaves the pages to the system: else they count as this process's memory."""
        if self._mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._mapped.madvise(mmap.MADV_DONTNEED)


@contextmanager
def open_index(location: Location) -> Iterator[AnswerIndex | None]:
    """Opens an index; None where there is none.

    A copy of it on this machine's disk is looked at: look-ups go all over it.

    Raises:
        IndexDamagedError: It is no whole index.
        SourceError: It can't be read.
    """
    state = store_at(location).state()
    if state is None:
        yield None
        return
    with TemporaryFile() as copy:
        for start in range(0, state.size, _BLOCK):
            end = min(start + _BLOCK, state.size)
            copy.write(store_at(location).read_range(start, end))
        copy.flush()
        head = _head_of(copy, state.size)
        if not head.rows:
            yield AnswerIndex(head, None)
            return
        mapped = mmap.mmap(copy.fileno(), head.rows * _RECORD.itemsize, access=mmap.ACCESS_READ)
        yield AnswerIndex(head, mapped)


def _head_of(file: IO[bytes], size: int) -> IndexHead:
    try:
        file.seek(max(size - _TAIL, 0))
        tail = file.read()
        if tail[4:] != _WORD:
            raise ValueError("its end is missing")
        length = int.from_bytes(tail[:4], "little")
        file.seek(size - _TAIL - length)
        head = _HEAD.validate_json(file.read(length), strict=True)
        records = size - _TAIL - length
        if head.rows * _RECORD.itemsize != records:
            raise ValueError("records are missing")
        file.seek(0)
        crc = 0
        for start in range(0, records, _BLOCK):
            crc = crc32(file.read(min(_BLOCK, records - start)), crc)
        if crc != head.crc:
            raise ValueError("its records don't match their checksum")
    except ValidationError as e:
        raise IndexDamagedError("its head can't be read") from e
    except (ValueError, OSError) as e:
        raise IndexDamagedError(str(e)) from e
    return head
