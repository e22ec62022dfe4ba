"""What a plot is: Markdown in two sizes.

Dagster's UI shows Markdown of fewer than 1,000 characters in the metadata table itself and
anything longer behind a click.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from sheaf_dagster.definitions.plots.svg import markdown_image

__all__ = ["MAX_INLINE_CHARS", "MAX_PLOT_CHARS", "Pair", "Plot", "Row", "first_fit"]

MAX_INLINE_CHARS = 999
MAX_PLOT_CHARS = 16_000
"""What a plot may add to the event log; 6 MB for a year of daily partitions."""

Row = dict[str, Any]
Pair = tuple[Row, Row]
"""A request and its answer."""


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
