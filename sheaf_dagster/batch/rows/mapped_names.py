"""Whether what ``columns`` and ``fields`` name are fields of a contract."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from pydantic import AliasChoices, AliasPath, BaseModel

from sheaf_dagster.batch.rows.inside import core_schema_of
from sheaf_dagster.batch.spec import BatchOptions
from sheaf_dagster.contracts import schema_of
from sheaf_dagster.errors import SpecError

__all__ = ["check_mapped_names"]


def check_mapped_names(options: BatchOptions, request: type[BaseModel]) -> None:
    """Refuses fields that no row of a contract has: their values would be ignored.

    Args:
        options: With ``columns`` and ``fields``. What ``keep`` names may have any name.
        request: What rows are.

    Raises:
        SpecError: The contract has no such field.
    """
    known = _fields_of(request)
    if known is None:
        return
    for option, names in (("columns", options.columns or ()), ("fields", options.fields or ())):
        if unknown := sorted({*names}.difference(known, options.keep)):
            close = difflib.get_close_matches(unknown[0], known, n=1)
            meant = f"; did you mean {close[0]!r}?" if close else "."
            raise SpecError(
                f"{option}: {request.__name__} has no field {unknown[0]!r}{meant} "
                f"Its fields: {', '.join(known)}"
            )


def _fields_of(request: type[BaseModel]) -> Iterable[str] | None:
    """The names that a row may use; None where the contract alone knows."""
    schema: Any = core_schema_of(request)
    while isinstance(schema, dict) and schema["type"] == "function-after":
        schema = schema["schema"]
    if not isinstance(schema, dict) or schema["type"] != "model" or schema.get("root_model"):
        return None  # a validator of its own may read any name
    if request.model_config.get("extra", "ignore") == "allow":
        return None
    aliases = [field.validation_alias for field in request.model_fields.values()]
    if any(isinstance(alias, (AliasChoices, AliasPath)) for alias in aliases):
        return None
    try:
        named = schema_of(request).get("properties", {})
    except Exception:  # a type of the user's own that has no schema
        named = {}
    return dict.fromkeys([*request.model_fields, *named])
