"""Values that a configuration names and doesn't hold: environment variables."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any

from sheaf_dagster.errors import SpecError

__all__ = ["from_environment"]


def from_environment(what: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with the values of the environment variables that they name.

    A variable is named as ``{"env": NAME}``. So does Dagster write an ``EnvVar`` inside a free
    dictionary; it fills in variables for fields that it knows alone.

    Raises:
        SpecError: A variable is not set here; the message names it and where it is used.
    """
    return {name: _filled(f"{what}.{name}", value) for name, value in options.items()}


def _filled(what: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        variable = value.get("env")
        if len(value) == 1 and isinstance(variable, str):
            if variable not in os.environ:
                raise SpecError(
                    f"{what}: environment variable {variable} is not set on {socket.gethostname()}; "
                    "set it there (for the workers of a cluster: by a runtime_env)"
                )
            return os.environ[variable]
        return from_environment(what, value)
    if isinstance(value, (list, tuple)):
        return [_filled(f"{what}[{i}]", item) for i, item in enumerate(value)]
    return value
