"""Arguments of sheaf-serve's backends: what their constructors declare, and what they'd overlook."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any, get_type_hints

from pydantic import ValidationError

from sheaf_dagster.errors import SpecError

__all__ = ["choices_of", "declared_types", "defaults", "made", "parsed"]

_DTYPES = ("bfloat16", "float16", "float32")
_CHOICES: dict[str, dict[str, tuple[str, ...]]] = {
    # Another dtype is read as the default one there.
    "chronos2": {"torch_dtype": _DTYPES},
    "flux": {"torch_dtype": _DTYPES},
    "sdxl": {"torch_dtype": _DTYPES},
}


def declared_types(theirs: type[Any]) -> dict[str, Any]:
    """Types of a class's arguments; of one that isn't sheaf-serve's own, none.

    A backend of another may convert what it is given.
    """
    if not theirs.__module__.startswith("sheaf."):
        return {}
    hints = get_type_hints(theirs.__init__)
    hints.pop("return", None)
    return hints


def defaults(theirs: type[Any]) -> dict[str, Any]:
    """Arguments that may be left out, with their values."""
    parameters = inspect.signature(theirs.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def made(theirs: type[Any], name: str, arguments: Mapping[str, Any]) -> Any:
    """A backend of a class.

    Args:
        theirs: The class.
        name: Our name of it, for messages.
        arguments: Of its constructor.

    Raises:
        SpecError: It can't be made of these.
    """
    for argument, known in choices_of(name).items():
        if argument in arguments and arguments[argument] not in known:
            raise SpecError(
                f"backend {name!r}: {argument} must be one of {', '.join(known)}, got "
                f"{arguments[argument]!r}"
            )
    try:
        return theirs(**arguments)
    except (TypeError, ValueError) as e:
        takes = ", ".join(p for p in inspect.signature(theirs.__init__).parameters if p != "self")
        raise SpecError(f"backend {name!r}: {e}; its arguments are {takes or 'none'}") from e


def choices_of(name: str) -> dict[str, tuple[str, ...]]:
    """Values of those arguments whose other values a backend would read as its default."""
    return _CHOICES.get(name.partition(":")[2], {})


def parsed(module: str, kind: str, given: Mapping[str, Any], argument: str) -> Any:
    """One of sheaf-serve's configurations.

    Args:
        module: Where its class is.
        kind: The class.
        given: Its fields.
        argument: The argument that holds them, for messages.

    Raises:
        SpecError: A field is wrong.
    """
    cls = getattr(importlib.import_module(module), kind)
    try:
        return cls.model_validate(given)
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        place = ".".join(map(str, (argument, *first["loc"])))
        raise SpecError(f"backend_kwargs.{place}: {first['msg']} (got {first['input']!r})") from e
