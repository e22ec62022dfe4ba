"""What lies below a folder or prefix, with what tells one version of a file from another."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sheaf_dagster.errors import SourceError
from sheaf_dagster.storage.location import FileState, Location, modified_of, state_of

__all__ = ["FoundFile", "list_files"]


@dataclass(frozen=True)
class FoundFile:
    """A file of a listing.

    Attributes:
        name: Path below the listed folder, with ``/``.
        state: Size and version.
        modified: Seconds since the epoch; None where the store doesn't say.
    """

    name: str
    state: FileState
    modified: float | None


def list_files(folder: Location, depth: int) -> list[FoundFile]:
    """All files down to ``depth`` levels below a folder; none where there is no folder.

    Hidden ones, whose names begin with a dot, are left out, and so is what lies in hidden
    folders. Local files have their size and modification time for a version: an inode, which
    says more within one job, is another one on some network file systems after each mount.

    Raises:
        SourceError: The folder can't be listed, or its bucket doesn't exist.
    """
    if folder.is_local:
        try:
            return list(_walk(folder.uri, "", depth))
        except OSError as e:
            raise SourceError(f"{folder.uri} can't be listed: {e.strerror}; check it") from e
    fs, path = folder.fs, folder.path

    def look() -> list[dict[str, Any]]:
        fs.invalidate_cache(path)
        if depth == 1:
            return list(fs.ls(path, detail=True))
        return list(fs.find(path, detail=True).values())

    try:
        infos = folder.remote("list", look)
    except FileNotFoundError as e:
        if "bucket does not exist" in str(e):  # S3's words for NoSuchBucket
            raise SourceError(f"{folder.uri}: there is no such bucket; check the name") from None
        return []
    except Exception as e:
        raise folder.error(SourceError, f"{folder.uri} can't be listed", e) from folder.cause(e)
    root = path.strip("/") + "/"
    found = []
    for info in infos:
        path = str(info["name"]).lstrip("/")
        if not path.startswith(root) or path.endswith("/") or info.get("type") == "directory":
            continue  # an empty object whose name ends in a slash stands for a folder
        name = path.removeprefix(root)
        parts = name.split("/")
        if len(parts) <= depth and not any(part.startswith(".") for part in parts):
            found.append(FoundFile(name, state_of(info), _seconds(modified_of(info))))
    return found


def _walk(folder: str, prefix: str, depth: int) -> Iterator[FoundFile]:
    try:
        entries = os.scandir(folder)
    except FileNotFoundError:
        return
    with entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                if depth > 1:
                    yield from _walk(entry.path, f"{prefix}{entry.name}/", depth - 1)
                continue
            try:
                st = entry.stat()
            except FileNotFoundError:  # renamed or deleted while we look
                continue
            state = FileState(st.st_size, str(st.st_mtime_ns))
            yield FoundFile(prefix + entry.name, state, st.st_mtime)


def _seconds(value: Any) -> float | None:
    if isinstance(value, datetime):
        return value.timestamp()
    if isinstance(value, (int, float)):
        return float(value)
    try:
        return datetime.fromisoformat(str(value).replace("Z", "+00:00")).timestamp()
    except ValueError:
        return None
