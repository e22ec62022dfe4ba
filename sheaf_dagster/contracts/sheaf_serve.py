"""The contracts of sheaf-serve's model types, where that package is installed."""

from __future__ import annotations

import importlib
import logging
from functools import lru_cache
from importlib import metadata
from typing import Any, get_args

from pydantic import BaseModel

from sheaf_dagster.errors import MissingDependencyError

__all__ = ["SHEAF_SERVE", "broken_install", "has_sheaf_serve", "sheaf_serve_types", "warn_once"]

log = logging.getLogger(__name__)

SHEAF_SERVE = "sheaf-serve"
"""Its distribution; the module is called ``sheaf``."""


def has_sheaf_serve() -> bool:
    """Whether sheaf-serve is installed; imports nothing."""
    try:
        metadata.version(SHEAF_SERVE)
    except metadata.PackageNotFoundError:
        return False
    return True


@lru_cache(maxsize=1)
def sheaf_serve_types() -> dict[str, tuple[type[BaseModel], type[BaseModel]]]:
    """Request and response by model type, of every member of sheaf-serve's unions.

    Empty where it isn't installed. The first call imports its contracts: 0.1 s, and neither ray
    nor torch.

    Raises:
        MissingDependencyError: It is installed and can't be imported.
    """
    if not has_sheaf_serve():
        return {}
    try:
        union: Any = importlib.import_module("sheaf.api.union")
        requests, responses = _by_model_type(union.AnyRequest), _by_model_type(union.AnyResponse)
    except Exception as e:  # whatever a package of another version does at its import
        raise broken_install(e) from e
    return {name: (requests[name], responses[name]) for name in requests if name in responses}


def broken_install(error: Exception) -> MissingDependencyError:
    """What to raise where sheaf-serve is installed and its import fails."""
    return MissingDependencyError(
        f"{SHEAF_SERVE} is installed but can't be imported ({type(error).__name__}: {error}); see "
        f"what it lacks with pip check, or install it again: pip install --force-reinstall "
        f"{SHEAF_SERVE}"
    )


@lru_cache(maxsize=32)
def warn_once(text: str) -> None:
    """Logs a warning, once in the life of this process."""
    log.warning(text)


def _by_model_type(union: Any) -> dict[str, type[BaseModel]]:
    members = get_args(get_args(union)[0])
    return {str(cls.model_fields["model_type"].default): cls for cls in members}
