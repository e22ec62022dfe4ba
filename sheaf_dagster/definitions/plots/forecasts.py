"""Forecasts behind their histories, with what happened where it is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
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
from sheaf_dagster.definitions.plots.svg import BLUE, GREY, RED, Frame

__all__ = ["Actuals", "ActualsOf", "ForecastAxes", "StartOf", "forecast_fans"]

_HISTORY = 56

Actuals = Callable[[Row], "Sequence[float | None] | None"]
"""What happened after a request's history, oldest first; None where it is not known."""

ActualsOf = Callable[["str | None", Row], "Sequence[float | None] | None"]
"""The same, by partition key and request."""

StartOf = Callable[["str | None", Row], "date | None"]
"""The date (or datetime) of the first forecast value, by partition key and request."""

_STEPS = {
    "1min": timedelta(minutes=1),
    "5min": timedelta(minutes=5),
    "15min": timedelta(minutes=15),
    "1h": timedelta(hours=1),
    "1d": timedelta(days=1),
    "1W": timedelta(weeks=1),
}
_STEP_NAMES = {"1min": "min", "5min": "× 5 min", "15min": "× 15 min", "1h": "h", "1d": "days",
               "1W": "weeks", "1M": "months"}  # fmt: skip


@dataclass(frozen=True)
class ForecastAxes:
    """What a file of forecasts can't say of itself.

    Attributes:
        actuals: Gives what happened.
        start: Gives the date of the first forecast value, for the axis of time.
        unit: Of the values, for the other axis.
    """

    actuals: Actuals | None = None
    start: Callable[[Row], date | None] | None = None
    unit: str = ""


class _Fan(NamedTuple):
    title: str
    past: list[Any]
    mean: list[Any]
    lower: list[Any]
    upper: list[Any]
    actual: list[Any]
    step: int
    start: date | None
    frequency: str


class _Scored(NamedTuple):
    score: float
    fan: _Fan


def forecast_fans(pairs: Sequence[Pair], axes: ForecastAxes | None = None) -> Plot | None:
    """The worst of the series as a fan; in large, the median one and others, too.

    Where it is known what happened, the worst is the one with the largest error, else the one with
    the widest band: sum of errors (or widths) over the sum of the values.
    """
    axes = axes or ForecastAxes()
    band, scored, by = "", [], "widest band"
    for request, answer in pairs:
        history, mean = request.get("history"), answer.get("mean")
        if not history or not isinstance(mean, list):
            continue
        if isinstance(history[0], list):
            history = [step[request.get("target_index") or 0] for step in history]
        history = history[-max(_HISTORY, 2 * len(mean)) :]
        band, lower, upper = _band(answer, len(mean))
        known = list((axes.actuals and axes.actuals(request)) or ())[: len(mean)]
        start = axes.start(request) if axes.start else None
        name = str(request.get("model_name", ""))
        frequency = str(request.get("frequency", ""))
        fan = _Fan(name, history, mean, lower, upper, known, 1, start, frequency)
        error = _relative(mean, known, known)
        if error is not None:
            by = "error"
        score = error if error is not None else _relative(upper, lower, history)
        scored.append(_Scored(-1.0 if score is None else score, fan))
    if not scored:
        return None
    # Among equals the first in the file is first.
    fans = _chosen(sorted(scored, key=lambda s: -s.score), by)
    small = first_fit(
        (_small_fan(_thinned(fans[0], points)) for points in (48, 32, 24, 16)),
        "history and forecast",
        MAX_INLINE_CHARS,
    )
    large = first_fit(
        (
            _fan_grid([_thinned(f, points) for f in fans[:series]], band, axes.unit)
            for series, points in ((4, 120), (2, 100), (1, 60))
        ),
        "histories and forecasts",
        MAX_PLOT_CHARS,
    )
    return Plot(small, large)


def _relative(ones: Sequence[Any], others: Sequence[Any], scale: Sequence[Any]) -> float | None:
    """Sum of the differences over the sum of a scale's mean magnitudes; None where unknown."""
    apart = [
        abs(a - b) for a, b in zip(ones, others, strict=False) if svg.finite(a) and svg.finite(b)
    ]
    size = [abs(v) for v in scale if svg.finite(v)]
    if not apart or not any(size):
        return None
    return float(sum(apart) / len(apart) / (sum(size) / len(size)))


