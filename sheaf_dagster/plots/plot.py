"""What a plot is: Markdown in two sizes.

Dagster's UI shows Markdown of fewer than 1,000 characters in the metadata table itself and
anything longer behind a click.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from sheaf_dagster.plots.svg import markdown_image

__all__ = ["MAX_INLINE_CHARS", "MAX_PLOT_CHARS", "Pair", "Plot", "Row", "Sample", "first_fit"]

MAX_INLINE_CHARS = 999
MAX_PLOT_CHARS = 16_000
"""What a plot may add to the event log; 6 MB for a year of daily partitions."""

Row = dict[str, Any]
Pair = tuple[Row, Row]
"""A request and its answer."""


class Sample(Protocol):
    """Some rows of a file."""

    @property
    def pairs(self) -> Sequence[Pair]:
        """The requests, each with its answer."""

    @property
    def sizes(self) -> Sequence[int]:
        """Bytes of each answer."""


class Plot(NamedTuple):
    """One plot as Markdown, in two sizes; empty where it can't be small enough.

    Attributes:
        small: At most ``MAX_INLINE_CHARS`` long.
        large: At most ``MAX_PLOT_CHARS`` long.
    """

    small: str
    large: str


def first_fit(drawn: Iterable[str], alt: str, limit: int) -> str:
    """The first of some SVGs, the best first, that is small enough as Markdown; else nothing."""
    texts = (markdown_image(picture, alt) for picture in drawn)
    return next((text for text in texts if len(text) <= limit), "")
