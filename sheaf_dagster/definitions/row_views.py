"""What a downstream asset may take rows as, by the annotation of its argument.

A view is a small class that says which annotations it serves and makes the object of one file
or of several, one after the other. Libraries are imported when a view is made.
"""

from __future__ import annotations

import codecs
import collections.abc
import glob
import io
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, cast, get_args, get_origin

from pydantic import BaseModel

from sheaf_dagster.definitions.loaded_files import joined, table_of, text_of
from sheaf_dagster.definitions.loaded_rows import rows_of
from sheaf_dagster.errors import SpecError
from sheaf_dagster.storage import Location, files_of, store_at
from sheaf_dagster.storage.formats import is_table
from sheaf_dagster.storage.formats.kinds import is_parquet
from sheaf_dagster.storage.source_files import is_folder

__all__ = ["RowStream", "view_for"]

RowT = TypeVar("RowT")

_HEAD_BYTES = 4096


class RowStream(Generic[RowT]):
    """Rows that are read while you iterate over them, any number of times, in constant memory.

    Use this annotation for rows that don't fit into memory. A type in brackets makes the rows typed::

        @dg.asset
        def worst(forecasts: sd.RowStream[TimeSeriesResponse]) -> float:
            return max(max(f.mean) for f in forecasts)

    (Dagster doesn't accept ``Iterator[TimeSeriesResponse]`` as an annotation.)
    """

    row_type: ClassVar[Any] = dict

    def __init__(self, files: Sequence[Location]) -> None:
        self._files = list(files)

    @property
    def uris(self) -> list[str]:
        """The files, in order."""
        return [f.uri for f in self._files]

    def __iter__(self) -> Iterator[RowT]:
        return rows_of(self._files, self.row_type)

    def __class_getitem__(cls, row_type: Any) -> Any:
        # A class, not typing's alias: Dagster takes only what isinstance does.
        if isinstance(row_type, TypeVar):
            return cls
        name = f"{cls.__name__}[{getattr(row_type, '__name__', row_type)}]"
        known = _STREAM_TYPES.get((cls, row_type))
        if known is None:
            known = type(name, (cls,), {"row_type": row_type, "__module__": cls.__module__})
            _STREAM_TYPES[(cls, row_type)] = known
        return known


_STREAM_TYPES: dict[tuple[type, Any], type] = {}


class _View(ABC):
    """One way to see rows."""

    @abstractmethod
    def serves(self, wanted: Any) -> bool:
        """Whether an annotation asks for this."""

    @abstractmethod
    def make(self, files: Sequence[Location], wanted: Any) -> Any:
        """The object, of all files one after the other; of a folder all of its files."""


def view_for(wanted: Any) -> _View:
    """The view that an annotation asks for.

    Raises:
        SpecError: There is none; the message lists those that there are.
    """
    for view in _VIEWS:
        if view.serves(wanted):
            return view
    raise SpecError(
        f"rows can't be loaded as {getattr(wanted, '__name__', wanted)}; annotate the argument "
        "with list[dict], list[TimeSeriesResponse] (or another pydantic model), "
        "RowStream[...], Iterator, pandas.DataFrame, polars.DataFrame, polars.LazyFrame, "
        "pyarrow.Table, ray.data.Dataset, Path, UPath or str, or dict[str, …] of one of these for "
        "many partitions"
    )


class _Rows(_View):
    """``list``, ``list[dict]``, ``list[Model]``, or no annotation."""

    def serves(self, wanted: Any) -> bool:
        if wanted in (Any, list):
            return True
        return get_origin(wanted) in (list, collections.abc.Sequence) and _is_row_type(
            _row_type(wanted)
        )

    def make(self, files: Sequence[Location], wanted: Any) -> Any:
        return list(rows_of(files, _row_type(wanted)))


class _Stream(_View):
    """``RowStream``, or a plain ``Iterator`` or ``Iterable``."""

    _PLAIN = (collections.abc.Iterator, collections.abc.Iterable)

    def serves(self, wanted: Any) -> bool:
        return wanted in self._PLAIN or _is_subclass(wanted, RowStream)

    def make(self, files: Sequence[Location], wanted: Any) -> Any:
        if _is_subclass(wanted, RowStream):
            return wanted(files)
        return itertools.chain(rows_of(files, dict))  # UPathIOManager awaits a bare generator


class _Pandas(_View):
    """``pandas.DataFrame``: lists and objects stay what they are in JSON, nothing is guessed.

    Of tables it is the table that they hold.
    """

    def serves(self, wanted: Any) -> bool:
        return _named(wanted, "pandas", "DataFrame")

    def make(self, files: Sequence[Location], wanted: Any) -> Any:
        named = files_of(files)
        if named and all(is_table(file.location.uri) for file in named):
            return joined(named).to_pandas()
        return wanted.from_records(list(rows_of(named, dict)))


class _Polars(_View):
    """``polars.DataFrame``."""

    def serves(self, wanted: Any) -> bool:
        return _named(wanted, "polars", "DataFrame")

    def make(self, files: Sequence[Location], wanted: Any) -> Any:
        return _joined(files).collect()


