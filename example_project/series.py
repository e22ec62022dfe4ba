"""The data: daily departures of 182 routes from New York's airports in 2013."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from datetime import date, timedelta
from functools import lru_cache
from pathlib import Path

__all__ = ["HISTORY_DAYS", "HORIZON", "SEASON", "Series", "load_series"]

HISTORY_DAYS = 28
"""Days of history that a request carries: four of the weeks in which schedules repeat."""

HORIZON = 7
SEASON = 7

_FILE = Path(__file__).parent / "data" / "nyc_route_departures_2013.csv"


@dataclass(frozen=True)
class Series:
    """Daily counts by route.

    Attributes:
        routes: Names such as ``EWR-ATL``.
        first: Day of the first row.
        counts: One list a day, one number a route.
    """

    routes: tuple[str, ...]
    first: date
    counts: tuple[tuple[float, ...], ...]

    def before(self, day: date, days: int) -> list[list[float]]:
        """The ``days`` days that end the day before ``day``, one list a route."""
        end = (day - self.first).days
        return [list(values) for values in zip(*self.counts[end - days : end], strict=True)]

    def ahead(self, day: date, days: int) -> list[list[float]]:
        """The ``days`` days from ``day`` on, one list a route."""
        return self.before(day + timedelta(days=days), days)


@lru_cache(maxsize=1)
def load_series() -> Series:
    """Reads the file that the project carries."""
    with _FILE.open(newline="") as f:
        header, *rows = list(csv.reader(f))
    return Series(
        routes=tuple(header[1:]),
        first=date.fromisoformat(rows[0][0]),
        counts=tuple(tuple(float(v) for v in row[1:]) for row in rows),
    )
