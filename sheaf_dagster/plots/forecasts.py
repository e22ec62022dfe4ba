"""Forecasts behind their histories, with what happened where it is known."""

from __future__ import annotations

from collections.abc import Sequence

from sheaf_dagster.plots import svg
from sheaf_dagster.plots.fans import Fan, ForecastAxes, forecasts_of
from sheaf_dagster.plots.plot import (
    MAX_INLINE_CHARS,
    MAX_PLOT_CHARS,
    Pair,
    Plot,
    first_fit,
)
from sheaf_dagster.plots.svg import BLUE, GREY, RED, Frame

__all__ = ["forecast_fans"]


def forecast_fans(pairs: Sequence[Pair], axes: ForecastAxes | None = None) -> Plot | None:
    """The worst of the series as a fan; in large, the median one and others, too."""
    found = forecasts_of(pairs, axes)
    if found is None:
        return None
    fans, band = found
    unit = axes.unit if axes else ""
    small = first_fit(
        (_small_fan(_thinned(fans[0], points)) for points in (48, 32, 24, 16)),
        "history and forecast",
        MAX_INLINE_CHARS,
    )
    large = first_fit(
        (
            _fan_grid([_thinned(f, points) for f in fans[:series]], band, unit)
            for series, points in ((4, 120), (2, 100), (1, 60))
        ),
        "histories and forecasts",
        MAX_PLOT_CHARS,
    )
    return Plot(small, large)


def _thinned(fan: Fan, points: int) -> Fan:
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


def _draw_fan(frame: Frame, fan: Fan, dot: float) -> list[str]:
    now = len(fan.past)
    return [
        svg.outline(frame, now, fan.lower, fan.upper, BLUE) if fan.lower else "",
        svg.line(frame, 0, fan.past, GREY),
        svg.line(frame, now - 1, [fan.past[-1], *fan.mean], BLUE, width=2),
        svg.dots(frame, enumerate(fan.actual, now), RED, size=dot),
    ]


def _frame_of(fan: Fan, box: tuple[float, float, float, float], places: int) -> Frame:
    low, high = _range_of(fan)
    last = max(len(fan.past) + len(fan.mean) - 1, 1)
    return Frame(box, (0, last), (low, high), places)


def _range_of(fan: Fan) -> tuple[float, float]:
    parts = (fan.past, fan.mean, fan.lower, fan.upper, fan.actual)
    values = [v for part in parts for v in part if svg.finite(v)]
    return min(values, default=0), max(values, default=1)


def _small_fan(fan: Fan) -> str:
    drawn = _draw_fan(_frame_of(fan, (2, 14, 236, 48), 0), fan, 4)
    return svg.picture(240, 66, [svg.label(2, 9, fan.title[:42], size=9), *drawn])


def _fan_grid(fans: Sequence[Fan], band: str, unit: str) -> str:
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


def _time_axis(frame: Frame, fan: Fan, box: tuple[float, float, float, float]) -> list[str]:
    """Dates, or else steps, at the first value, at the forecast's start and at the last value."""
    left, top, width, height = box
    now, last = len(fan.past), len(fan.past) + len(fan.mean) - 1
    x = frame.at(now, 0)[0]
    y = top + height + 12
    return [
        f'<path d="M{x:g} {top:g}v{height:g}" stroke="{GREY}" stroke-dasharray="2 3"/>',
        svg.label(left, y, fan.time_at(-now * fan.step), size=9),
        svg.label(x, y, fan.time_at(0), size=9, middle=True),
        svg.label(left + width, y + 10, fan.time_at((last - now) * fan.step), size=9, end=True),
    ]
