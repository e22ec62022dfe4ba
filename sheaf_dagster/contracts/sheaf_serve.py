"""The contracts of sheaf-serve's model types, where that package is installed."""

from __future__ import annotations

import importlib
from functools import lru_cache
from importlib import metadata
from typing import Any, get_args

from pydantic import BaseModel

from sheaf_dagster.errors import MissingDependencyError

__all__ = ["SHEAF_SERVE", "has_sheaf_serve", "sheaf_serve_types"]

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
    except ImportError as e:
        raise MissingDependencyError(
            f"sheaf-serve is installed but can't be imported ({e}); install it again with "
            "pip install 'sheaf_dagster[sheaf]'"
        ) from e
    requests, responses = _by_model_type(union.AnyRequest), _by_model_type(union.AnyResponse)
    return {name: (requests[name], responses[name]) for name in requests if name in responses}


def _by_model_type(union: Any) -> dict[str, type[BaseModel]]:
    members = get_args(get_args(union)[0])
    return {str(cls.model_fields["model_type"].default): cls for cls in members}
