"""Dates, which JSON has as text, as the values that a table had for them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

__all__ = ["DATE_KINDS", "date_kind", "read_date"]

_ISO_DATE = re.compile(r"\d{4}-\d\d(-\d\d([T ].+)?)?|\d{8}(T.+)?")

DATE_KINDS = ("datetime64", "datetime", "date")
"""A column of pandas' dates without time zone; objects with a time zone; Python's dates."""


def read_date(value: Any, kind: str = "datetime64") -> Any:
    """A date or a time from ISO 8601 text; times of which the zone is given are turned into UTC.

    Raises:
        ValueError: It is no such text.
    """
    from datetime import date

    import pandas as pd

    if not isinstance(value, str) or not _ISO_DATE.fullmatch(value):
        raise ValueError(f"{value!r} is not a date of the form 2024-06-05 or 2024-06-05T12:00:00Z")
    if kind == "date" and len(value) == len("2024-06-05"):
        return date.fromisoformat(value)  # also of years that pandas doesn't have
    found = pd.to_datetime(value, format="ISO8601")
    return _AS[kind](found)


def _without_zone(found: Any) -> Any:
    return found if found.tzinfo is None else found.tz_convert(None)


def _with_zone(found: Any) -> Any:
    return found.tz_localize("UTC") if found.tzinfo is None else found.tz_convert("UTC")


def _day(found: Any) -> Any:
    if found != found.normalize():
        raise ValueError(f"{found.isoformat()!r} is a time, where the model takes a date")
    return found.date()


_AS: dict[str, Callable[[Any], Any]] = {
    "datetime64": _without_zone,
    "datetime": _with_zone,
    "date": _day,
}


def date_kind(known: Any) -> str | None:
    """The kind of dates of which an array consists, if it does.

    Args:
        known: Categories that an encoder has kept (one-dimensional).
    """
    from datetime import date, datetime

    if known.dtype.kind == "M":
        return "datetime64"
    values = [v for v in known if v is not None and v == v] if known.dtype.kind == "O" else []
    if values and all(isinstance(v, datetime) for v in values):
        return "datetime" if all(v.tzinfo is not None for v in values) else "datetime64"
    return "date" if values and all(isinstance(v, date) for v in values) else None
