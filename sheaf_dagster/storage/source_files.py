"""The files that a source names: one, or all that lie in a folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sheaf_dagster.errors import SourceError, SourceNotFoundError
from sheaf_dagster.storage.compression import codec_of
from sheaf_dagster.storage.formats import is_table
from sheaf_dagster.storage.formats.kinds import KINDS
from sheaf_dagster.storage.location import Location
from sheaf_dagster.storage.stores import store_at

__all__ = [
    "FOLDER_DEPTH",
    "NamedFile",
    "files_of",
    "is_folder",
    "is_in_source",
    "is_lines",
]

FOLDER_DEPTH = 16
"""Levels below a folder that are looked at."""

_TABLES = ", ".join(kind.suffixes[0] for kind in KINDS)
_LINES = (".jsonl", ".ndjson", ".json")


@dataclass(frozen=True)
class NamedFile:
    """A file of a source.

    Attributes:
        location: Where it is.
        folders: What the folders say that hold it: ``day=5/`` says that ``day`` is 5.
    """

    location: Location
    folders: Mapping[str, Any] = field(default_factory=dict)


def files_of(sources: Sequence[Location | NamedFile]) -> list[NamedFile]:
    """All files of some sources: of a folder those with rows in it, by name.

    Whoever has them hands them on, for each call lists the folders again.

    A folder holds tables, or files of lines; hidden files and those that begin with an underscore
    (``_SUCCESS``) are left out.

    Raises:
        SourceNotFoundError: A folder holds no file of rows.
        SourceError: A folder holds both tables and lines, or can't be listed.
    """
    return [f for s in sources for f in ([s] if isinstance(s, NamedFile) else _files_of(s))]


def _files_of(source: Location) -> list[NamedFile]:
    named = _named_as_folder(source)
    found = [] if named is False else [f.name for f in store_at(source).list_files(FOLDER_DEPTH)]
    if not (named or found):
        return [NamedFile(source)]
    seen = [*filter(is_in_source, found)]
    tables = [n for n in seen if is_table(n)]
    lines = [n for n in seen if is_lines(n)]
    if tables and lines:
        raise SourceError(
            f"{source.uri} holds tables ({tables[0]}) and lines of JSON ({lines[0]}); name the "
            "files, or a folder with files of one kind"
        )
    if not tables and not lines:
        raise SourceNotFoundError(
            f"{source.uri} is a folder, and no {_TABLES} or .jsonl file is in it; write them first "
            "(materialise the upstream asset), or correct the source location"
        )
    names = sorted(tables or lines, key=lambda name: name.split("/"))
    said = _folders_say(names)
    return [NamedFile(source.child(n), held) for n, held in zip(names, said, strict=True)]


def is_folder(source: Location) -> bool:
    """Whether a source is a folder of files; the store is asked where its name doesn't say."""
    named = _named_as_folder(source)
    return bool(store_at(source).list_files(FOLDER_DEPTH)) if named is None else named


def _named_as_folder(source: Location) -> bool | None:
    """What a source's name or its store says; None where it is a folder if files lie in it."""
    if source.uri.endswith("/"):
        return True
    store = store_at(source)
    if store.local_path is not None:
        return os.path.isdir(store.local_path)
    if is_lines(source.uri):
        return False
    try:
        if store.state() is not None:
            return False
    except SourceError:
        pass  # it is said to be a folder, or can't be asked
    return None


def is_in_source(name: str) -> bool:
    """Whether a file that lies in a folder holds rows of it, by its path below that."""
    shown = not any(step.startswith(("_", ".")) for step in name.split("/"))
    return shown and (is_table(name) or is_lines(name))


def is_lines(name: str) -> bool:
    """Whether a file's suffix says that it holds lines of JSON."""
    plain = name.rpartition(".")[0] if codec_of(name) else name
    return plain.lower().endswith(_LINES)


def _folders_say(names: Sequence[str]) -> list[dict[str, Any]]:
    """What the folders of each name say, such as ``day=5``: whole numbers where all of them are."""
    steps = [step for name in names for step in name.split("/")[:-1]]
    keys = dict.fromkeys(step.partition("=")[0] for step in steps if "=" in step)
    if not keys:
        return [{} for _ in names]
    import pyarrow as pa
    import pyarrow.dataset as ds

    scheme = ds.partitioning(pa.schema([(key, pa.string()) for key in keys]), flavor="hive")
    said: list[dict[str, Any]] = [dict(ds.get_partition_keys(scheme.parse(n))) for n in names]
    for key in keys:
        values = [held[key] for held in said if held.get(key) is not None]
        if all(map(_is_whole, values)):
            for held in said:
                if held.get(key) is not None:
                    held[key] = int(held[key])
    return [{k: v for k, v in held.items() if v is not None} for held in said]


def _is_whole(text: str) -> bool:
    """Whether a text is a number as it would be written: ``007`` is a name."""
    try:
        return str(int(text)) == text
    except ValueError:
        return False
