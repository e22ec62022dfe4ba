"""Files that rows or specs name by URI, read where the backend runs."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import fsspec
from fsspec.utils import get_protocol

from sheaf_dagster.backends.common.digest import weights_digest
from sheaf_dagster.environment import from_environment
from sheaf_dagster.errors import SpecError
from sheaf_dagster.protocols import options_for

__all__ = ["file_identity", "local_file", "read_uri", "resolve_options"]

_TRIES = 3
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotImplementedError, ValueError)
"""Errors that another try doesn't mend."""


def resolve_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Storage options with their ``{"env": "NAME"}`` values read from the environment.

    So that a spec, which is shown and logged, names its credentials and doesn't hold them; it is
    also what a ``dagster.EnvVar`` inside a spec becomes.

    Raises:
        SpecError: The variable isn't set on this machine.
    """
    return from_environment("backend_kwargs: storage_options", options or {})


def read_uri(uri: str, options: Mapping[str, Any]) -> bytes:
    """All bytes of a file, local or remote; what may pass is tried three times.

    Args:
        uri: A path or any fsspec URI.
        options: Arguments of the file systems of remote ones; each gets those of its protocol.

    Raises:
        OSError: It can't be read; the message names it.
    """
    for attempt in range(_TRIES):
        try:
            fs, path = _file_system(uri, options)
            return bytes(fs.cat_file(path))
        except Exception as e:
            if attempt == _TRIES - 1 or isinstance(e, _FINAL):
                kind = type(e) if isinstance(e, _FINAL) and isinstance(e, OSError) else OSError
                raise kind(f"{uri} can't be read: {type(e).__name__}: {e}") from e
            time.sleep(0.3 * 3**attempt)
    raise AssertionError("unreachable")


@contextmanager
def local_file(uri: str, options: Mapping[str, Any]) -> Iterator[str]:
    """A local path of a file; a remote one is fetched for the time of the context.

    Raises:
        SpecError: There is no such file.
    """
    if not _is_remote(uri):
        path = _local_path(uri)
        if not os.path.isfile(path):
            raise SpecError(f"model file {path} does not exist on the worker; give a path or URI")
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="sheaf-model-") as folder:
        path = os.path.join(folder, os.path.basename(uri))
        fs, remote = _file_system(uri, options)
        try:
            fs.get_file(remote, path)
        except FileNotFoundError as e:
            raise SpecError(f"model file {uri} does not exist") from e
        yield path


def file_identity(uri: str, options: Mapping[str, Any] | None) -> str | None:
    """Identity of a model file: a digest of a local one, what its store says of a remote one.

    None for a local one that isn't on this machine.

    Raises:
        SpecError: There is no such remote file.
    """
    if not _is_remote(uri):
        path = _local_path(uri)
        # One that isn't here would be taken for the name of a hub model, and asked for there.
        return weights_digest(path) if os.path.exists(path) else None
    fs, path = _file_system(uri, resolve_options(options))
    try:
        info = fs.info(path)
    except FileNotFoundError as e:
        raise SpecError(f"model file {uri} does not exist") from e
    mark = next((info[k] for k in ("ETag", "etag", "md5Hash", "content_md5") if info.get(k)), None)
    return f"{uri}#{mark or (info.get('size'), str(info.get('mtime') or info.get('created')))}"


def _file_system(uri: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """The file system of a URI with the options that are its protocol's, and the path in it."""
    own = options_for(get_protocol(uri), options) if _is_remote(uri) else {}
    fs, path = fsspec.url_to_fs(uri, **own)
    return fs, str(path)


def _is_remote(uri: str) -> bool:
    return "://" in uri and not uri.startswith("file://")


def _local_path(uri: str) -> str:
    return os.path.expanduser(uri.removeprefix("file://"))
