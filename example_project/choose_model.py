"""``make choose-model``: candidates for the demo's forecaster, measured on days before the demo's.

The last validation day looks seven days ahead to 30 June; every day that the demo or ``make
backfill`` reports on as held out is in July or later.
"""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

from example_project.accuracy import Accuracy, score
from example_project.runs import table
from example_project.series import load_series
from sheaf_dagster.backends.statsforecast import StatsForecastBackend
from sheaf_dagster.contracts import TimeSeriesRequest

__all__ = ["CANDIDATES", "HELD_OUT_FROM", "VALIDATION", "evaluate"]

VALIDATION = [date(2013, 3, 4) + timedelta(days=8 * n) for n in range(15)]
"""Every eighth day from March to June, so that each weekday is among them."""

HELD_OUT_FROM = date(2013, 7, 1)

_CONFORMAL = {"prediction_intervals": {"n_windows": 2}}
CANDIDATES: dict[str, tuple[int, dict[str, Any]]] = {
    "last week again": (56, {"model": "SeasonalNaive"}),
    "mean of four weeks": (28, {"model": "HistoricAverage"}),
    "mean of eight weeks": (56, {"model": "HistoricAverage"}),
    "exponential smoothing": (56, {"model": "AutoETS", "model_kwargs": {"model": "ANN"}}),
    "  with a week's season": (56, {"model": "AutoETS", "model_kwargs": {"model": "ANA"}}),
    "theta": (56, {"model": "OptimizedTheta"}),
    "simple smoothing, alpha 0.1": (
        56,
        {"model": "SimpleExponentialSmoothing", "model_kwargs": {"alpha": 0.1, **_CONFORMAL}},
    ),
    "AR(1), four weeks": (28, {"model": "ARIMA", "model_kwargs": {"order": [1, 0, 0]}}),
    "AR(1), eight weeks": (56, {"model": "ARIMA", "model_kwargs": {"order": [1, 0, 0]}}),
}
"""History (days) and arguments of the backend, by name."""


def evaluate(candidate: str, days: list[date]) -> Accuracy:
    """The mean score of a candidate over some days and all routes."""
    history_days, arguments = CANDIDATES[candidate]
    backend = StatsForecastBackend(**arguments)
    backend.load()
    series = load_series()
    scores = []
    for day in days:
        requests = [TimeSeriesRequest(**r) for r in series.requests(day, history_days)]
        responses = [r.model_dump() for r in backend.batch_predict(requests)]
        scores.append(score(responses, series.ahead(day, 7)))
    return Accuracy.mean(scores)


def main() -> None:
    """Prints a table."""
    rows = []
    for name in CANDIDATES:
        found = evaluate(name, VALIDATION)
        rows.append(
            [name, f"{found.wape:.2%}", f"{found.quantile_loss:.2%}", f"{found.coverage:.1%}"]
        )
    days = f"{len(VALIDATION)} days from {VALIDATION[0]} to {VALIDATION[-1]}"
    print(f"{days}, {len(load_series().routes)} routes, 7 days ahead")
    print(table(["model", "WAPE", "quantile loss", "in 80 % band"], rows))


if __name__ == "__main__":
    main()
