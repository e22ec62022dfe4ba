"""What the stores can do: one module for this machine, one for fsspec's file systems, one for S3.

Nobody else asks what kind of store a location is in.
"""

from __future__ import annotations

from sheaf_dagster.protocols import S3_PROTOCOLS
from sheaf_dagster.storage.location import Location
from sheaf_dagster.storage.stores.base import FileState, FoundFile, Join, Lock, Store, StoredPart
from sheaf_dagster.storage.stores.local import LocalStore
from sheaf_dagster.storage.stores.remote import RemoteStore
from sheaf_dagster.storage.stores.s3 import S3Store

__all__ = ["FileState", "FoundFile", "Join", "Lock", "Store", "StoredPart", "store_at"]


def store_at(location: Location) -> Store:
    """The file or folder at a location."""
    protocol = location.protocol
    if protocol == "file":
        return LocalStore(location)
    return (S3Store if protocol in S3_PROTOCOLS else RemoteStore)(location)
