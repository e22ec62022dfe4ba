"""Objects of S3, by requests of its own."""

from __future__ import annotations

from collections.abc import Callable

from sheaf_dagster.storage.checksum import checksum_of
from sheaf_dagster.storage.location import Location
from sheaf_dagster.storage.marker import Marker
from sheaf_dagster.storage.stores.base import Join
from sheaf_dagster.storage.stores.remote import RemoteStore
from sheaf_dagster.storage.stores.s3_join import S3Join
from sheaf_dagster.storage.stores.s3_marker import S3Marker
from sheaf_dagster.storage.stores.s3_uploads import abort_uploads

__all__ = ["S3Store"]


class S3Store(RemoteStore):
    """An object or prefix of S3, or of what speaks its protocol."""

    def marker(self) -> Marker:
        """This object, changed under S3's own conditions."""
        return S3Marker(self)

    def join(self, unseen: Location) -> Join:
        """This object, put together inside the store."""
        return S3Join(self)

    def abort_uploads(self, prove: Callable[[], None]) -> None:
        """Aborts multipart uploads below this prefix that were begun and never completed."""
        abort_uploads(self, prove)

    def checksum(self, data: bytes) -> str:
        """MD5, which S3 itself tells of most objects."""
        return checksum_of([data], md5=True)

    def vouches_for(self, version: str, checksum: str) -> bool:
        """Whether the ETag is the checksum, which S3 computes from what it stores.

        Encrypted objects have another tag.
        """
        return version == checksum