def _chosen(ranked: Sequence[_Scored], by: str) -> list[_Fan]:
    """The worst, the median, the best and one between the first two, each with its title."""
    last = len(ranked) - 1
    if last < 1 or ranked[0].score < 0:
        return [_titled(s, "", by) for s in ranked[:4]]
    names = {last: "best", last // 4: "upper quarter", last // 2: "median", 0: "worst"}
    order = [i for i in (0, last // 2, last // 4, last) if i <= last]
    return [_titled(ranked[i], names[i], by) for i in dict.fromkeys(order)]


def _titled(scored: _Scored, rank: str, by: str) -> _Fan:
    if not rank:
        return scored.fan
    return scored.fan._replace(title=f"{rank}: {scored.fan.title}, {by} {scored.score:.1%}")


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
    return fan._replace(
        past=fan.past[first::n],
        mean=fan.mean[::n],
        lower=fan.lower[::n],
        upper=fan.upper[::n],
        actual=fan.actual[::n],
        step=n,
    )


def _draw_fan(frame: Frame, fan: _Fan, dot: float) -> list[str]:
    now = len(fan.past)
    return [
        svg.outline(frame, now, fan.lower, fan.upper, BLUE) if fan.lower else "",
        svg.line(frame, 0, fan.past, GREY),
        svg.line(frame, now - 1, [fan.past[-1], *fan.mean], BLUE, width=2),
        svg.dots(frame, enumerate(fan.actual, now), RED, size=dot),
    ]


def _frame_of(fan: _Fan, box: tuple[float, float, float, float], places: int) -> Frame:
    low, high = _range_of(fan)
    last = max(len(fan.past) + len(fan.mean) - 1, 1)
    return Frame(box, (0, last), (low, high), places)


def _range_of(fan: _Fan) -> tuple[float, float]:
    parts = (fan.past, fan.mean, fan.lower, fan.upper, fan.actual)
    values = [v for part in parts for v in part if svg.finite(v)]
    return min(values, default=0), max(values, default=1)


def _small_fan(fan: _Fan) -> str:
    drawn = _draw_fan(_frame_of(fan, (2, 14, 236, 48), 0), fan, 4)
    return svg.picture(240, 66, [svg.label(2, 9, fan.title[:42], size=9), *drawn])


def _fan_grid(fans: Sequence[_Fan], band: str, unit: str) -> str:
    columns = 1 if len(fans) == 1 else 2
    rows = -(-len(fans) // columns)
    wide, high = 440, 170
    body = svg.legend(
        [
            ("history", GREY),
            ("forecast", BLUE),
            *([(band, "#80b9d9")] if band else []),
            *([("what happened", RED)] if any(f.actual for f in fans) else []),
        ]
    )
    for i, fan in enumerate(fans):
        left, top = (i % columns) * wide + 8, (i // columns) * high + 28
        box = (left + 40, top + 20, wide - 64, high - 52)
        body.append(svg.label(left, top + 10, fan.title))
        if unit:
            body.append(svg.label(left + wide - 24, top + 10, unit, end=True))
        frame = _frame_of(fan, box, 1)
        body += [*svg.value_axis(frame, box, _range_of(fan)), *_draw_fan(frame, fan, 5)]
        body += _time_axis(frame, fan, box)
    return svg.picture(wide * columns, rows * high + 28, body)


def _time_axis(frame: Frame, fan: _Fan, box: tuple[float, float, float, float]) -> list[str]:
    """Dates, or else steps, at the first value, at the forecast's start and at the last value."""
    left, top, width, height = box
    now, last = len(fan.past), len(fan.past) + len(fan.mean) - 1
    x = frame.at(now, 0)[0]
    y = top + height + 12
    return [
        f'<path d="M{x:g} {top:g}v{height:g}" stroke="{GREY}" stroke-dasharray="2 3"/>',
        svg.label(left, y, _when(fan, -now * fan.step), size=9),
        svg.label(x, y, _when(fan, 0), size=9, middle=True),
        svg.label(left + width, y + 10, _when(fan, (last - now) * fan.step), size=9, end=True),
    ]


def _when(fan: _Fan, steps: int) -> str:
    """The date that many steps after the first forecast value, as exactly as the steps are."""
    if fan.start is None or fan.frequency not in (*_STEPS, "1M"):
        name = _STEP_NAMES.get(fan.frequency, "steps")
        return "start of the forecast" if steps == 0 else f"{steps:+d} {name}"
    if fan.frequency == "1M":
        months = fan.start.year * 12 + fan.start.month - 1 + steps
        return f"{months // 12:04}-{months % 12 + 1:02}"
    step = _STEPS[fan.frequency]
    if step < timedelta(days=1) and not isinstance(fan.start, datetime):
        start: date = datetime(fan.start.year, fan.start.month, fan.start.day)
    else:
        start = fan.start
    at = start + steps * step
    return f"{at:%Y-%m-%d %H:%M}" if step < timedelta(days=1) else f"{at:%Y-%m-%d}"
