"""A row on its way through a job, and what its lines are called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sheaf_dagster.storage.formats import row_word

__all__ = ["Row", "named_lines"]


class Row(NamedTuple):
    """A request with its place: global position and file line."""

    position: int
    line: int
    request: Any
    fields: bytes = b""
    """Those that go into its answer; see ``rows.keep``."""


def named_lines(where: str, rows: Sequence[Row]) -> str:
    """Names the lines of rows, ``line 3`` or ``lines 3–7``, or the rows of a table.

    Args:
        where: Their file.
        rows: The rows.
    """
    word = row_word(where)
    first, last = min(r.line for r in rows), max(r.line for r in rows)
    return f"{word} {first}" if first == last else f"{word}s {first}–{last}"
