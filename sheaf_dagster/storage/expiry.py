"""Temporary credentials that have expired, which stores say in several ways and places."""

from __future__ import annotations

from typing import Any

__all__ = ["EXPIRED", "expired", "with_reason"]

EXPIRED = (
    "the credentials have expired (or this machine's clock is wrong); renew them, or take ones that "
    "renew themselves (an instance profile, a credential process), and run again: the job goes on "
    "where it stopped"
)

# Of S3 and of Azure.
_CODES = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "RequestExpired",
        "TokenRefreshRequired",
        "ExpiredAuthenticationToken",
        "UnauthorizedSSOTokenError",
        "SSOTokenLoadError",
    }
)
_TEXTS = (
    "token has expired",
    "token is expired",
    "token included in the request is expired",
    "signature not valid in the specified time frame",
    # Azure's sign-in, of a secret and of an assertion that are out of date.
    "aadsts7000222",
    "aadsts700024",
    # Google's sign-in: a grant or a session that is over, a token that nothing renews.
    "invalid_grant",
    "reauthentication is needed",
    "fields need to refresh the access token",
)
_REFUSED_TOKEN = ("invalid credentials", "invalid authentication credentials")
"""What Google's storage says, with a 401, to a token that was good before: not that it is over."""


def expired(error: BaseException) -> bool:
    """Whether a store refused a request because the credentials' time is over."""
    seen: BaseException | None = error
    while seen is not None:
        response = getattr(seen, "response", None)
        code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
        if _CODES & {code, getattr(seen, "error_code", None), type(seen).__name__}:
            return True
        said = str(seen).lower()
        known = _TEXTS + _REFUSED_TOKEN if str(getattr(seen, "code", "")) == "401" else _TEXTS
        if any(text in said for text in known):
            return True
        seen = seen.__cause__
    return False


def with_reason(error: BaseException, fs: Any, path: str) -> BaseException:
    """The error with S3's own reason, where it came without one.

    S3 answers HEAD without a body: expired credentials are a "Bad Request" there. A request that
    has a body says more, where it fails too.
    """
    response = getattr(error.__cause__, "response", None)
    bare = isinstance(response, dict) and response.get("Error", {}).get("Code") == "400"
    if not bare or not hasattr(fs, "call_s3"):
        return error
    bucket, _, key = path.partition("/")
    try:
        fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=key, MaxKeys=1)
    except Exception as e:
        return e
    return error
