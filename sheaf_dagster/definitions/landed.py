"""What lies in a watched folder: files, and folders whose files are one source."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from sheaf_dagster.definitions.file_template import FileTemplate
from sheaf_dagster.storage import FileState, FoundFile, Store, store_at
from sheaf_dagster.storage.location import Location
from sheaf_dagster.storage.source_files import FOLDER_DEPTH, is_in_source

__all__ = ["Landed", "files_for", "landed"]

_WRITING = "_temporary"
"""Folder in which Spark and Hadoop write files that they move when all are whole."""


@dataclass(frozen=True)
class Landed:
    """A file, or a folder that is one source.

    Attributes:
        file: What it is called, how large it is and which version; of a folder that of all its files
            together.
        is_folder: Whether it is one.
        unfinished: Whether something in it is being written by its name.
    """

    file: FoundFile
    is_folder: bool = False
    unfinished: bool = False


def files_for(template: FileTemplate, folder: Location) -> list[FoundFile]:
    """All files that may be what a template names, or lie in a folder that it names."""
    store = store_at(folder)
    if not template.may_be_folder:
        return store.list_files(template.depth)
    if template.name is None:
        return store.list_files(template.depth + FOLDER_DEPTH)
    # One place is looked at, not all that lies beside it.
    inside: Store = store_at(folder.child(template.name))
    return [
        *store.list_files(1),
        *(
            FoundFile(f"{template.name}/{file.name}", file.state, file.modified)
            for file in inside.list_files(FOLDER_DEPTH)
        ),
    ]


def landed(files: Iterable[FoundFile], template: FileTemplate) -> Iterator[Landed]:
    """The files of a listing, and each folder that a template names in place of what is in it."""
    folders: dict[str, list[FoundFile]] = {}
    for file in files:
        steps = file.name.split("/")
        folder = "/".join(steps[: template.depth])
        if len(steps) <= template.depth:
            yield Landed(file)
        elif template.pattern.fullmatch(folder):
            name = "/".join(steps[template.depth :])
            folders.setdefault(folder, []).append(FoundFile(name, file.state, file.modified))
    for folder, inside in folders.items():
        counted = [file for file in inside if is_in_source(file.name)]
        unfinished = any(_is_unfinished(file.name, template) for file in inside)
        if counted or unfinished:
            yield Landed(_together(folder, counted), True, unfinished)


def _is_unfinished(name: str, template: FileTemplate) -> bool:
    return _WRITING in name.split("/") or name.lower().endswith(template.unfinished)


def _together(folder: str, files: Sequence[FoundFile]) -> FoundFile:
    said = sorted(f"{f.name}\0{f.state.size}\0{f.state.version}" for f in files)
    version = hashlib.blake2b("\n".join(said).encode("utf-8", "surrogateescape"), digest_size=16)
    times = [f.modified for f in files if f.modified is not None]
    return FoundFile(
        folder,
        FileState(sum(f.state.size for f in files), version.hexdigest()),
        max(times, default=None),
    )
