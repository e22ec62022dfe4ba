"""Blobs of Azure, whose locks are changed by compare-and-swap."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from sheaf_dagster.errors import SpecError
from sheaf_dagster.storage.location import Location
from sheaf_dagster.storage.marker import Marker, Stored
from sheaf_dagster.storage.stores.remote import RemoteStore

__all__ = ["AzureMarker", "AzureStore"]


class AzureStore(RemoteStore):
    """A blob or prefix of an Azure storage account.

    Raises:
        SpecError: adlfs would read or write another blob than the one that is named.
    """

    def __init__(self, location: Location) -> None:
        super().__init__(location)
        if "?" in location.uri.partition("?versionid=")[0]:
            raise SpecError(
                f"{location.uri}: adlfs reads what follows a question mark as a query, and would "
                "use a blob with another name; rename it"
            )

    def marker(self) -> Marker:
        """This blob, changed under the store's own conditions."""
        return AzureMarker(self)


class AzureMarker(Marker):
    """A blob whose ETag the store compares (``If-None-Match``, ``If-Match``)."""

    exact = True

    def __init__(self, store: RemoteStore) -> None:
        self._at = store

    def read(self) -> Stored | None:
        """What is there, if anything."""
        from azure.core.exceptions import ResourceNotFoundError

        async def read(blob: Any) -> Stored:
            # With the bytes the ETag comes along; between two requests the blob may change.
            found = await blob.download_blob()
            return Stored(await found.readall(), found.properties.etag)

        try:
            found: Stored = self._call("read", read)
        except ResourceNotFoundError:
            return None
        return found

    def create(self, content: bytes) -> str | None:
        """Makes the blob where there is none."""
        return self._write(content, overwrite=False)

    def replace(self, content: bytes, version: str, timeout: float | None = None) -> str | None:
        """Writes over a version."""
        return self._write(content, timeout, overwrite=True, **_only(version))

    def remove(self, version: str) -> None:
        """Deletes this version."""
        from azure.core.exceptions import ResourceModifiedError, ResourceNotFoundError

        async def remove(blob: Any) -> None:
            try:
                await blob.delete_blob(**_only(version))
            except (ResourceModifiedError, ResourceNotFoundError):
                return

        self._call("delete", remove)

    def _write(self, content: bytes, timeout: float | None = None, **how: Any) -> str | None:
        from azure.core.exceptions import ResourceExistsError, ResourceModifiedError

        async def write(blob: Any) -> str | None:
            try:
                made = await blob.upload_blob(content, **how)
            except (ResourceExistsError, ResourceModifiedError):
                return None
            return str(made["etag"])

        version: str | None = self._call("lock", write, timeout)
        return version

    def _call(
        self,
        what: str,
        ask: Callable[[Any], Coroutine[Any, Any, Any]],
        timeout: float | None = None,
    ) -> Any:
        import fsspec.asyn

        fs = self._at.fs
        container, name, _ = fs.split_path(self._at.path)

        async def ask_blob() -> Any:
            async with fs.service_client.get_blob_client(container=container, blob=name) as blob:
                return await ask(blob)

        def call() -> Any:
            return fsspec.asyn.sync(fs.loop, ask_blob, timeout=timeout)

        return call() if timeout else self._at.request(what, call)


def _only(version: str) -> dict[str, Any]:
    """The condition that this version is there."""
    from azure.core import MatchConditions

    return {"etag": version, "match_condition": MatchConditions.IfNotModified}
