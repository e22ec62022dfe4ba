"""Protocols of remote file systems, and the options that belong to each."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from sheaf_dagster.errors import SpecError

__all__ = [
    "AZURE_PROTOCOLS",
    "GCS_PROTOCOLS",
    "S3_PROTOCOLS",
    "WEB_PROTOCOLS",
    "options_for",
    "package_for",
    "version_in",
]

S3_PROTOCOLS = frozenset({"s3", "s3a"})
GCS_PROTOCOLS = frozenset({"gs", "gcs"})
AZURE_PROTOCOLS = frozenset({"az", "abfs", "abfss"})
WEB_PROTOCOLS = frozenset({"http", "https"})

_FAMILIES = (S3_PROTOCOLS, GCS_PROTOCOLS, AZURE_PROTOCOLS, WEB_PROTOCOLS)
"""Protocols that one file system speaks."""

_ANY_STORES = frozenset(
    {
        "asynchronous",
        "block_size",
        "cache_options",
        "cache_type",
        "listings_expiry_time",
        "loop",
        "max_paths",
        "skip_instance_cache",
        "timeout",
        "use_listings_cache",
    }
)
"""Options that say nothing of whom they are for."""

_WEB_ALONE = frozenset({"headers", "cookies"})
"""Options of the web that no store takes."""

_S3_CONFIG: dict[str, Any] = {
    # Five tries a request, with waits that grow; what then still fails is tried again from the
    # start a few times (storage/retry.py).
    "retries": {"mode": "standard", "total_max_attempts": 5},
    "connect_timeout": 10,
    # Between two pieces of a body, not for the whole of it.
    "read_timeout": 30,
    "max_pool_connections": 32,
}


def options_for(protocol: str, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Those of a job's options that belong to a protocol, with our defaults where they say nothing.

    A job has one set of options and may touch several protocols: its source, its sink, the URIs
    in its rows. What was made for one of them must not reach another, which would refuse it, or
    be told a secret that isn't its own. Options under a protocol's name are for that protocol::

        {"s3": {"key": …, "secret": …}, "https": {"headers": …}}

    Others are for the web (``http``, ``https``) where its file system knows each of them, else
    for the store; those that any file system takes are for both.

    For S3 the defaults are retries and timeouts of botocore, under ``config_kwargs``, and no
    cache of listings, since other processes write while we look.

    Raises:
        SpecError: It can't be told for which protocol an option is.
    """
    flat = dict(options or {})
    groups = {name: flat.pop(name) for name in list(flat) if _is_group(name, flat[name])}
    given = _of_no_name(protocol, flat)
    for name, group in groups.items():
        if _family(name) == _family(protocol):
            given |= group
    if protocol not in S3_PROTOCOLS:
        return given
    config = {**_S3_CONFIG, **(given.get("config_kwargs") or {})}
    return {"use_listings_cache": False, **given, "config_kwargs": config}


def _is_group(name: str, value: Any) -> bool:
    from fsspec.registry import known_implementations

    return (
        isinstance(value, Mapping)
        and set(value) != {"env"}
        and (name in known_implementations or name in S3_PROTOCOLS)
    )


def _family(protocol: str) -> str:
    same = next((f for f in _FAMILIES if protocol in f), {protocol})
    return min(same)


def _of_no_name(protocol: str, options: dict[str, Any]) -> dict[str, Any]:
    neutral = {name: value for name, value in options.items() if name in _ANY_STORES}
    own = {name: value for name, value in options.items() if name not in neutral}
    known = {name for name, value in own.items() if _is_of_the_web(name, value)}
    if own and known >= own.keys():
        return options if protocol in WEB_PROTOCOLS else neutral
    if protocol in WEB_PROTOCOLS:
        if mixed := known & _WEB_ALONE:
            raise SpecError(
                f"storage_options: {', '.join(sorted(mixed))} is for {protocol}://, and "
                f"{', '.join(sorted(own.keys() - known))} is not; put each under the name of its "
                f'protocol: {{"{protocol}": {{…}}, "s3": {{…}}}}'
            )
        return neutral
    return options


def _is_of_the_web(name: str, value: Any) -> bool:
    """Whether fsspec's HTTP file system takes an option: itself, its session or its requests."""
    try:
        import aiohttp
        from fsspec.implementations.http import HTTPFileSystem
    except ImportError:
        return name in _WEB_ALONE
    if name == "client_kwargs":
        session = inspect.signature(aiohttp.ClientSession.__init__).parameters
        return isinstance(value, Mapping) and set(value) <= session.keys()
    takers = (HTTPFileSystem.__init__, aiohttp.ClientSession._request)
    return any(name in inspect.signature(taker).parameters for taker in takers)


def version_in(uri: str) -> str | None:
    """The version of an S3 object that a URI names (``?versionId=…``), if any."""
    protocol = uri.partition("://")[0]
    return (uri.partition("?versionId=")[2] or None) if protocol in S3_PROTOCOLS else None


def package_for(protocol: str, error: ImportError) -> str:
    """What to install for a protocol whose implementation could not be imported."""
    if protocol in S3_PROTOCOLS:
        return "pip install 'sheaf_dagster[aws]'"
    from fsspec.registry import known_implementations

    module = str(known_implementations.get(protocol, {}).get("class", "")).partition(".")[0]
    if module and module != "fsspec":
        return f"pip install {module}"
    missing = getattr(error, "name", None)
    return f"pip install {missing}" if missing else str(error)
