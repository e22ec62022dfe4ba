"""Finished pieces of an output, kept aside until the whole is committed.

The journal of a job is the list of its parts: a part appears under its final name only once
it is whole, and the name says what it holds, so that a rerun after a kill knows what is done
from one listing and never has to trust a half-written record.

A disk that lost its power may show the name and the size of a part and zeros for its bytes. So
the name holds a checksum, too, and a rerun compares it with the bytes before it trusts them.
The bytes of a part are on the disk before it is reported, unless that takes longer than to compute
it anew. Its name is left to the file system, which writes it within seconds, since that wait would
cost as much again as the bytes. A rerun computes a part anew whose name was lost, and the sink needs
none of them once it is committed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from sheaf_dagster.storage.formats import Format, JsonLines
from sheaf_dagster.storage.location import Location, sink_errors
from sheaf_dagster.storage.stores import StoredPart, store_at

__all__ = ["Part", "PartStore"]

_NAME = re.compile(
    r"part-(\d{8})-r(\d+)-e(\d+)-n(\d+)-b(\d+)-k([0-9a-f]*)-m([0-9a-f]*)(?:-d([a-z0-9]+))?\.(jsonl|arrow)"
)
_AT_A_TIME = 8

_LINES = JsonLines()

_COUNT = re.compile(r"([a-z])(\d+)")


@dataclass(frozen=True)
class Part:
    """A chunk's output.

    Attributes:
        chunk: The chunk's index.
        rows: Lines that it holds.
        error_rows: Those of them that are error responses.
        non_finite: Numbers that became ``null``.
        size: Stored bytes.
        model: Tag of the weights that made it; empty where they aren't known.
        counts: What else there is to count about them, rows or tokens, each by a letter.
        checksum: Of the stored bytes, in hex: CRC-32, or on S3 MD5, which S3 itself tells of most
            objects.
        suffix: Of its name: its format.
    """

    chunk: int
    rows: int
    error_rows: int
    non_finite: int
    size: int
    model: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    checksum: str = ""
    suffix: str = "jsonl"

    @property
    def name(self) -> str:
        """File name that says all of the above."""
        counts = "".join(f"{letter}{n}" for letter, n in sorted(self.counts.items()) if n)
        return (
            f"part-{self.chunk:08d}-r{self.rows}-e{self.error_rows}"
            f"-n{self.non_finite}-b{self.size}-k{self.checksum}-m{self.model}"
            f"{counts and f'-d{counts}'}.{self.suffix}"
        )

    @classmethod
    def from_name(cls, name: str) -> Part | None:
        """The part that a file name describes, or None where it is no part's name."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        *numbers, checksum, model, counts, suffix = match.groups()
        chunk, rows, error_rows, non_finite, size = map(int, numbers)
        by_letter = {letter: int(n) for letter, n in _COUNT.findall(counts or "")}
        return cls(chunk, rows, error_rows, non_finite, size, model, by_letter, checksum, suffix)


@dataclass(frozen=True)
class PartStore:
    """The parts of one job; pickles to workers, which write them."""

    folder: Location
    format: Format = _LINES

    def write(
        self,
        chunk: int,
        data: bytes,
        *,
        rows: int,
        error_rows: int,
        non_finite: int,
        model: str = "",
        counts: Mapping[str, int] | None = None,
        lasting: bool = True,
    ) -> Part:
        """Stores a chunk's output, as its format has it; seen whole or not at all.

        Args:
            chunk: The chunk's index.
            data: Its lines.
            rows: As ``Part`` has them, like the four that follow.
            error_rows: Likewise.
            non_finite: Likewise.
            model: Likewise.
            counts: Likewise.
            lasting: Whether to wait until the bytes are on the disk.
        """
        stored = self.format.stored(data)
        checksum = store_at(self.folder).checksum(stored)
        size = len(stored)
        part = Part(
            chunk,
            rows,
            error_rows,
            non_finite,
            size,
            model,
            counts or {},
            checksum,
            self.format.suffix,
        )
        location = self.folder.child(part.name)
        with sink_errors(location):
            store_at(location).write(stored, lasting="bytes" if lasting else None)
        return part

    def existing(self) -> dict[int, Part]:
        """Whole parts by chunk; those whose bytes aren't what their name says are left out."""
        found = []
        for file in store_at(self.folder).list_files(depth=1):
            part = Part.from_name(file.name)
            if part is not None and part.size == file.state.size:
                found.append((part, file.state.version))
        with ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="sheaf-verify") as pool:
            whole = pool.map(lambda f: self.stored(f[0]).is_whole(f[1]), found)
            return {part.chunk: part for (part, _), ok in zip(found, whole, strict=True) if ok}

    def stored(self, part: Part) -> StoredPart:
        """The bytes of a part."""
        return StoredPart(store_at(self.location(part)), part.size, part.checksum)

    def lines(self, part: Part) -> Sequence[bytes]:
        """A part's rows as lines of JSON, without newlines, whatever its format."""
        return self.format.lines(self.format.content(self.stored(part).read()))

    def location(self, part: Part) -> Location:
        """Where a part lies."""
        return self.folder.child(part.name)
