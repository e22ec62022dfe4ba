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

from pydantic import BaseModel

from sheaf_dagster.definitions.json_rows import (
    NoRowError,
    NoTableError,
    json_line,
    refuse_repeated_names,
)
from sheaf_dagster.definitions.loaded_files import lines_at, pieces_at
from sheaf_dagster.errors import SinkError
from sheaf_dagster.storage import Location

__all__ = ["lines_of", "pieces_of"]

_SLICE_ROWS = 1024
"""Rows of a table that are Python objects at a time."""

_TABLE = (
    "return a table with named columns, such as pandas.DataFrame(values, columns=[…]), or a list "
    'of dictionaries, such as [{"history": v.tolist()} for v in values]'
)

_REFUSED_BY_JSON = {
    "Duration": "give seconds: .dt.total_seconds()",
    "Int128": "cast it: .cast(pl.Int64), or .cast(pl.String) beyond 64 bits",
    "UInt128": "cast it: .cast(pl.UInt64), or .cast(pl.String) beyond 64 bits",
    "Object": "give it a data type, or build rows as dictionaries",
}
"""Types of polars that have no form in JSON, and what to do: Arrow refuses some, or takes them
for bytes."""


def lines_of(obj: object, options: Mapping[str, Any] | None = None) -> Iterator[bytes]:
    """One line of JSON, without its end, for each row of what an asset returned.

    NaN, infinities and the missing values of pandas and Arrow become ``null``.

    Args:
        obj: An iterable of rows (dictionaries, pydantic models, dataclasses), a table of pandas,
            polars or Arrow (or anything with Arrow's C stream), a Ray Dataset, the path of a
            file or folder, or an iterable of any of these.
        options: What reaches the file of a path, where that is a remote one.

    Raises:
        SinkError: It is something else, or a row can't be JSON; the message names the row.
    """
    yield from _numbered(_lines(obj, dict(options or {}), top=True))


def pieces_of(obj: object, options: Mapping[str, Any] | None = None) -> Iterator[Any]:
    """The same for a file that is a table: tables as Arrow's own, with their types.

    Args:
        obj: As ``lines_of`` takes it.
        options: What reaches the file of a path, where that is a remote one.

    Returns:
        A ``pyarrow.Table`` for each table; for each other row its line.
    """
    yield from _numbered(_pieces(obj, dict(options or {}), top=True))


def _numbered(pieces: Iterator[Any]) -> Iterator[Any]:
    """The pieces; an error names its row."""
    number = 0
    try:
        for piece in pieces:
            number += getattr(piece, "num_rows", 1)
            yield piece
    except NoTableError as e:
        raise SinkError(str(e)) from e.__cause__
    except NoRowError as e:
        raise SinkError(f"row {number + 1}: {e}") from e.__cause__


def _lines(obj: object, options: dict[str, Any], *, top: bool = False) -> Iterator[bytes]:
    return _kind_of(obj, top=top).lines(obj, options)


def _pieces(obj: object, options: dict[str, Any], *, top: bool = False) -> Iterator[Any]:
    return _kind_of(obj, top=top).pieces(obj, options)


def _kind_of(obj: object, *, top: bool) -> _Kind:
    for kind in _KINDS:
        if kind.takes(obj):
            if top and isinstance(kind, _Row):
                break
            return kind
    what = f"a {type(obj).__name__}"
    if top:
        raise SinkError(
            f"the asset returned {'one row' if _ROW.takes(obj) else what}; return a list or "
            "iterator of rows (dictionaries, requests), a pandas, polars or Arrow table, or the "
            "Path of a file or folder. An asset that writes its file itself returns "
            "dg.MaterializeResult, or None with the annotation -> None"
        )
    raise NoRowError(f"{what} is not a row; rows are dictionaries, pydantic models or dataclasses")


class _Kind(ABC):
    """A kind of object that rows can be taken from."""

    @abstractmethod
    def takes(self, obj: object) -> bool: ...

    @abstractmethod
    def lines(self, obj: Any, options: dict[str, Any]) -> Iterator[bytes]: ...

    def pieces(self, obj: Any, options: dict[str, Any]) -> Iterator[Any]:
        """Tables of Arrow, where this is one; its lines otherwise."""
        return self.lines(obj, options)


class _Row(_Kind):
    """One row: a dictionary, a request, a dataclass."""

    def takes(self, obj: object) -> bool:
        row = isinstance(obj, (Mapping, BaseModel)) or dataclasses.is_dataclass(obj)
        return row and not isinstance(obj, type)

    def lines(self, obj: Any, options: dict[str, Any]) -> Iterator[bytes]:
        if not isinstance(obj, BaseModel):
            yield json_line(obj if type(obj) is dict or not isinstance(obj, Mapping) else dict(obj))
            return
        # An id that the constructor drew differs at every run; left out, the same rows give the
        # same bytes, and the job derives the same ids.
        drawn = "request_id" in type(obj).model_fields and "request_id" not in obj.model_fields_set
        plain = obj.model_dump(mode="json", exclude={"request_id"} if drawn else None)
        yield json_line(plain)


