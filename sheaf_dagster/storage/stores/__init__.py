"""What the stores can do, one module each: this machine, fsspec's file systems, S3, Google, Azure.

Nobody else asks what kind of store a location is in.
"""

from __future__ import annotations

from sheaf_dagster.protocols import AZURE_PROTOCOLS, GCS_PROTOCOLS, S3_PROTOCOLS
from sheaf_dagster.storage.location import Location
from sheaf_dagster.storage.stores.azure import AzureStore
from sheaf_dagster.storage.stores.base import FileState, FoundFile, Join, Lock, Store, StoredPart
from sheaf_dagster.storage.stores.gcs import GcsStore
from sheaf_dagster.storage.stores.local import LocalStore
from sheaf_dagster.storage.stores.remote import RemoteStore
from sheaf_dagster.storage.stores.s3 import S3Store

__all__ = ["FileState", "FoundFile", "Join", "Lock", "Store", "StoredPart", "store_at"]

_STORES: dict[str, type[Store]] = {
    "file": LocalStore,
    **dict.fromkeys(S3_PROTOCOLS, S3Store),
    **dict.fromkeys(GCS_PROTOCOLS, GcsStore),
    **dict.fromkeys(AZURE_PROTOCOLS, AzureStore),
}


def store_at(location: Location) -> Store:
    """The file or folder at a location."""
    return _STORES.get(location.protocol, RemoteStore)(location)
