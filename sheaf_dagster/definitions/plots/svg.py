"""Hand-written SVG, small enough to lie in an event log: no plotting library."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = [
    "BLUE",
    "COLOURS",
    "GREEN",
    "GREY",
    "Frame",
    "bars",
    "dots",
    "escaped",
    "finite",
    "label",
    "line",
    "markdown_image",
    "outline",
    "picture",
]

BLUE, GREEN, GREY = "#4f43dd", "#059669", "#6b7280"
COLOURS = (BLUE, "#d97706", GREEN, "#dc2626")


class Frame:
    """A rectangle of the picture and the numbers that its edges stand for.

    Args:
        box: Left, top, width and height in pixels.
        x: Numbers at the left and the right edge.
        y: Numbers at the bottom and the top edge.
        places: Decimal places of a coordinate. Each costs bytes, twice over in base64.
    """

    def __init__(
        self,
        box: tuple[float, float, float, float],
        x: tuple[float, float],
        y: tuple[float, float],
        places: int = 1,
    ) -> None:
        self.left, self.top, self.width, self.height = box
        self._x, self._y = x, y
        self._places = places

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The point in pixels."""
        return (
            round(self.left + self._share(x, self._x) * self.width, self._places),
            round(self.top + (1 - self._share(y, self._y)) * self.height, self._places),
        )

    def path(self, points: Iterable[tuple[float, float]], *, dots: bool = False) -> str:
        """A path through points: a line, or a dot at each.

        Steps from point to point are relative, which takes half the bytes.
        """
        text, pen = "", None
        for x, y in points:
            at = self.at(x, y)
            if pen is None:
                text = f"M{_numbers(*at)}"
            else:
                step = _numbers(round(at[0] - pen[0], 3), round(at[1] - pen[1], 3))
                text += ("m" if dots else "l") + step
            text += "h0" if dots else ""
            pen = at
        return text

    @staticmethod
    def _share(value: float, edges: tuple[float, float]) -> float:
        low, high = edges
        return (value - low) / (high - low) if high > low else 0.5


def _numbers(x: float, y: float) -> str:
    """Two numbers as a path takes them: a minus sign parts them, too."""
    second = f"{y:g}"
    return f"{x:g}" + (second if second.startswith("-") else f" {second}")


def finite(value: Any) -> bool:
    """Whether it is a number that can be drawn; null stands for one that can't."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def line(
    frame: Frame,
    start: float,
    values: Sequence[Any],
    colour: str,
    *,
    step: float = 1,
    width: int = 1,
) -> str:
    """A line through values at ``start``, ``start + step``, …; a gap where one isn't finite."""
    runs: list[list[tuple[float, float]]] = [[]]
    for i, value in enumerate(values):
        if finite(value):
            runs[-1].append((start + i * step, value))
        elif runs[-1]:
            runs.append([])
    path = "".join(frame.path(run) for run in runs)
    thick = f' stroke-width="{width}"' if width != 1 else ""
    return f'<path d="{path}" stroke="{colour}"{thick}/>' if path else ""


def outline(
    frame: Frame,
    start: float,
    lower: Sequence[Any],
    upper: Sequence[Any],
    colour: str,
    *,
    step: float = 1,
) -> str:
    """The area between two lines."""
    there = [
        (start + i * step, low, high)
        for i, (low, high) in enumerate(zip(lower, upper, strict=True))
        if finite(low) and finite(high)
    ]
    if len(there) < 2:
        return ""
    corners = [(x, high) for x, _, high in there] + [(x, low) for x, low, _ in reversed(there)]
    return f'<path d="{frame.path(corners)}Z" fill="{colour}" fill-opacity=".18"/>'


def dots(frame: Frame, points: Iterable[tuple[float, Any]], colour: str, *, size: float = 4) -> str:
    """A dot at each point: lines of no length with round ends, the shortest way to say it."""
    path = frame.path(((x, y) for x, y in points if finite(y)), dots=True)
    if not path:
        return ""
    return f'<path d="{path}" stroke="{colour}" stroke-width="{size:g}" stroke-linecap="round"/>'


def bars(frame: Frame, heights: Sequence[float], colour: str) -> str:
    """Bars side by side over the frame's width; the x axis counts bars."""
    path = "".join(
        f"M{_numbers(*frame.at(i + 0.5, 0))}V{frame.at(i + 0.5, height)[1]:g}"
        for i, height in enumerate(heights)
        if height
    )
    width = max(1.0, frame.width / max(len(heights), 1) - 1)
    return f'<path d="{path}" stroke="{colour}" stroke-width="{width:.0f}"/>' if path else ""


def label(
    x: float, y: float, text: str, *, size: int = 10, colour: str = GREY, end: bool = False
) -> str:
    """Words at a place in pixels; ``end`` puts their end there."""
    anchor = ' text-anchor="end"' if end else ""
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}"{anchor}>'
        f"{escaped(text)}</text>"
    )


def escaped(text: str) -> str:
    """Text as XML takes it, at most 60 characters."""
    clean = "".join(c if c.isprintable() else " " for c in text)
    clean = clean if len(clean) <= 60 else clean[:59] + "…"
    return clean.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def picture(width: int, height: int, body: Iterable[str], *, words: bool = True) -> str:
    """The whole SVG; white behind, so that it can be read in Dagster's dark theme too."""
    font = ' font-family="sans-serif"' if words else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" fill="none"'
        f'{font}><path d="M0 0h{width}v{height}H0z" fill="#fff"/>{"".join(body)}</svg>'
    )


def markdown_image(svg: str, alt: str) -> str:
    """The picture inside of Markdown."""
    return f"![{alt}](data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()})"