class _PolarsLazy(_View):
    """``polars.LazyFrame``: of local files nothing is read before it is collected."""

    def serves(self, wanted: Any) -> bool:
        return _named(wanted, "polars", "LazyFrame")

    def make(self, files: Sequence[Location], wanted: Any) -> Any:
        return _joined(files)


def _joined(files: Sequence[Location]) -> Any:
    import polars as pl

    return pl.concat(_scans(files), how="diagonal_relaxed")


def _scans(files: Sequence[Location]) -> list[Any]:
    import polars as pl

    scans = []
    for file in files_of(files):
        place = file.location
        source: Any = place.uri
        if is_parquet(place.uri) and not file.folders:
            if not _polars_reads(place):
                source = io.BytesIO(store_at(place).read())
            scans.append(pl.scan_parquet(source))
            continue
        if is_table(place.uri):
            scans.append(cast("pl.DataFrame", pl.from_arrow(table_of(file))).lazy())
            continue
        if file.folders or not _polars_reads(place):
            text = text_of(file)
            if not text.strip():
                continue
            source = io.BytesIO(text)
        scans.append(pl.scan_ndjson(source, infer_schema_length=None))
    return scans or [pl.LazyFrame()]


def _polars_reads(file: Location) -> bool:
    """Whether polars itself can read a file: it takes ``*``, ``?`` and ``[`` for a pattern."""
    store = store_at(file)
    size = store.require_state().size
    if store.local_path is None or glob.has_magic(store.local_path):
        return False
    head = store.read_range(0, min(size, _HEAD_BYTES))
    return bool(head.strip()) and not head.startswith(codecs.BOM_UTF8)


class _Arrow(_View):
    """``pyarrow.Table``, with types found in all of the file."""

    def serves(self, wanted: Any) -> bool:
        return _named(wanted, "pyarrow", "Table")

    def make(self, files: Sequence[Location], wanted: Any) -> Any:
        return joined(files_of(files))


class _RayDataset(_View):
    """``ray.data.Dataset``: its workers read the files."""

    def serves(self, wanted: Any) -> bool:
        return _named(wanted, "ray", "Dataset")

    def make(self, files: Sequence[Location], wanted: Any) -> Any:
        import ray.data

        if not files:
            return ray.data.from_items([])
        named = files_of(files)
        stores = [store_at(file.location) for file in named]
        for store in stores:
            store.require_state()
        first = named[0].location.uri
        # By itself Ray takes the folders above a place for columns, too.
        if any(f.folders for f in named) or (is_table(first) and not is_parquet(first)):
            return ray.data.from_arrow([*map(table_of, named)])
        read = ray.data.read_parquet if is_parquet(first) else ray.data.read_json
        return read(
            [store.path for store in stores],
            filesystem=stores[0].filesystem,
            file_extensions=None,
        )


class _Place(_View):
    """Where the file is: ``Path``, ``UPath`` (with what reaches it), ``str``."""

    def serves(self, wanted: Any) -> bool:
        if get_origin(wanted) is list:
            (wanted,) = get_args(wanted)
        return wanted in (str, Path) or _named(wanted, "upath", "UPath")

    def make(self, files: Sequence[Location], wanted: Any) -> Any:
        several = get_origin(wanted) is list
        kind = get_args(wanted)[0] if several else wanted
        places = [self._place(f, kind) for f in files]
        if several:
            return places
        if not places:
            raise SpecError(
                f"the argument takes one {kind.__name__}, but there is no partition and so no "
                f"file; annotate it with {kind.__name__} | None, which is None then, or with "
                f"list[{kind.__name__}], which is empty"
            )
        if len(places) > 1:
            raise SpecError(
                f"the argument takes one {kind.__name__}, but there are {len(places)} partitions; "
                f"annotate it with dict[str, {kind.__name__}] or list[{kind.__name__}]"
            )
        return places[0]

    @staticmethod
    def _place(file: Location, kind: Any) -> Any:
        store = store_at(file)
        if not is_folder(file):
            store.require_state()
        if kind is str:
            return file.uri
        if kind is not Path:
            return kind(file.uri, **file.options)
        if store.local_path is None:
            raise SpecError(
                f"{file.uri} is not a local path; annotate the argument with UPath or str, or with "
                "what you want to read it as"
            )
        return Path(store.local_path)


_VIEWS: tuple[_View, ...] = (
    _Rows(),
    _Stream(),
    _Pandas(),
    _Polars(),
    _PolarsLazy(),
    _Arrow(),
    _RayDataset(),
    _Place(),
)


def _row_type(wanted: Any) -> Any:
    return next(iter(get_args(wanted)), dict)


def _is_row_type(row_type: Any) -> bool:
    plain = row_type in (Any, dict) or get_origin(row_type) in (dict, collections.abc.Mapping)
    return plain or _is_subclass(row_type, BaseModel)


def _is_subclass(wanted: Any, of: type) -> bool:
    return isinstance(wanted, type) and issubclass(wanted, of)


def _named(wanted: Any, package: str, name: str) -> bool:
    return (
        isinstance(wanted, type)
        and wanted.__name__ == name
        and wanted.__module__.partition(".")[0] == package
    )
