"""Errors of ``infer`` on their way to the process that had asked for it."""

from __future__ import annotations

import builtins
from dataclasses import dataclass
from typing import Any

from sheaf_dagster.batch.messages import ErrorMessage, RemoteTraceback
from sheaf_dagster.batch.worker.beside.link import pickled_within, unpickled
from sheaf_dagster.batch.worker.memory import bytes_of, is_out_of_memory

__all__ = ["ToldError", "as_error", "told_error"]

_PLAIN = (str, int, float, type(None))

_MOST_BYTES = 2**16
"""An error that takes more holds a batch, or the model."""


@dataclass(frozen=True)
class ToldError:
    """An error, as far as it can be sent."""

    itself: bytes | None
    """Pickled; None where that would not be the same, or would load what the process needn't have."""
    name: str
    text: str
    base: str
    """The built-in class that it is of."""
    attributes: dict[str, Any]
    """Those that are plain."""
    traceback: str


def told_error(error: Exception, *, redact: bool) -> ToldError:
    """An error as it is sent.

    Args:
        error: The error.
        redact: Leave out of the traceback what errors say, for they may quote rows.
    """
    # One of torch would have torch loaded there.
    too_much = is_out_of_memory(error)
    bases = (c.__name__ for c in type(error).__mro__ if c.__module__ == "builtins")
    return ToldError(
        itself=None if too_much else _pickled(error),
        name=type(error).__name__,
        text=_text_of(error),
        base="MemoryError" if too_much else next(bases),
        attributes={n: v for n, v in vars(error).items() if isinstance(v, _PLAIN)},
        traceback=ErrorMessage.of(error, redact=redact).traceback,
    )


def as_error(told: ToldError) -> Exception:
    """An error as it was told, with the traceback of where it was raised as its cause."""
    error = None
    if told.itself is not None:
        try:
            error = unpickled(told.itself)
        except Exception:  # of a module that is not here, say
            error = None
    if not isinstance(error, Exception):
        error = _like(told)
    error.__cause__ = RemoteTraceback(told.traceback)
    return error


def _like(told: ToldError) -> Exception:
    """An error of the same name, text and built-in class."""
    found = getattr(builtins, told.base, Exception)
    try:
        error = _class_like(told, found)(told.text)
    except TypeError:  # it takes more than a text
        error = _class_like(told, Exception)(told.text)
    vars(error).update(told.attributes)
    return error


def _class_like(told: ToldError, base: type[Exception]) -> type[Exception]:
    return type(told.name, (base,), {"__str__": lambda self: told.text})


def _pickled(error: Exception) -> bytes | None:
    """An error that comes out as it went in; None of another."""
    try:
        if bytes_of([error.args, vars(error)]) > _MOST_BYTES:
            return None
        data = pickled_within(error, _MOST_BYTES)
        again = None if data is None else unpickled(data)
        same = type(again).__name__ == type(error).__name__ and str(again) == str(error)
    except Exception:
        return None
    return data if same else None


def _text_of(error: Exception) -> str:
    try:
        return str(error)
    except Exception as e:
        return f"(its text can't be had: {type(e).__name__})"
