"""A small object of S3 that is changed by compare-and-swap.

S3 compares ETags itself (``If-None-Match``, ``If-Match``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from sheaf_dagster.storage.marker import Marker, Stored
from sheaf_dagster.storage.retry import code_of, status_of
from sheaf_dagster.storage.stores.remote import PlainMarker, RemoteStore

__all__ = ["S3Marker"]

_NOBODYS = '"00000000000000000000000000000000"'
"""An ETag that no object has."""

_REFUSED = (404, 412)
_UNKNOWN_CONDITION = frozenset(
    {"InvalidArgument", "InvalidHeader", "InvalidRequest", "NotImplemented", "501"}
)
"""What a store answers that has no such condition."""


class S3Marker(Marker):
    """An object of S3, whose conditions the store itself checks.

    What says that it is S3 may know less than AWS does. So each bucket is asked once, on the first
    object that we write there, whether it refuses what it has to refuse.
    """

    _heeds: dict[tuple[str, str], bool] = {}  # noqa: RUF012  (of all markers of this process)

    def __init__(self, store: RemoteStore) -> None:
        self._at = store
        self._bucket, self._key, _ = store.fs.split_path(store.path)
        self._plain = PlainMarker(store)

    @property
    def exact(self) -> bool:
        """Whether this bucket heeds conditions; True as long as nothing speaks against it."""
        return self._heeds.get(self._store, True)

    @property
    def _store(self) -> tuple[str, str]:
        return str(self._at.fs._fs_token), self._bucket

    def read(self) -> Stored | None:
        """What is there, if anything."""
        if not self.exact:
            return self._plain.read()
        try:
            # With a read the ETag comes along; between two requests the object may change.
            return self._at.request("read", self._fetch)
        except FileNotFoundError:
            return None

    def create(self, content: bytes) -> str | None:
        """Makes the object where there is none."""
        if self._store not in self._heeds:
            if self.read() is not None:
                return None
            return self._write_and_ask(content, self._create_plainly, IfNoneMatch="*")
        if not self.exact:
            return self._create_plainly(content)
        return self._put(content, IfNoneMatch="*")

    def replace(self, content: bytes, version: str, timeout: float | None = None) -> str | None:
        """Writes over a version."""
        if self._store not in self._heeds:
            if not self._is_there(version):
                return None
            return self._write_and_ask(content, self._write_plainly, IfMatch=version)
        if not self.exact:
            return self._plain.replace(content, version)
        return self._put(content, timeout, IfMatch=version)

    def remove(self, version: str) -> None:
        """Deletes this version.

        A store may heed conditions of writes and not those of deletes. So it is looked at before
        each try; who holds the object has written it just before, and then nobody takes it.
        """
        if not self.exact:
            self._plain.remove(version)
            return
        again = False

        def remove() -> None:
            nonlocal again
            if again and not self._is_there(version):
                return
            again = True
            try:
                self._call("delete_object", IfMatch=version)
            except Exception as e:
                if code_of(e) in _UNKNOWN_CONDITION:
                    if self._is_there(version):
                        self._call("delete_object")
                elif status_of(e) not in _REFUSED:
                    raise

        self._at.request("delete", remove)

    def _is_there(self, version: str) -> bool:
        found = self.read()
        return found is not None and found.version == version

    def _write_and_ask(
        self, content: bytes, plainly: Callable[[bytes], str | None], **condition: str
    ) -> str | None:
        """Writes, as the first one to this bucket, and asks it on what it wrote.

        Args:
            content: What to write.
            plainly: Writes it where the store has no such conditions.
            condition: Under which to write.
        """
        try:
            version = self._put(content, None, **condition)
            if version is None:
                return None
            self._heeds[self._store] = (
                self._put(content, IfNoneMatch="*") is None
                and self._put(content, IfMatch=_NOBODYS) is None
            )
        except Exception as e:
            if code_of(e) not in _UNKNOWN_CONDITION:
                raise
            self._heeds[self._store] = False
        return version if self.exact else plainly(content)

    def _create_plainly(self, content: bytes) -> str | None:
        found = self._plain.read()
        if found is not None and found.content != content:
            return None
        return self._write_plainly(content)

    def _write_plainly(self, content: bytes) -> str:
        self._at.write(content)
        return hashlib.sha256(content).hexdigest()

    def _fetch(self) -> Stored:
        import fsspec.asyn

        async def fetch() -> Stored:
            answer = await self._at.fs._call_s3("get_object", Bucket=self._bucket, Key=self._key)
            try:
                return Stored(await answer["Body"].read(), answer["ETag"])
            finally:
                answer["Body"].close()

        found: Stored = fsspec.asyn.sync(self._at.fs.loop, fetch)
        return found

    def _put(self, content: bytes, timeout: float | None = None, **condition: str) -> str | None:
        def put() -> Any:
            return self._call("put_object", timeout, Body=content, **condition)

        try:
            answer = put() if timeout else self._at.request("lock", put)
        except Exception as e:
            if status_of(e) in _REFUSED and code_of(e) != "NoSuchBucket":
                return None
            raise
        return str(answer["ETag"])

    def _call(self, method: str, timeout: float | None = None, **arguments: Any) -> Any:
        import fsspec.asyn

        where = {"Bucket": self._bucket, "Key": self._key}
        return fsspec.asyn.sync(
            self._at.fs.loop, self._at.fs._call_s3, method, timeout=timeout, **where, **arguments
        )
