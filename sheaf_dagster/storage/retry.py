"""Trying again what a store failed to do for reasons that pass."""

from __future__ import annotations

import errno
import logging
import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["ShortReadError", "code_of", "is_transient", "retried", "status_of"]

log = logging.getLogger(__name__)

T = TypeVar("T")

ATTEMPTS = 5
FIRST_WAIT_SECONDS = 0.25
LONGEST_WAIT_SECONDS = 5.0

GIVE_UP_AFTER_SECONDS = 180.0
"""No further try begins later than this: a store that is down ends the job in minutes."""

_TRANSIENT_ERRNO = frozenset(
    {
        errno.EBUSY,  # s3fs for SlowDown and 503
        errno.EIO,
        errno.EAGAIN,
        errno.EPIPE,
        errno.ETIMEDOUT,
        errno.ECONNRESET,
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        getattr(errno, "EREMOTEIO", errno.EIO),  # s3fs for InternalError and 500
    }
)

# By name, since none of these libraries has to be installed.
_TRANSIENT_NAMES = frozenset(
    {
        "ClientPayloadError",
        "ClientConnectionError",
        "ConnectTimeoutError",
        "EndpointConnectionError",
        "HTTPClientError",
        "ResponseParserError",
        "ResponseStreamingError",
        "IncompleteRead",
        "IncompleteReadError",
        "ChecksumError",
        "ServiceRequestError",
        "ServiceResponseError",
    }
)
_TRANSIENT_CODES = frozenset(
    {
        "BadDigest",
        "ConditionalRequestConflict",
        "IncompleteBody",
        "InternalError",
        "OperationAborted",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
        "XAmzContentSHA256Mismatch",
    }
)


class ShortReadError(OSError):
    """Fewer bytes came than were asked for."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.EIO, message)


def is_transient(error: BaseException) -> bool:
    """Whether the same request may well succeed in a moment."""
    if code_of(error) in _TRANSIENT_CODES:
        return True
    if (status := status_of(error)) >= 400:
        return status == 429 or (status >= 500 and status != 501)
    if isinstance(error, (ConnectionError, TimeoutError)):
        return True
    if any(c.__name__ in _TRANSIENT_NAMES for c in type(error).__mro__):
        return True
    return isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNO


def status_of(error: BaseException) -> int:
    """The HTTP status behind an error of a store's client; 0 where there is none."""
    s3 = _response_of(error).get("ResponseMetadata", {}).get("HTTPStatusCode")
    azure, gcs = getattr(error, "status_code", None), getattr(error, "code", None)
    return next((status for status in (s3, azure, gcs) if isinstance(status, int)), 0)


def code_of(error: BaseException) -> str:
    """S3's own word for an error; empty where there is none."""
    return str(_response_of(error).get("Error", {}).get("Code", ""))


def _response_of(error: BaseException) -> dict[str, Any]:
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    return response if isinstance(response, dict) else {}


def retried(call: Callable[[], T], what: str) -> T:
    """The call's value; tries again, after growing waits, where it failed for a passing reason.

    Args:
        call: Must be safe to repeat after it failed half-way.
        what: Names it in the log.
    """
    began = time.monotonic()
    wait = FIRST_WAIT_SECONDS
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        except Exception as e:
            late = time.monotonic() - began > GIVE_UP_AFTER_SECONDS
            if attempt == ATTEMPTS or late or not is_transient(e):
                raise
            log.info("%s: %s; try %d of %d", what, type(e).__name__, attempt + 1, ATTEMPTS)
        # Workers that failed together should not come back together.
        time.sleep(wait * random.uniform(0.5, 1.0))  # noqa: S311
        wait = min(2 * wait, LONGEST_WAIT_SECONDS)
    raise AssertionError("unreachable")
