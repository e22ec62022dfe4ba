"""Finished pieces of an output, kept aside until the whole is committed.

The journal of a job is the list of its parts: a part appears under its final name only once
it is whole, and the name says what it holds, so that a rerun after a kill knows what is done
from one listing and never has to trust a half-written record.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from sheaf_dagster.storage.compression import Codec, compress
from sheaf_dagster.storage.location import Location, sink_errors

__all__ = ["Part", "PartStore"]

_NAME = re.compile(
    r"part-(\d{8})-r(\d+)-e(\d+)-n(\d+)-b(\d+)-m([0-9a-f]*)(?:-d([a-z0-9]+))?\.jsonl"
)
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
        counts: Rows by the letter of what else there is to count about them.
    """

    chunk: int
    rows: int
    error_rows: int
    non_finite: int
    size: int
    model: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """File name that says all of the above."""
        counts = "".join(f"{letter}{n}" for letter, n in sorted(self.counts.items()) if n)
        return (
            f"part-{self.chunk:08d}-r{self.rows}-e{self.error_rows}"
            f"-n{self.non_finite}-b{self.size}-m{self.model}{counts and f'-d{counts}'}.jsonl"
        )

    @classmethod
    def from_name(cls, name: str) -> Part | None:
        """The part that a file name describes, or None where it is no part's name."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        *numbers, model, counts = match.groups()
        chunk, rows, error_rows, non_finite, size = map(int, numbers)
        by_letter = {letter: int(n) for letter, n in _COUNT.findall(counts or "")}
        return cls(chunk, rows, error_rows, non_finite, size, model, by_letter)


@dataclass(frozen=True)
class PartStore:
    """The parts of one job; pickles to workers, which write them."""

    folder: Location
    codec: Codec | None = None

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
    ) -> Part:
        """Stores a chunk's output; seen whole or not at all."""
        stored = compress(data, self.codec)
        part = Part(chunk, rows, error_rows, non_finite, len(stored), model, counts or {})
        location = self.folder.child(part.name)
        with sink_errors(location):
            location.write(stored)
        return part

    def existing(self) -> dict[int, Part]:
        """Whole parts by chunk; files of another size than their name says are left out."""
        parts = {}
        for name, size in self.folder.list_names().items():
            part = Part.from_name(name)
            if part is not None and part.size == size:
                parts[part.chunk] = part
        return parts

    def location(self, part: Part) -> Location:
        """Where a part lies."""
        return self.folder.child(part.name)
