"""What an asset may return as rows, and how each kind of it becomes lines of JSON.

A kind is a small class that says which objects it takes. None of them imports a library: an
object of pandas can only be there where pandas is loaded already.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import orjson
from pydantic import BaseModel

from sheaf_dagster.errors import SheafError, SinkError
from sheaf_dagster.storage import Location, read_lines

__all__ = ["lines_of"]

_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS

_SLICE_ROWS = 1024
"""Rows of a table that are Python objects at a time."""


def lines_of(obj: object, options: Mapping[str, Any] | None = None) -> Iterator[bytes]:
    """One line of JSON, without its end, for each row of what an asset returned.

    NaN, infinities and the missing values of pandas and Arrow become ``null``.

    Args:
        obj: An iterable of rows (dictionaries, pydantic models, dataclasses), a table of pandas,
            polars or Arrow (or anything with Arrow's C stream), a Ray Dataset, the path of a
            JSONL file, or an iterable of any of these.
        options: What reaches the file of a path, where that is a remote one.

    Raises:
        SinkError: It is something else, or a row can't be JSON; the message names the row.
    """
    number = 0
    try:
        for line in _lines(obj, dict(options or {}), top=True):
            number += 1
            yield line
    except _NoRowError as e:
        raise SinkError(f"row {number + 1}: {e}") from e.__cause__


class _NoRowError(Exception):
    """Why something is no row."""


def _lines(obj: object, options: dict[str, Any], *, top: bool = False) -> Iterator[bytes]:
    for kind in _KINDS:
        if kind.takes(obj):
            if top and isinstance(kind, _Row):
                break
            yield from kind.lines(obj, options)
            return
    what = f"a {type(obj).__name__}"
    if top:
        raise SinkError(
            f"the asset returned {'one row' if _ROW.takes(obj) else what}; return a list or "
            "iterator of rows (dictionaries, requests), a pandas, polars or Arrow table, or the "
            "Path of a JSONL file. An asset that writes its file itself returns "
            "dg.MaterializeResult, or None with the annotation -> None"
        )
    raise _NoRowError(f"{what} is no row; rows are dictionaries, pydantic models or dataclasses")


class _Kind(ABC):
    """A kind of object that rows can be taken from."""

    @abstractmethod
    def takes(self, obj: object) -> bool: ...

    @abstractmethod
    def lines(self, obj: Any, options: dict[str, Any]) -> Iterator[bytes]: ...


class _Row(_Kind):
    """One row: a dictionary, a request, a dataclass."""

    def takes(self, obj: object) -> bool:
        row = isinstance(obj, (Mapping, BaseModel)) or dataclasses.is_dataclass(obj)
        return row and not isinstance(obj, type)

    def lines(self, obj: Any, options: dict[str, Any]) -> Iterator[bytes]:
        if not isinstance(obj, BaseModel):
            yield _json(obj if type(obj) is dict or not isinstance(obj, Mapping) else dict(obj))
            return
        # An id that the constructor drew differs at every run; left out, the same rows give the
        # same bytes, and the job derives the same ids.
        drawn = "request_id" in type(obj).model_fields and "request_id" not in obj.model_fields_set
        plain = obj.model_dump(mode="json", exclude={"request_id"} if drawn else None)
        yield _json(plain)


class _PandasTable(_Kind):
    """A ``pandas.DataFrame``: its columns are the fields, its index is left out."""

    def takes(self, obj: object) -> bool:
        return _is(obj, "pandas", "DataFrame")

    def lines(self, obj: Any, options: dict[str, Any]) -> Iterator[bytes]:
        for start in range(0, len(obj), _SLICE_ROWS):
            for row in obj.iloc[start : start + _SLICE_ROWS].to_dict("records"):
                yield _json(row)


class _ArrowStream(_Kind):
    """Whatever speaks Arrow's C stream: tables of Arrow and polars, DuckDB's relations."""

    def takes(self, obj: object) -> bool:
        return hasattr(obj, "__arrow_c_stream__")

    def lines(self, obj: Any, options: dict[str, Any]) -> Iterator[bytes]:
        import pyarrow as pa

        for batch in pa.RecordBatchReader.from_stream(obj):
            yield from _batch_lines(batch)


class _ArrowBatch(_Kind):
    """One ``pyarrow.RecordBatch``."""

    def takes(self, obj: object) -> bool:
        return _is(obj, "pyarrow", "RecordBatch")

    def lines(self, obj: Any, options: dict[str, Any]) -> Iterator[bytes]:
        yield from _batch_lines(obj)


class _PolarsQuery(_Kind):
    """A ``polars.LazyFrame``, run by the streaming engine."""

    def takes(self, obj: object) -> bool:
        return _is(obj, "polars", "LazyFrame")

    def lines(self, obj: Any, options: dict[str, Any]) -> Iterator[bytes]:
        yield from _lines(obj.collect(engine="streaming"), options)


class _RayDataset(_Kind):
    """A ``ray.data.Dataset``, batch by batch, in its order."""

    def takes(self, obj: object) -> bool:
        return _is(obj, "ray.data", "Dataset")

    def lines(self, obj: Any, options: dict[str, Any]) -> Iterator[bytes]:
        for table in obj.iter_batches(batch_format="pyarrow", batch_size=_SLICE_ROWS):
            yield from _lines(table, options)


class _File(_Kind):
    """The path of a JSONL file that is ready: its rows are taken over as they are."""

    def takes(self, obj: object) -> bool:
        return isinstance(obj, os.PathLike) or _is(obj, "upath", "UPath")

    def lines(self, obj: Any, options: dict[str, Any]) -> Iterator[bytes]:
        own = getattr(obj, "storage_options", None)
        for _, line in read_lines(Location.of(str(obj), dict(own or options))):
            yield line.rstrip(b"\r")


class _Several(_Kind):
    """An iterable of rows or of tables."""

    def takes(self, obj: object) -> bool:
        return isinstance(obj, Iterable) and not isinstance(obj, (str, bytes, bytearray))

    def lines(self, obj: Any, options: dict[str, Any]) -> Iterator[bytes]:
        for item in obj:
            if _ROW.takes(item):
                yield from _ROW.lines(item, options)
            elif isinstance(item, (list, tuple)):
                raise _NoRowError(f"a {type(item).__name__} is no row; give one flat list of rows")
            else:
                yield from _lines(item, options)


_ROW = _Row()
_KINDS: tuple[_Kind, ...] = (
    _PandasTable(),
    _PolarsQuery(),
    _RayDataset(),
    _ArrowBatch(),
    _ArrowStream(),
    _File(),
    _ROW,
    _Several(),
)


def _is(obj: object, module: str, name: str) -> bool:
    loaded = sys.modules.get(module)
    cls = getattr(loaded, name, None) if loaded is not None else None
    return isinstance(cls, type) and isinstance(obj, cls)


def _batch_lines(batch: Any) -> Iterator[bytes]:
    for start in range(0, batch.num_rows, _SLICE_ROWS):
        for row in batch.slice(start, _SLICE_ROWS).to_pylist():
            yield _json(row)


def _json(row: Any) -> bytes:
    try:
        return orjson.dumps(row, default=_plain, option=_OPTIONS)
    except (TypeError, ValueError, RecursionError) as e:
        if isinstance(e.__cause__, SheafError):
            raise e.__cause__ from e
        raise _NoRowError(f"can't be written as JSON: {e.__cause__ or e}") from e


def _plain(value: Any) -> Any:
    """What orjson doesn't know, as something that it does."""
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    for name in ("tolist", "isoformat"):  # arrays of objects, pandas' time stamps
        method = getattr(value, name, None)
        if callable(method):
            return method()
    number = getattr(value, "__float__", None)  # decimals
    if callable(number):
        return number()
    raise TypeError(f"a value is a {type(value).__name__}")
