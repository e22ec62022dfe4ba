"""Taking out of an error's text what is another at each run, so that error rows are repeatable."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from functools import lru_cache
from typing import Any

__all__ = ["repeatable"]


def repeatable(text: str, row: Any = None) -> str:
    """An error's text without addresses, temporary paths, ids of processes, times and random ids.

    ``…`` stands in their place. What the row itself says stays: its own paths, times and ids are
    the same at each run.

    Args:
        text: What an error says.
        row: The request that it is about, if it is about one.
    """
    own: str | None = None

    def named(found: str) -> bool:
        nonlocal own
        if own is None:  # only where something was found: a row may be megabytes long
            own = "" if row is None else str(getattr(row, "__dict__", row))
        # The time of a day is written in two ways.
        return any(
            text in own for text in (found, found.replace(" ", "T"), found.replace("T", " "))
        )

    for pattern, replace in _rules():

        def steady(match: re.Match[str], replace: Callable[[re.Match[str]], str] = replace) -> str:
            return match[0] if named(match["own"]) else replace(match)

        text = pattern.sub(steady, text)
    return text


@lru_cache(maxsize=1)
def _rules() -> list[tuple[re.Pattern[str], Callable[[re.Match[str]], str]]]:
    """Patterns, in which ``own`` is what a row may have said itself, and what replaces them.

    A few digits alone are in any row's id.
    """
    folders = {tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"}  # noqa: S108  (looked for, not used)
    temp = "|".join(map(re.escape, sorted(folders, key=len, reverse=True)))
    return [
        # <_io.BytesIO object at 0x7f3a…>
        (re.compile(r" at (?P<own>0x[0-9a-fA-F]+)(?=>)"), lambda m: ""),
        (re.compile(r"\b(?P<own>0x[0-9a-fA-F]{8,16})\b"), lambda m: "0x…"),
        (
            re.compile(
                rf"(?P<temp>{temp})/(?P<own>[^/\s'\"`,;:<>()\[\]]+)(?P<rest>/[^\s'\"`,;:<>()\[\]]*)?"
            ),
            _temporary,
        ),
        (re.compile(r"(?P<own>\btmp[a-z0-9_]{8}\b)"), lambda m: "tmp…"),
        (
            re.compile(
                r"(?P<own>\b[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}\b)"
            ),
            lambda m: "…",
        ),
        (
            re.compile(
                r"(?P<own>\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d)(:\d\d([.,]\d+)?)?( ?(Z|UTC|[+-]\d\d:?\d\d)\b)?"
            ),
            lambda m: "…",
        ),
        (
            re.compile(
                r"\b(?P<own>(?P<what>(?:pid|process id|thread id)[ =:#]+|(?:process|thread)[=:#] *)\d+)\b",
                re.IGNORECASE,
            ),
            lambda m: f"{m['what']}…",
        ),
        (
            re.compile(
                r"\b(?P<own>(?P<what>Thread|Task|ThreadPoolExecutor|MainProcess|ForkProcess|SpawnProcess)-\d+(_\d+)?)\b"
            ),
            lambda m: f"{m['what']}-…",
        ),
        (
            re.compile(r"\b(?P<own>(?P<what>started(?: daemon)? )\d{6,})\b"),
            lambda m: f"{m['what']}…",
        ),
        # Measured: nobody sets a time limit to a hundredth.
        (
            re.compile(r"(?P<own>\b\d+\.\d{2,}(?P<unit> ?(?:s|sec|secs|seconds|ms|µs|us)\b))"),
            lambda m: f"…{m['unit']}",
        ),
    ]


def _temporary(match: re.Match[str]) -> str:
    """A temporary file by its own name, where somebody gave it one."""
    name = (match["rest"] or "").rpartition("/")[2]
    return f"{match['temp']}/…/{name}" if name else f"{match['temp']}/…"
