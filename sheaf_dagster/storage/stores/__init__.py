"""What the stores can do, one module each: this machine, fsspec's file systems, S3, Google, Azure.

Nobody else asks what kind of store a location is in. A store's module is loaded when a location in
it is first used.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from typing import cast

from sheaf_dagster.protocols import AZURE_PROTOCOLS, GCS_PROTOCOLS, S3_PROTOCOLS
from sheaf_dagster.storage.location import Location
from sheaf_dagster.storage.stores.base import FileState, FoundFile, Join, Lock, Store, StoredPart

__all__ = ["FileState", "FoundFile", "Join", "Lock", "Store", "StoredPart", "store_at"]

_STORES = {
    "file": "local.LocalStore",
    **dict.fromkeys(S3_PROTOCOLS, "s3.S3Store"),
    **dict.fromkeys(GCS_PROTOCOLS, "gcs.GcsStore"),
    **dict.fromkeys(AZURE_PROTOCOLS, "azure.AzureStore"),
}
_ANY_OTHER = "remote.RemoteStore"


def store_at(location: Location) -> Store:
    """The file or folder at a location."""
    return _store_of(location.protocol)(location)


@lru_cache
def _store_of(protocol: str) -> type[Store]:
    module, name = _STORES.get(protocol, _ANY_OTHER).split(".")
    return cast("type[Store]", getattr(import_module(f"{__name__}.{module}"), name))