class _PandasTable(_Kind):
    """A ``pandas.DataFrame``: its columns are the fields, its index is left out."""

    def takes(self, obj: object) -> bool:
        return _is(obj, "pandas", "DataFrame")

    def lines(self, obj: Any, options: dict[str, Any]) -> Iterator[bytes]:
        refuse_repeated_names(obj.columns)
        for start in range(0, len(obj), _SLICE_ROWS):
            for row in obj.iloc[start : start + _SLICE_ROWS].to_dict("records"):
                yield json_line(row)

    def pieces(self, obj: Any, options: dict[str, Any]) -> Iterator[Any]:
        import pyarrow as pa

        refuse_repeated_names(obj.columns)
        try:
            yield pa.Table.from_pandas(obj, preserve_index=False)
        except (pa.ArrowException, TypeError) as e:
            raise NoTableError(
                f"the DataFrame can't be a Parquet file, which needs one type per column: {e}"
            ) from e


class _ArrowStream(_Kind):
    """Whatever speaks Arrow's C stream: tables of Arrow and polars, DuckDB's relations."""

    def takes(self, obj: object) -> bool:
        return hasattr(obj, "__arrow_c_stream__")

    def lines(self, obj: Any, options: dict[str, Any]) -> Iterator[bytes]:
        import pyarrow as pa

        if _is(obj, "polars", "DataFrame"):
            _refuse_unwritable(obj.schema)
        try:
            batches = pa.RecordBatchReader.from_stream(obj)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as e:
            raise NoTableError(
                f"the asset returned {_a(obj)}, which Arrow read as a table ({e}); {_TABLE}"
            ) from e
        for batch in batches:
            yield from _batch_lines(batch)

    def pieces(self, obj: Any, options: dict[str, Any]) -> Iterator[Any]:
        import pyarrow as pa

        if _is(obj, "polars", "DataFrame"):
            _refuse_unwritable(obj.schema)
            # Newer kinds of text than Parquet's writers take.
            obj = obj.to_arrow(compat_level=sys.modules["polars"].CompatLevel.oldest())
        for batch in pa.RecordBatchReader.from_stream(obj):
            yield _table(batch)


class _ArrowBatch(_Kind):
    """One ``pyarrow.RecordBatch``, or an array of structs, which is the same."""

    def takes(self, obj: object) -> bool:
        return _is(obj, "pyarrow", "RecordBatch") or _is(obj, "pyarrow", "StructArray")

    def lines(self, obj: Any, options: dict[str, Any]) -> Iterator[bytes]:
        if _is(obj, "pyarrow", "StructArray"):
            obj = sys.modules["pyarrow"].RecordBatch.from_struct_array(obj)
        yield from _batch_lines(obj)

    def pieces(self, obj: Any, options: dict[str, Any]) -> Iterator[Any]:
        if _is(obj, "pyarrow", "StructArray"):
            obj = sys.modules["pyarrow"].RecordBatch.from_struct_array(obj)
        yield _table(obj)


class _NumpyRecords(_Kind):
    """A structured array of numpy: its fields are the rows' fields."""

    def takes(self, obj: object) -> bool:
        array: Any = obj
        return _is(obj, "numpy", "ndarray") and bool(array.dtype.names) and bool(array.ndim == 1)

    def lines(self, obj: Any, options: dict[str, Any]) -> Iterator[bytes]:
        for record in obj:
            yield json_line({name: record[name] for name in obj.dtype.names})


class _Nameless(_Kind):
    """Arrays and columns: their values have no names, and rows are made of named fields."""

    def takes(self, obj: object) -> bool:
        held: Any = obj
        if _is(obj, "numpy", "ndarray"):
            return not (held.dtype.kind == "O" and held.ndim == 1)
        if _is(obj, "pandas", "Series") or _is(obj, "pandas", "Index"):
            return str(held.dtype) != "object"
        if _is(obj, "polars", "Series"):
            return not hasattr(held.dtype, "fields")
        return _is(obj, "pyarrow", "Array") or _is(obj, "numpy", "generic")

    def lines(self, obj: Any, options: dict[str, Any]) -> Iterator[bytes]:
        raise NoTableError(
            f"the asset returned {_a(obj)}, which has no names for the fields of rows; {_TABLE}"
        )
        yield


class _PolarsQuery(_Kind):
    """A ``polars.LazyFrame``, run by the streaming engine."""

    def takes(self, obj: object) -> bool:
        return _is(obj, "polars", "LazyFrame")

    def lines(self, obj: Any, options: dict[str, Any]) -> Iterator[bytes]:
        yield from _lines(obj.collect(engine="streaming"), options)

    def pieces(self, obj: Any, options: dict[str, Any]) -> Iterator[Any]:
        return _pieces(obj.collect(engine="streaming"), options)


