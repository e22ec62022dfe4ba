"""The first rows beside their answers, cut to what fits a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sheaf_dagster.contracts import deviations_of
from sheaf_dagster.plots import MAX_INLINE_CHARS
from sheaf_dagster.report.brief import brief, middle_out

__all__ = ["MAX_PREVIEW_CHARS", "preview_inline", "preview_table", "row_preview"]

MAX_PREVIEW_CHARS = 8_000
"""What the long preview may add to the event log."""

_ROWS = 10
_TEXT = 80
_WORD = 20
"""Letters without a space that a column of the page takes; longer words widen it past the edge."""

Pair = tuple[Mapping[str, Any], Mapping[str, Any]]
_NOISE = ("model_type", "metadata", "request_id")


def preview_inline(pairs: Sequence[Pair]) -> str:
    """A Markdown table of the first rows, as many as Dagster's UI shows without a click.

    Fields that are the same in every row are left out: the column is narrow.
    """
    same = _same_everywhere(pairs)
    for rows in (4, 3, 2, 1):
        numbered = [*enumerate(pairs[:rows], 1)]
        table = _table(numbered, 3, 40, 2, leave_out=same, longest_word=_WORD)
        if len(table) <= MAX_INLINE_CHARS:
            return table
    return ""


def preview_table(pairs: Sequence[Pair]) -> str:
    """A Markdown table of more rows and fields, at most ``MAX_PREVIEW_CHARS`` long.

    After the first rows come the next ones that are answered otherwise than asked.
    """
    numbered = [*enumerate(pairs, 1)]
    for rows, more in ((_ROWS, _ROWS // 2), (5, 2), (2, 1), (1, 1), (1, 0)):
        later = [(n, pair) for n, pair in numbered[rows:] if deviations_of(pair[1])]
        table = _table([*numbered[:rows], *later[:more]], 20, _TEXT, 4)
        if len(table) <= MAX_PREVIEW_CHARS:
            return table
    return ""


def row_preview(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of a file's first rows."""
    return "\n".join(["| row |", "|---|", *(f"| {_cell(row, 20, _TEXT, 4)} |" for row in rows)])


def _same_everywhere(pairs: Sequence[Pair]) -> frozenset[str]:
    first, *rest = (request for request, _ in pairs)
    same = frozenset(
        name for name, value in first.items() if rest and all(r.get(name) == value for r in rest)
    )
    return same if any(request.keys() - same - set(_NOISE) for request, _ in pairs) else frozenset()


def _table(
    pairs: Sequence[tuple[int, Pair]],
    fields: int,
    text: int,
    numbers: int,
    leave_out: frozenset[str] = frozenset(),
    longest_word: int = _TEXT,
) -> str:
    lines = ["| request | response |", "|---|---|"]
    for number, (request, response) in pairs:
        asked = {k: v for k, v in request.items() if k not in leave_out}
        # What an answer only repeats of its request says nothing.
        own = {k: v for k, v in response.items() if k not in request or request[k] != v}
        said, answered = (_cell(row, fields, text, numbers, longest_word) for row in (asked, own))
        lines.append(f"| {said} | {_mark(number, response)}{answered} |")
    return "\n".join(lines)


def _mark(number: int, response: Mapping[str, Any]) -> str:
    """Says of an answer that deviates from what was asked how, and which row it answers."""
    kinds = [kind.replace("_", " ") for kind in deviations_of(response)]
    return f"⚠ row {number}: {', '.join(kinds)}. " if kinds else ""


def _cell(
    row: Mapping[str, Any], fields: int, text: int, numbers: int, longest_word: int = _TEXT
) -> str:
    def shortened(words: str) -> str:
        return _inert(" ".join(middle_out(w, longest_word) for w in words.split(" ")))

    shown = [(k, v) for k, v in row.items() if v is not None and k not in _NOISE]
    parts = [f"**{shortened(k)}** {shortened(brief(v, text, numbers))}" for k, v in shown[:fields]]
    if len(shown) > fields:
        parts.append(f"and {len(shown) - fields} more")
    return ", ".join(parts)


def _inert(text: str) -> str:
    """As it is: nothing in it that Markdown or HTML would act on."""
    return "".join("\\" + c if c in "\\`*_{}[]()<>#!|~&$" else c for c in text)
