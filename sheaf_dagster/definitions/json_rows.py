"""A row as a line of JSON, or the reason why it can't be one and how to convert it.

Nothing here imports numpy or pandas: a value of theirs can only be there where they are loaded.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

import orjson
from pydantic import BaseModel

from sheaf_dagster.errors import SheafError

__all__ = ["NoRowError", "NoTableError", "json_line", "refuse_repeated_names"]

_SECONDS = (
    "give a number of seconds (.total_seconds(), of a column of pandas or polars "
    ".dt.total_seconds()) or text"
)
_HOW: dict[str, str] = {
    "timedelta": _SECONDS,
    "timedelta64": _SECONDS,
    "Timedelta": _SECONDS,
    "MonthDayNano": "give its months, days and nanoseconds as numbers",
    "bytes": "convert text with .decode(), and other bytes with base64.b64encode(…).decode()",
    "complex": "give its .real and .imag",
    "Period": "give text, .astype(str), or its .start_time",
    "Interval": "give its .left and .right",
}
_TIMES = orjson.OPT_PASSTHROUGH_DATETIME
"""Python writes them: orjson drops a digit of some times, and the seconds of old zones."""

_HOW_ANY = "give text, a number, a date, or a list or dictionary of them"


class NoRowError(Exception):
    """Why something is not a row."""


class NoTableError(NoRowError):
    """Why a table, an array or a column holds no rows, whichever of them is looked at."""


def json_line(row: Any) -> bytes:
    """A row as JSON, without the line's end.

    NaN, infinities and what numpy, pandas and Arrow take for missing become ``null``.

    Raises:
        NoRowError: A value can't be written; the message names its field and type, and says how
            to convert it.
        SheafError: The one that a lazily read value raised.
    """
    try:
        try:
            return orjson.dumps(row, _plain, _TIMES)
        except TypeError as e:
            if not str(e).startswith("Dict key must be str"):
                raise
        _refuse_keys_of_one_name(row)
        return orjson.dumps(row, _plain, orjson.OPT_NON_STR_KEYS | _TIMES)
    except (TypeError, ValueError, RecursionError) as e:
        if isinstance(e.__cause__, SheafError):
            raise e.__cause__ from e
        raise NoRowError(_reason(row, e)) from e


def refuse_repeated_names(columns: Iterable[Any]) -> None:
    """Refuses a table of which two columns have one name: only one of them would be written.

    Raises:
        NoTableError: Two have, or a column's name can't be a field's; the message names it.
    """
    names = list(columns)
    for name in names:
        if isinstance(name, tuple):
            raise NoTableError(
                f"the column {name!r} has a name with {len(name)} levels, but a field name has one; "
                "join them first: table.columns = ['_'.join(map(str, c)) for c in table.columns]"
            )
    for name, count in Counter(map(_as_key, names)).items():
        if count > 1:
            raise NoTableError(
                f"{count} columns are named {name!r}, but a row can have only one; rename or drop "
                "the others"
            )


def _as_key(name: Any) -> str:
    return name if isinstance(name, str) else str(name)


def _refuse_keys_of_one_name(value: Any) -> None:
    """``{1: …, "1": …}`` would be an object that has one field twice."""
    if isinstance(value, Mapping):
        names = Counter(map(_as_key, value))
        if len(names) < len(value):
            raise TypeError(f"two keys are written {next(n for n, c in names.items() if c > 1)!r}")
        for held in value.values():
            _refuse_keys_of_one_name(held)
    elif isinstance(value, (list, tuple)):
        for held in value:
            _refuse_keys_of_one_name(held)


def _plain(value: Any) -> Any:
    """What orjson doesn't know, as something that it does."""
    name = type(value).__name__
    if name in ("NAType", "NaTType"):
        return None
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if name in _HOW or isinstance(value, (timedelta, bytes, bytearray, memoryview)):
        raise _unwritable(value)
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic)):
        return _of_numpy(numpy, value)
    for method_name in ("tolist", "isoformat"):  # arrays of Arrow, pandas' time stamps
        method = getattr(value, method_name, None)
        if callable(method):
            return method()
    number = getattr(value, "__float__", None)  # decimals
    if callable(number):
        return number()
    raise _unwritable(value)


def _of_numpy(numpy: Any, value: Any) -> Any:
    kind = value.dtype.kind
    if kind == "M":  # orjson writes NaT as a date of 1677, and Python's lists hold numbers
        return _moments(numpy, value)
    if kind in "mcSV":
        raise _unwritable(value)
    number = isinstance(value, numpy.generic) or (type(value) is numpy.ndarray and value.ndim)
    if number and kind in "biuf" and value.dtype.isnative:
        whole = numpy.ascontiguousarray(value) if value.ndim else value
        text = orjson.dumps(whole, default=_listed, option=orjson.OPT_SERIALIZE_NUMPY)
        return orjson.Fragment(text)
    return value.tolist()


def _listed(value: Any) -> Any:
    return value.tolist()  # long doubles


def _moments(numpy: Any, value: Any) -> Any:
    if value.ndim:
        return [_moments(numpy, held) for held in value]
    if numpy.ma.is_masked(value) or numpy.isnat(value):
        return None
    unit, _ = numpy.datetime_data(value.dtype)
    fine = value if unit in ("s", "ms", "us", "ns", "ps", "fs", "as") else value.astype("M8[s]")
    whole, _, fraction = str(fine).partition(".")
    if whole.find("-") != 4:
        raise TypeError(f"{value} is a date beyond the years 0 to 9999")
    fraction = fraction.rstrip("0")
    return f"{whole}.{fraction.ljust(6, '0')}" if fraction else whole


def _unwritable(value: Any) -> TypeError:
    dtype = getattr(value, "dtype", None)
    kind = getattr(dtype, "kind", "")
    name = type(value).__name__
    how = {"m": _HOW["timedelta"], "c": _HOW["complex"], "S": _HOW["bytes"]}.get(kind)
    if how is None and isinstance(value, (timedelta, bytes, bytearray, memoryview)):
        how = _HOW["timedelta" if isinstance(value, timedelta) else "bytes"]
    what = f"{name} of {dtype}" if getattr(value, "ndim", 0) else name
    return TypeError(f"a value is a {what}; {how or _HOW.get(name, _HOW_ANY)}")


def _reason(row: Any, error: BaseException) -> str:
    """Why a row is not JSON, with the field that can't be written."""
    problem = str(error.__cause__ or error)
    if isinstance(row, Mapping):
        for name, value in row.items():
            try:
                orjson.dumps(value, default=_plain, option=orjson.OPT_NON_STR_KEYS)
            except (TypeError, ValueError, RecursionError) as e:
                what, _, how = str(e.__cause__ or e).partition("; ")
                if "64-bit" in what:
                    what = "an integer is beyond 64 bits"
                    how = "give text, or a float where its first 15 digits are enough"
                problem = f"{what} (field {name!r})" + (f"; {how}" if how else "")
                break
    return f"can't be written as JSON: {problem}"
