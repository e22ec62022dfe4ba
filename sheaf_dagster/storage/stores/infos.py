"""What fsspec's file systems say of a file, each in words of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from sheaf_dagster.storage.stores.base import FileState, FoundFile

__all__ = ["files_of", "state_of"]


def state_of(info: dict[str, Any]) -> FileState:
    """The state of a file that an fsspec file system describes."""
    version = next(
        (str(info[k]) for k in ("ETag", "etag", "VersionId", "md5Hash") if info.get(k)), ""
    )
    return FileState(int(info.get("size") or 0), (version or str(_modified(info))).strip('"'))


def files_of(infos: Iterable[dict[str, Any]], folder: str, depth: int) -> Iterator[FoundFile]:
    """The files of a listing, down to ``depth`` levels below a folder, but hidden ones."""
    root = folder.strip("/") + "/"
    for info in infos:
        path = str(info["name"]).lstrip("/")
        if not path.startswith(root) or path.endswith("/") or info.get("type") == "directory":
            continue  # an empty object whose name ends in a slash stands for a folder
        name = path.removeprefix(root)
        parts = name.split("/")
        if len(parts) <= depth and not any(part.startswith(".") for part in parts):
            yield FoundFile(name, state_of(info), _seconds(_modified(info)))


def _modified(info: dict[str, Any]) -> Any:
    """When a file was last modified, in its file system's own type; empty where it doesn't say."""
    known = ("LastModified", "last_modified", "mtime", "updated", "created")
    return next((info[k] for k in known if info.get(k)), "")


def _seconds(value: Any) -> float | None:
    if isinstance(value, datetime):
        return value.timestamp()
    if isinstance(value, (int, float)):
        return float(value)
    try:
        return datetime.fromisoformat(str(value)).timestamp()
    except ValueError:
        return None
