"""Where a browser can look at a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import dagster as dg

__all__ = ["file_metadata"]


def file_metadata(uri: str, options: Mapping[str, Any]) -> dg.MetadataValue:
    """A link to the file, where its store has a page for it; else the path, to be copied.

    Args:
        uri: The file.
        options: Arguments of its file system: a store at an endpoint of its own is not Amazon's.
    """
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme in ("http", "https"):
        return dg.MetadataValue.url(uri)
    own_endpoint = options.get("endpoint_url") or (options.get("client_kwargs") or {}).get(
        "endpoint_url"
    )
    if scheme == "s3" and not own_endpoint:
        return dg.MetadataValue.url(
            f"https://console.aws.amazon.com/s3/object/{bucket}?prefix={quote(key)}"
        )
    if scheme in ("gs", "gcs") and not own_endpoint:
        return dg.MetadataValue.url(
            f"https://console.cloud.google.com/storage/browser/_details/{bucket}/{quote(key)}"
        )
    return dg.MetadataValue.path(uri)
