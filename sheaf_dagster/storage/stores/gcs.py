"""Objects of Google Cloud Storage, whose locks are changed by compare-and-swap."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from sheaf_dagster.storage.marker import Marker, Stored
from sheaf_dagster.storage.stores.remote import RemoteStore

__all__ = ["GcsMarker", "GcsStore"]


class GcsStore(RemoteStore):
    """An object or prefix of Google Cloud Storage."""

    def marker(self) -> Marker:
        """This object, changed under the store's own conditions."""
        return GcsMarker(self)


class GcsMarker(Marker):
    """An object whose generation the store compares (``ifGenerationMatch``).

    gcsfs raises FileExistsError where the store refuses (status 412).
    """

    exact = True

    def __init__(self, store: RemoteStore) -> None:
        self._at = store
        self._bucket, self._key, _ = store.fs.split_path(store.path)

    def read(self) -> Stored | None:
        """What is there, if anything."""
        # With the bytes the generation comes along; between two requests the object may change.
        try:
            headers, content = self._call("GET", self._at.fs.url(self._at.path))
        except FileNotFoundError:
            return None
        return Stored(content, headers["X-Goog-Generation"])

    def create(self, content: bytes) -> str | None:
        """Makes the object where there is none."""
        return self.replace(content, "0")

    def replace(self, content: bytes, version: str, timeout: float | None = None) -> str | None:
        """Writes over a generation."""
        uploads = self._at.fs.base.replace("/storage/v1/", "/upload/storage/v1/")
        # In two pieces, as gcsfs itself does it: an emulator may compare only there.
        pieces = (json.dumps({"name": self._key}).encode(), content)
        body = b"".join(
            b"--cut\r\nContent-Type: application/json\r\n\r\n%s\r\n" % p for p in pieces
        )
        try:
            made = self._call(
                "POST",
                uploads + "b/{}/o",
                self._bucket,
                uploadType="multipart",
                ifGenerationMatch=version,
                headers={"Content-Type": "multipart/related; boundary=cut"},
                data=body + b"--cut--",
                json_out=True,
                timeout=timeout,
            )
        except FileExistsError:
            return None
        return str(made["generation"])

    def remove(self, version: str) -> None:
        """Deletes this generation."""
        with suppress(FileExistsError, FileNotFoundError):
            self._call("DELETE", "b/{}/o/{}", self._bucket, self._key, ifGenerationMatch=version)

    def _call(self, *what: str, timeout: float | None = None, **arguments: Any) -> Any:
        def call() -> Any:
            return self._at.fs.call(*what, timeout=timeout, **arguments)

        return call() if timeout else self._at.request(what[0], call)
