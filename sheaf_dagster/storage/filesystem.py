"""The fsspec file system that a URI and its options name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from sheaf_dagster.errors import MissingDependencyError, SourceError, SpecError
from sheaf_dagster.protocols import S3_PROTOCOLS, package_for
from sheaf_dagster.storage.failures import as_error, showable

__all__ = ["filesystem_of", "local_path", "protocol_of"]


def filesystem_of(uri: str, options: Mapping[str, Any]) -> Any:
    """One instance a process and set of options; making it asks the store nothing.

    Raises:
        SourceError: The protocol is unknown.
        SpecError: Its file system refuses the options.
        MissingDependencyError: The package that speaks the protocol is not installed.
    """
    import fsspec

    protocol = protocol_of(uri)
    options = dict(options)
    if config := options.get("config_kwargs"):
        # botocore writes into this dictionary: fsspec would no longer know the file system by
        # its options, and make another with connections of its own.
        options["config_kwargs"] = {**config, "retries": dict(config.get("retries") or {})}
    try:
        fs = fsspec.filesystem(protocol, **options)
    except ImportError as e:
        raise MissingDependencyError(
            f"{uri}: {protocol}:// needs a package: {package_for(protocol, e)}"
        ) from e
    except Exception as e:
        if "not known" in str(e):
            raise SourceError(f"{uri}: {e}; use a local path or an fsspec URI") from e
        what = f"{uri}: {protocol}:// can't be used"
        raise as_error(SpecError, what, e, options, "check storage_options") from showable(
            e, options
        )
    if protocol in S3_PROTOCOLS:
        fs.retries = 1  # botocore retries requests and we whole reads; a third layer multiplies
    return fs


def protocol_of(uri: str) -> str:
    """What stands before ``://``, or ``file``."""
    # fsspec would take what stands before a "::" in a path for a protocol.
    if "://" not in uri:
        return "file"
    from fsspec.utils import get_protocol

    return str(get_protocol(uri))


def local_path(uri: str) -> str:
    """The absolute path that a local path or ``file://`` URI names."""
    if uri.startswith(("file:", "local:")):  # a plain path needs no fsspec, which is slow to import
        from fsspec.implementations.local import LocalFileSystem

        uri = str(LocalFileSystem._strip_protocol(uri))
    return os.path.abspath(os.path.expanduser(uri))
