"""Multipart uploads of S3 that were begun and never completed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

from sheaf_dagster.errors import SheafError
from sheaf_dagster.storage.failures import describe
from sheaf_dagster.storage.stores.remote import RemoteStore

__all__ = ["abort_uploads"]

log = logging.getLogger(__name__)


def abort_uploads(store: RemoteStore, prove: Callable[[], None], *, exact: bool = False) -> None:
    """Aborts multipart uploads that were begun and never completed, where S3 lets us look.

    They are invisible but cost storage.

    Args:
        store: The object, or the folder below which to look.
        prove: Raises where another job may have begun them; asked before they are aborted.
        exact: Only this object.
    """
    bucket, key, _ = store.fs.split_path(store.path)
    prefix = key if exact else key.rstrip("/") + "/"
    try:
        for page in _pages(store, bucket, prefix):
            found = [u for u in page if not exact or u["Key"] == key]
            if found:
                prove()
            for upload in found:
                store.request("abort", lambda u=upload: _abort(store.fs, bucket, u))  # type: ignore[misc]
    except (OSError, SheafError) as e:
        # Without the permission to list them a lifecycle rule of the bucket does it; and whoever
        # holds the sink now does it, too.
        log.debug("%s: unfinished uploads left: %s", store.uri, describe(e))


def _pages(store: RemoteStore, bucket: str, prefix: str) -> Iterator[list[dict[str, Any]]]:
    where = {"Bucket": bucket, "Prefix": prefix}
    while True:
        call = partial(store.fs.call_s3, "list_multipart_uploads", **where)
        page = store.request("list_multipart_uploads", call)
        uploads = page.get("Uploads") or []
        yield uploads
        if not uploads or not page.get("IsTruncated"):
            return
        # Not by NextKeyMarker, which Swift writes twice.
        last = uploads[-1]
        where |= {"KeyMarker": last["Key"], "UploadIdMarker": last["UploadId"]}


def _abort(fs: Any, bucket: str, upload: dict[str, Any]) -> None:
    with suppress(FileNotFoundError):
        fs.call_s3(
            "abort_multipart_upload", Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"]
        )
