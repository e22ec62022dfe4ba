"""Forecasts as series: history, forecast, band, and what happened; ranked by how far they are off."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, NamedTuple

from sheaf_dagster.plots import svg
from sheaf_dagster.plots.plot import Pair, Row

__all__ = ["Actuals", "ActualsOf", "Fan", "ForecastAxes", "Forecasts", "StartOf", "forecasts_of"]

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


class Fan(NamedTuple):
    """One series.

    Attributes:
        title: Its name, and its rank among the others.
        past: The end of its history.
        mean: The forecast.
        lower: Of the band, as long as the forecast, or empty.
        upper: Likewise.
        actual: What happened, as far as it is known.
        step: Steps of time from one value to the next.
        start: Date of the first forecast value, where it is known.
        frequency: Of the request.
    """

    title: str
    past: list[Any]
    mean: list[Any]
    lower: list[Any]
    upper: list[Any]
    actual: list[Any]
    step: int
    start: date | None
    frequency: str

    def date_at(self, steps: int) -> date | None:
        """The date that many steps after the first forecast value; None where it isn't known."""
        if self.start is None or self.frequency not in (*_STEPS, "1M"):
            return None
        if self.frequency == "1M":
            months = self.start.year * 12 + self.start.month - 1 + steps
            return date(months // 12, months % 12 + 1, 1)
        step = _STEPS[self.frequency]
        start = self.start
        if step < timedelta(days=1) and not isinstance(start, datetime):
            start = datetime(start.year, start.month, start.day)
        return start + steps * step

    def time_at(self, steps: int) -> str:
        """The same in words, as exactly as the steps are; else how many steps it is away."""
        at = self.date_at(steps)
        if at is None:
            name = _STEP_NAMES.get(self.frequency, "steps")
            return "start of the forecast" if steps == 0 else f"{steps:+d} {name}"
        if self.frequency == "1M":
            return f"{at:%Y-%m}"
        within_a_day = _STEPS[self.frequency] < timedelta(days=1)
        return f"{at:%Y-%m-%d %H:%M}" if within_a_day else f"{at:%Y-%m-%d}"


class Forecasts(NamedTuple):
    """The series to show of a file, the worst first.

    Attributes:
        fans: The worst, the median, one between them and the best; each says so in its title.
        band: What their bands are, such as ``quantiles 0.1 to 0.9``; empty where there are none.
    """

    fans: list[Fan]
    band: str


class _Scored(NamedTuple):
    score: float
    fan: Fan


def forecasts_of(
    pairs: Sequence[Pair], axes: ForecastAxes | None = None, most_history: int = 56
) -> Forecasts | None:
    """The series of some requests and answers that are worth a look; None where there are none.

    Where it is known what happened, the worst is the one with the largest error, else the one with
    the widest band: sum of errors (or widths) over the sum of the values.

    Args:
        pairs: The requests and their answers.
        axes: What the file can't say of itself.
        most_history: Values of the history to keep, unless twice the horizon is more.
    """
    axes = axes or ForecastAxes()
    band, scored, by = "", [], "widest band"
    for request, answer in pairs:
        history, mean = request.get("history"), answer.get("mean")
        if not history or not isinstance(mean, list):
            continue
        if isinstance(history[0], list):
            history = [step[request.get("target_index") or 0] for step in history]
        history = history[-max(most_history, 2 * len(mean)) :]
        band, lower, upper = _band(answer, len(mean))
        known = list((axes.actuals and axes.actuals(request)) or ())[: len(mean)]
        start = axes.start(request) if axes.start else None
        name = str(request.get("model_name", ""))
        frequency = str(request.get("frequency", ""))
        fan = Fan(name, history, mean, lower, upper, known, 1, start, frequency)
        error = _relative(mean, known, known)
        if error is not None:
            by = "error"
        score = error if error is not None else _relative(upper, lower, history)
        scored.append(_Scored(-1.0 if score is None else score, fan))
    if not scored:
        return None
    # Among equals the first in the file is first.
    return Forecasts(_chosen(sorted(scored, key=lambda s: -s.score), by), band)


def _relative(ones: Sequence[Any], others: Sequence[Any], scale: Sequence[Any]) -> float | None:
    """Sum of the differences over the sum of a scale's mean magnitudes; None where unknown."""
    apart = [
        abs(a - b) for a, b in zip(ones, others, strict=False) if svg.finite(a) and svg.finite(b)
    ]
    size = [abs(v) for v in scale if svg.finite(v)]
    if not apart or not any(size):
        return None
    return float(sum(apart) / len(apart) / (sum(size) / len(size)))


def _chosen(ranked: Sequence[_Scored], by: str) -> list[Fan]:
    """The worst, the median, the best and one between the first two, each with its title."""
    last = len(ranked) - 1
    if last < 1 or ranked[0].score < 0:
        return [_titled(s, "", by) for s in ranked[:4]]
    names = {last: "best", last // 4: "upper quarter", last // 2: "median", 0: "worst"}
    order = [i for i in (0, last // 2, last // 4, last) if i <= last]
    return [_titled(ranked[i], names[i], by) for i in dict.fromkeys(order)]


def _titled(scored: _Scored, rank: str, by: str) -> Fan:
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
