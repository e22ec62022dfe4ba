"""What a store says when it fails, in one line and without secrets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sheaf_dagster.errors import SheafError
from sheaf_dagster.storage.expiry import EXPIRED, expired
from sheaf_dagster.storage.options import scrub
from sheaf_dagster.storage.retry import is_transient

__all__ = ["as_error", "describe", "showable"]


def as_error(
    cls: type[SheafError],
    what: str,
    cause: BaseException,
    options: Mapping[str, Any],
    cure: str = "",
) -> SheafError:
    """An error in one line, with no secret of the options in it; retryable where its cause is."""
    if expired(cause):
        error = cls(f"{what}: {EXPIRED}")
        error.retryable = True
        return error
    text = scrub(f"{what}: {describe(cause)}", options)
    error = cls(f"{text}; {cure}" if cure else text)
    if is_transient(cause) or getattr(cause, "retryable", False):
        error.retryable = True
    return error


def showable(error: BaseException, options: Mapping[str, Any]) -> BaseException | None:
    """The error as a cause to chain, or None where its text would tell a secret."""
    seen: BaseException | None = error
    while seen is not None:
        if scrub(str(seen), options) != str(seen):
            return None
        seen = seen.__cause__ or seen.__context__
    return error


def describe(error: BaseException) -> str:
    """An exception in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.rstrip(".")
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
