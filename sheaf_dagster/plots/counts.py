"""How often what was answered: classes, numbers, sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sheaf_dagster.plots import svg
from sheaf_dagster.plots.plot import (
    MAX_INLINE_CHARS,
    MAX_PLOT_CHARS,
    Pair,
    Plot,
    first_fit,
)
from sheaf_dagster.plots.svg import BLUE, GREY, Frame

__all__ = ["Distribution", "distributions_of", "histogram", "predictions_of"]

_BINS = 24
_CLASSES = 12
_OF_EVERY_ANSWER = ("request_id", "model_type", "model_name", "metadata")


class Distribution(NamedTuple):
    """Values of one field over the answers: counted words, or numbers.

    Attributes:
        what: Their name.
        counts: How often which word; empty for numbers.
        numbers: The numbers; empty for words.
    """

    what: str
    counts: Counter[str]
    numbers: list[float]

    def plot(self) -> Plot | None:
        """The bars of it."""
        return _class_counts(self.counts) if self.counts else histogram(self.numbers, self.what)


def predictions_of(pairs: Sequence[Pair]) -> Distribution | None:
    """Of ``predictions`` (tabular) or ``label``/``labels`` (classification)."""
    found: list[Any] = []
    numeric = False
    for _, answer in pairs:
        for name in ("predictions", "labels", "label"):
            value = answer.get(name)
            values = value if isinstance(value, list) else [value]
            if value is not None and not any(isinstance(v, (list, dict)) for v in values):
                found += values
                numeric = numeric or answer.get("task") == "regression"
                break
    if not found:
        return None
    if numeric:
        return Distribution("prediction", Counter(), [v for v in found if svg.finite(v)])
    counts = Counter("null" if v is None else _class_name(v) for v in found)
    return Distribution("classes", counts, [])


def distributions_of(pairs: Sequence[Pair]) -> Iterator[Distribution]:
    """Of the fields that tell any other answers apart: those of few words, and numbers."""
    answers = [answer for _, answer in pairs]
    for name in answers[0] if len(answers) > 1 else ():
        values = [a.get(name) for a in answers if a.get(name) is not None]
        # What an answer only repeats of its request says nothing about the model.
        repeated = all(a.get(name) == request.get(name) for request, a in pairs)
        if repeated or name in _OF_EVERY_ANSWER or len({str(v) for v in values}) < 2:
            continue
        if all(isinstance(v, (str, bool)) for v in values):
            if len(set(values)) <= _CLASSES:
                yield Distribution(name, Counter(_class_name(v) for v in values), [])
        elif numbers := [v for v in values if isinstance(v, (int, float)) and svg.finite(v)]:
            yield Distribution(name, Counter(), numbers)


def _class_name(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _class_counts(counts: Counter[str]) -> Plot:
    return Plot(
        first_fit(
            (_count_bars(counts, top, 240) for top in (_CLASSES, 8, 6, 4, 2)),
            "classes",
            MAX_INLINE_CHARS,
        ),
        first_fit([_count_bars(counts, _CLASSES, 480)], "classes", MAX_PLOT_CHARS),
    )


def _count_bars(counts: Counter[str], top: int, width: int) -> str:
    """Bars in one path and their words in one text, to save bytes."""
    shown = counts.most_common(top)
    total, most, longest = sum(counts.values()), shown[0][1], width - 150
    words = [f"{text[:18]}: {count:,} ({count / total:.0%})" for text, count in shown]
    if len(counts) > top:
        words.append(f"and {len(counts) - top} more")
    bars = "".join(
        f"M4 {8 + 14 * i}h{max(1, round(longest * count / most))}"
        for i, (_, count) in enumerate(shown)
    )
    lines = "".join(
        f'<tspan x="{longest + 10}" y="{12 + 14 * i}">{svg.escaped(line)}</tspan>'
        for i, line in enumerate(words)
    )
    return svg.picture(
        width,
        4 + 14 * len(words),
        [
            f'<path d="{bars}" stroke="{BLUE}" stroke-width="9"/>',
            f'<text font-size="10" fill="{GREY}">{lines}</text>',
        ],
    )


def histogram(values: Sequence[float], what: str) -> Plot | None:
    """Bars over equally wide bins."""
    if not values:
        return None
    low, high = min(values), max(values)
    bins = _BINS if high > low else 1
    heights = [0] * bins
    for v in values:
        heights[min(bins - 1, int((v - low) / (high - low) * bins)) if high > low else 0] += 1

    def drawn(width: int, height: int) -> str:
        frame = Frame(
            (8, 24, width - 16, height - 44), (0, bins), (0, max(heights)), 0 if width < 300 else 1
        )
        middle = sorted(values)[len(values) // 2]
        return svg.picture(
            width,
            height,
            [
                svg.label(8, 14, f"{what}: median {middle:,.4g}, {len(values):,} in all"),
                svg.bars(frame, heights, BLUE),
                svg.label(8, height - 6, f"{low:,.4g}"),
                svg.label(width - 8, height - 6, f"{high:,.4g}", end=True),
            ],
        )

    return Plot(
        first_fit([drawn(240, 90)], what, MAX_INLINE_CHARS),
        first_fit([drawn(480, 200)], what, MAX_PLOT_CHARS),
    )
