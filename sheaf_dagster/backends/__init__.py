"""What runs a batch: the backend interface, the registry, and the built-in backends."""

from sheaf_dagster.backends.base import ModelBackend
from sheaf_dagster.backends.columns import ResponseColumns, request_column
from sheaf_dagster.backends.common.device import from_device
from sheaf_dagster.backends.common.digest import weights_digest
from sheaf_dagster.backends.registry import (
    known_backends,
    register_backend,
    resolve_backend,
)

__all__ = [
    "ModelBackend",
    "ResponseColumns",
    "from_device",
    "known_backends",
    "register_backend",
    "request_column",
    "resolve_backend",
    "weights_digest",
]
