"""Rows of features as the arrays and data frames that fitted models take.

JSON has one kind of number and one word for what is missing. Here each row's cells become what a
table had that was read for training: ``NaN`` for ``null``, ``None`` where the model was fitted
with that. A row's cells come out the same whatever its batch mates hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sheaf_dagster.backends.tables.dates import read_date
from sheaf_dagster.backends.tables.fitted import FittedColumn

__all__ = ["array_of", "frame_of"]

_EXACT = 2**53
"""Up to here each integer is a float of 64 bits, too."""

_PLAIN = FittedColumn()


def frame_of(
    rows: Sequence[Sequence[Any]],
    names: Sequence[str],
    known: Mapping[int, FittedColumn] | None = None,
) -> Any:
    """A pandas data frame of some rows.

    Args:
        rows: One list of JSON values a row, in the order of the columns.
        names: The columns.
        known: What the model knows of columns, by position.

    Raises:
        ValueError: A value of a column of dates is none, or a text in a column that isn't of texts
            reads as infinity; it is named.
    """
    import pandas as pd

    fitted = known or {}
    columns = [
        _column([row[i] for row in rows], fitted.get(i, _PLAIN), name)
        for i, name in enumerate(names)
    ]
    frame = pd.DataFrame(dict(enumerate(columns)), index=range(len(rows)))
    return frame.set_axis(list(names), axis="columns")


def array_of(rows: Sequence[Sequence[Any]], known: Mapping[int, FittedColumn] | None = None) -> Any:
    """A numpy array of some rows: of floats, or of objects where one column isn't of numbers.

    Args:
        rows: One list of JSON values a row, all of one length.
        known: What the model knows of columns, by position.
    """
    import numpy as np

    fitted = known or {}
    dates = {i: c.dates for i, c in fitted.items() if c.dates is not None}
    if dates:
        rows = [
            [v if v is None or i not in dates else _date(v, dates[i], str(i))
             for i, v in enumerate(row)] for row in rows
        ]  # fmt: skip
        if len(dates) == len(rows[0]) and set(dates.values()) == {"datetime64"}:
            return np.array(rows, dtype="datetime64[ns]")
    objects = any(c.objects or c.none for c in fitted.values()) or not all(
        _is_number(v) for row in rows for v in row
    )
    none = {i for i, c in fitted.items() if c.none}
    for i, column in enumerate(zip(*rows, strict=True) if objects else ()):
        if not fitted.get(i, _PLAIN).objects:
            _check_texts(column, str(i))
    filled = [
        [np.nan if v is None and i not in none else v for i, v in enumerate(row)] for row in rows
    ]
    if not objects:
        return np.array(filled, dtype=np.float64)
    table = np.empty((len(rows), len(rows[0])), dtype=object)
    for i, values in enumerate(filled):
        for j, value in enumerate(values):  # one by one: a list may be a cell
            table[i, j] = value
    return table


def _column(values: list[Any], fitted: FittedColumn, name: str) -> Any:
    import numpy as np
    import pandas as pd

    if fitted.dates is not None:
        read = [None if v is None else _date(v, fitted.dates, name) for v in values]
        if fitted.dates == "datetime64":
            return pd.Series(read, dtype="datetime64[ns]")
        missing = None if fitted.none else pd.NaT if fitted.dates == "datetime" else np.nan
        return pd.Series([missing if v is None else v for v in read], dtype=object)
    if not fitted.objects:
        _check_texts(values, name)
    filled = [np.nan if v is None and not fitted.none else v for v in values]
    if fitted.objects or fitted.none or _loses(filled):
        return pd.Series(filled, dtype=object)
    return pd.Series(filled)


def _date(value: Any, kind: str, name: str) -> Any:
    try:
        return read_date(value, kind)
    except (ValueError, OverflowError) as e:
        raise ValueError(f"'features.{name}': {e}; the model was fitted to dates") from e


def _check_texts(values: Iterable[Any], name: str) -> None:
    """Refuses texts that an estimator of numbers would read as infinity, and answer."""
    for value in values:
        if isinstance(value, str):
            try:
                is_infinite = math.isinf(float(value))
            except ValueError:
                continue
            if is_infinite:
                raise ValueError(
                    f"'features.{name}': {value!r} is a text that reads as infinity, and the model "
                    "wasn't fitted to texts there; a missing value is null"
                )


def _loses(values: list[Any]) -> bool:
    """Whether a column of floats would change an integer of these."""
    return any(isinstance(v, float) for v in values) and any(
        isinstance(v, int) and abs(v) > _EXACT for v in values
    )


def _is_number(value: Any) -> bool:
    if isinstance(value, int):
        return abs(value) <= _EXACT
    return value is None or isinstance(value, float)
