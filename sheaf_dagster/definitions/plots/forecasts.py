"""Forecasts behind their histories, with what happened where it is known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from sheaf_dagster.definitions.plots import svg
from sheaf_dagster.definitions.plots.plot import (
    MAX_INLINE_CHARS,
    MAX_PLOT_CHARS,
    Pair,
    Plot,
    Row,
    first_fit,
)
from sheaf_dagster.definitions.plots.svg import BLUE, GREEN, GREY, Frame

__all__ = ["Actuals", "ActualsOf", "forecast_fans"]

_SERIES = 6
_HISTORY = 56

Actuals = Callable[[Row], "Sequence[float | None] | None"]
"""What happened after a request's history, oldest first; None where it is not known."""

ActualsOf = Callable[["str | None", Row], "Sequence[float | None] | None"]
"""The same, by partition key and request."""


class _Fan(NamedTuple):
    name: str
    past: list[Any]
    mean: list[Any]
    lower: list[Any]
    upper: list[Any]
    actual: list[Any]


def forecast_fans(pairs: Sequence[Pair], actuals: Actuals | None = None) -> Plot | None:
    """The first series as a fan; in large, several of them."""
    fans: list[_Fan] = []
    band = ""
    for request, answer in pairs:
        history, mean = request.get("history"), answer.get("mean")
        if not history or not isinstance(mean, list) or len(fans) == _SERIES:
            continue
        if isinstance(history[0], list):
            history = [step[request.get("target_index") or 0] for step in history]
        history = history[-max(_HISTORY, 2 * len(mean)) :]
        band, lower, upper = _band(answer, len(mean))
        known = list((actuals and actuals(request)) or ())[: len(mean)]
        fans.append(_Fan(str(request.get("model_name", "")), history, mean, lower, upper, known))
    if not fans:
        return None
    # Long series are thinned until the picture is small enough.
    small = first_fit(
        (_small_fan(_thinned(fans[0], points)) for points in (48, 32, 24, 16)),
        "history and forecast",
        MAX_INLINE_CHARS,
    )
    large = first_fit(
        (
            _fan_grid([_thinned(f, points) for f in fans[:series]], band)
            for series, points in ((_SERIES, 120), (4, 100), (2, 80), (1, 60))
        ),
        "histories and forecasts",
        MAX_PLOT_CHARS,
    )
    return Plot(small, large)


def _band(answer: Row, horizon: int) -> tuple[str, list[Any], list[Any]]:
    """The outermost quantiles, or those of the samples: a name, the lower and the upper line."""
    quantiles = answer.get("quantiles") or {}
    samples = answer.get("samples")
    if len(quantiles) >= 2:
        low, high = min(quantiles, key=float), max(quantiles, key=float)
        return f"quantiles {low} to {high}", quantiles[low], quantiles[high]
    if samples and len(samples) >= 2:
        columns = [sorted(s[t] for s in samples if svg.finite(s[t])) for t in range(horizon)]
        lower = [c[len(c) // 10] if c else None for c in columns]
        upper = [c[-1 - len(c) // 10] if c else None for c in columns]
        return "80 % of the samples", lower, upper
    return "", [], []


def _thinned(fan: _Fan, points: int) -> _Fan:
    """Every n-th value, the same n before and after the present."""
    n = -(-(len(fan.past) + len(fan.mean)) // points)
    first = (len(fan.past) - 1) % n  # the last value of the past stays
    return _Fan(
        fan.name, fan.past[first::n], fan.mean[::n], fan.lower[::n], fan.upper[::n], fan.actual[::n]
    )


def _draw_fan(
    fan: _Fan, box: tuple[float, float, float, float], places: int, dot: float
) -> list[str]:
    values = [v for part in fan[1:] for v in part if svg.finite(v)]
    now = len(fan.past)
    frame = Frame(
        box,
        (0, max(now + len(fan.mean) - 1, 1)),
        (min(values, default=0), max(values, default=1)),
        places,
    )
    return [
        svg.outline(frame, now, fan.lower, fan.upper, BLUE) if fan.lower else "",
        svg.line(frame, 0, fan.past, GREY),
        svg.line(frame, now - 1, [fan.past[-1], *fan.mean], BLUE, width=2),
        svg.dots(frame, enumerate(fan.actual, now), GREEN, size=dot),
    ]


def _small_fan(fan: _Fan) -> str:
    body = [svg.label(2, 9, fan.name[:24], size=9), *_draw_fan(fan, (2, 14, 236, 48), 0, 4)]
    return svg.picture(240, 66, body)


def _fan_grid(fans: Sequence[_Fan], band: str) -> str:
    columns = 1 if len(fans) == 1 else 2
    rows = -(-len(fans) // columns)
    wide, high = 440, 150
    body = _legend(
        [
            ("history", GREY),
            ("forecast", BLUE),
            *([(band, "#b9b4f1")] if band else []),
            *([("what happened", GREEN)] if any(f.actual for f in fans) else []),
        ]
    )
    for i, fan in enumerate(fans):
        left, top = (i % columns) * wide + 8, (i // columns) * high + 28
        values = [v for part in fan[1:] for v in part if svg.finite(v)]
        span = f"{min(values):.4g} to {max(values):.4g}" if values else "no finite numbers"
        body.append(svg.label(left, top + 10, fan.name, colour="#111827"))
        body.append(svg.label(left + wide - 24, top + 10, span, end=True))
        body += _draw_fan(fan, (left, top + 20, wide - 24, high - 40), 1, 5)
    return svg.picture(wide * columns, rows * high + 28, body)


def _legend(entries: Iterable[tuple[str, str]]) -> list[str]:
    body, at = [], 8
    for name, colour in entries:
        body.append(f'<path d="M{at} 14h14" stroke="{colour}" stroke-width="4"/>')
        body.append(svg.label(at + 19, 18, name))
        at += 36 + 6 * len(name)
    return body
