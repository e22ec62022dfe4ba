"""Folders and files of this machine, which other processes change meanwhile."""

from __future__ import annotations

import io
import os
import shutil
import stat
from contextlib import suppress

__all__ = ["make_folder", "read_at", "remove_folder", "sync_folder"]


def make_folder(path: str) -> None:
    """Makes a folder and those above it, where others may make and remove it meanwhile.

    Raises:
        OSError: It can't be made; a file may have its name.
    """
    while True:
        try:
            os.makedirs(path, exist_ok=True)
            return
        except FileExistsError as e:
            # A file has its name; or it is a folder, which somebody took away meanwhile and may
            # have made anew. Looked at once, so that the two aren't mixed up.
            with suppress(FileNotFoundError):
                if not stat.S_ISDIR(os.lstat(e.filename).st_mode):
                    raise


def remove_folder(path: str, keep: tuple[str, ...] = ()) -> None:
    """Removes a folder and all below it; no error where there is nothing.

    Args:
        path: The folder.
        keep: What stays: starts of names in it; those of folders end in a slash.
    """
    if not keep:
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(FileNotFoundError), os.scandir(path) as entries:
        for entry in entries:
            folder = entry.is_dir(follow_symlinks=False)
            if (entry.name + "/" if folder else entry.name).startswith(keep):
                continue
            if folder:
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                with suppress(OSError):
                    os.unlink(entry.path)


def read_at(f: io.FileIO, start: int, length: int) -> bytes:
    """So many bytes of a file from a place on; fewer only where it ends before."""
    f.seek(start)
    data = f.read(length)
    if data is None or len(data) == length:
        return data or b""
    pieces = [data]
    got = len(data)
    while got < length:
        piece = f.read(length - got)
        if not piece:
            break
        pieces.append(piece)
        got += len(piece)
    return b"".join(pieces)


def sync_folder(path: str) -> None:
    """Sees that the names in a folder outlast a power loss, where its file system can."""
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
