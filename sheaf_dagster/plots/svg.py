"""Hand-written SVG, small enough to lie in an event log: no plotting library."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = [
    "BLUE",
    "COLOURS",
    "GREY",
    "RED",
    "Frame",
    "bars",
    "dots",
    "escaped",
    "finite",
    "label",
    "legend",
    "line",
    "markdown_image",
    "outline",
    "picture",
    "ticks",
    "value_axis",
]

BLUE, RED, GREY = "#0072b2", "#d55e00", "#737880"
COLOURS = (
    BLUE, RED, "#009e73", "#b3619a", "#8a6d00", "#6a5acd", "#0088a0", "#a0522d", "#c2185b", "#5a7d2a",
)  # fmt: skip
"""The first four are Okabe and Ito's, which the colour-blind tell apart. All are dark enough for a
white page and light enough for a dark one: pictures have no background of their own."""


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
    return f'<path d="{frame.path(corners)}Z" fill="{colour}" fill-opacity=".25"/>'


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
    x: float,
    y: float,
    text: str,
    *,
    size: int = 10,
    colour: str = GREY,
    end: bool = False,
    middle: bool = False,
) -> str:
    """Words at a place in pixels; ``end`` puts their end there, ``middle`` their middle."""
    anchor = f' text-anchor="{"end" if end else "middle"}"' if end or middle else ""
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}"{anchor}>'
        f"{escaped(text)}</text>"
    )


def legend(entries: Iterable[tuple[str, str]], x: float = 8, y: float = 14) -> list[str]:
    """A swatch and a name for each colour, in a row that starts at ``x``."""
    body = []
    for name, colour in entries:
        body.append(f'<path d="M{x:g} {y:g}h14" stroke="{colour}" stroke-width="4"/>')
        body.append(label(x + 19, y + 4, name))
        x += 36 + 6 * len(name)
    return body


def value_axis(
    frame: Frame, box: tuple[float, float, float, float], values: tuple[float, float]
) -> list[str]:
    """Faint lines across the box at round values, which stand left of it."""
    left, _, width, _ = box
    body = []
    for value in ticks(*values):
        y = frame.at(0, value)[1]
        body.append(f'<path d="M{left:g} {y:g}h{width:g}" stroke="{GREY}" stroke-opacity=".25"/>')
        body.append(label(left - 4, y + 3, f"{value:,.4g}", size=9, end=True))
    return body


def ticks(low: float, high: float, most: int = 3) -> list[float]:
    """Round numbers between two, at most as many: multiples of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    power = math.floor(math.log10((high - low) / most))
    for step in (m * 10.0**p for p in (power, power + 1) for m in (1, 2, 5)):
        first = math.ceil(low / step - 1e-9)
        found = range(first, math.floor(high / step + 1e-9) + 1)
        if len(found) <= most:
            return [n * step for n in found]
    return [low, high]


def escaped(text: str) -> str:
    """Text as XML takes it, at most 60 characters."""
    clean = "".join(c if c.isprintable() else " " for c in text)
    clean = clean if len(clean) <= 60 else clean[:59] + "…"
    return clean.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def picture(width: int, height: int, body: Iterable[str], *, words: bool = True) -> str:
    """The whole SVG, on the page's own background."""
    font = ' font-family="sans-serif"' if words else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" fill="none"'
        f"{font}>{''.join(body)}</svg>"
    )


def markdown_image(svg: str, alt: str) -> str:
    """The picture inside of Markdown."""
    return f"![{alt}](data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()})"