class _RayDataset(_Kind):
    """A ``ray.data.Dataset``, batch by batch, in its order."""

    def takes(self, obj: object) -> bool:
        return _is(obj, "ray.data", "Dataset")

    def lines(self, obj: Any, options: dict[str, Any]) -> Iterator[bytes]:
        for table in obj.iter_batches(batch_format="pyarrow", batch_size=_SLICE_ROWS):
            yield from _lines(table, options)

    def pieces(self, obj: Any, options: dict[str, Any]) -> Iterator[Any]:
        for table in obj.iter_batches(batch_format="pyarrow", batch_size=_SLICE_ROWS):
            yield from _pieces(table, options)


class _File(_Kind):
    """The path of a file that is ready, or of a folder of such: its rows are taken as they are."""

    def takes(self, obj: object) -> bool:
        return isinstance(obj, os.PathLike) or _is(obj, "upath", "UPath")

    def lines(self, obj: Any, options: dict[str, Any]) -> Iterator[bytes]:
        return lines_at(self._place(obj, options))

    def pieces(self, obj: Any, options: dict[str, Any]) -> Iterator[Any]:
        return pieces_at(self._place(obj, options))

    @staticmethod
    def _place(obj: Any, options: dict[str, Any]) -> Location:
        own = getattr(obj, "storage_options", None)
        return Location.of(str(obj), dict(own or options))


class _Several(_Kind):
    """An iterable of rows or of tables."""

    def takes(self, obj: object) -> bool:
        return isinstance(obj, Iterable) and not isinstance(obj, (str, bytes, bytearray))

    def lines(self, obj: Any, options: dict[str, Any]) -> Iterator[bytes]:
        for item in obj:
            if _ROW.takes(item):
                yield from _ROW.lines(item, options)
            elif isinstance(item, (list, tuple)):
                raise NoRowError(
                    f"a {type(item).__name__} is not a row; give one flat list of rows"
                )
            else:
                yield from _lines(item, options)

    def pieces(self, obj: Any, options: dict[str, Any]) -> Iterator[Any]:
        for item in obj:
            if _ROW.takes(item) or isinstance(item, (list, tuple)):
                yield from self.lines([item], options)
            else:
                yield from _pieces(item, options)


_ROW = _Row()
_KINDS: tuple[_Kind, ...] = (
    _PandasTable(),
    _PolarsQuery(),
    _RayDataset(),
    _ArrowBatch(),
    _NumpyRecords(),
    _Nameless(),
    _ArrowStream(),
    _File(),
    _ROW,
    _Several(),
)


def _a(obj: Any) -> str:
    """What an array or a column is, for people."""
    shape, dtype = getattr(obj, "shape", ()), getattr(obj, "dtype", getattr(obj, "type", None))
    name = type(obj).__name__
    if len(shape) > 1:
        return f"a {len(shape)}-dimensional {name} of {dtype}"
    return f"a {name}" if dtype is None or str(dtype) == name else f"a {name} of {dtype}"


def _is(obj: object, module: str, name: str) -> bool:
    loaded = sys.modules.get(module)
    cls = getattr(loaded, name, None) if loaded is not None else None
    return isinstance(cls, type) and isinstance(obj, cls)


def _table(batch: Any) -> Any:
    names = batch.schema.names
    refuse_repeated_names(names)
    return sys.modules["pyarrow"].Table.from_batches([batch])


def _batch_lines(batch: Any) -> Iterator[bytes]:
    _refuse_repeated_fields(batch.schema)
    for start in range(0, batch.num_rows, _SLICE_ROWS):
        for row in batch.slice(start, _SLICE_ROWS).to_pylist():
            yield json_line(row)


def _refuse_repeated_fields(fields: Iterable[Any]) -> None:
    """The same of the fields of Arrow's structs, at any depth."""
    held = list(fields)
    refuse_repeated_names(f.name for f in held)
    for field in held:
        kind = field.type
        _refuse_repeated_fields(kind.field(i) for i in range(kind.num_fields))


def _refuse_unwritable(schema: Mapping[str, Any]) -> None:
    """Refuses columns of polars that Arrow can't take over, or takes for something else."""
    for name, kind in schema.items():
        for inner in _kinds_in(kind):
            how = _REFUSED_BY_JSON.get(str(inner.base_type()))
            if how is not None:
                raise NoTableError(f"the column {name!r} is of polars' type {kind}; {how}")


def _kinds_in(kind: Any) -> Iterator[Any]:
    yield kind
    inner = getattr(kind, "inner", None)
    if inner is not None:
        yield from _kinds_in(inner)
    for field in getattr(kind, "fields", ()):
        yield from _kinds_in(field.dtype)
