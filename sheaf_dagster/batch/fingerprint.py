"""What decides a job's output: its fingerprint, and the form in which its answers are written."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel

from sheaf_dagster.batch.layout import layout_of
from sheaf_dagster.batch.rows.columns import check_float_type, columns_of
from sheaf_dagster.batch.spec import BatchSpec
from sheaf_dagster.batch.worker.loading import ModelContext
from sheaf_dagster.contracts import contract_for, schema_of
from sheaf_dagster.storage import KeptTypes
from sheaf_dagster.storage.compression import codec_of
from sheaf_dagster.storage.formats import Format, Table, format_of
from sheaf_dagster.version import __version__

__all__ = ["contract_digest", "job_fingerprint", "sink_format"]

_LAYOUT_VERSION = 2
"""Raised when the same job would be cut or written differently than by an older version."""


def job_fingerprint(
    context: ModelContext,
    spec: BatchSpec,
    source_digest: str,
    kept: str | None = None,
    types: KeptTypes = MappingProxyType({}),
) -> str:
    """Hash of all that decides a job's output (hex, 64 digits).

    Args:
        context: The model.
        spec: The file.
        source_digest: Of its source.
        kept: The ``Keeper``'s identity, where answers of an earlier output are kept.
        types: Of the fields that are kept, as the source has them.
    """
    format = sink_format(context, spec, types)
    identity = {
        "layout": _LAYOUT_VERSION,
        "source": source_digest,
        "model": context.version,
        "contract": contract_digest(context.rows.request, context.rows.response),
        "batch_size": spec.batch_size,
        "bucket_by": spec.bucket_by,
        "on_error": spec.on_error,
        "row_limit": spec.row_limit,
        "codec": format.kind.name if isinstance(format, Table) else codec_of(spec.sink),
        "version": __version__,
    }
    if spec.batch_budget is not None:
        identity |= {"batch_budget": spec.batch_budget, "batch_size": None}
    if (window := layout_of(spec, context.backend_cls).window) is not None:
        identity["window"] = window
    if spec.columns or spec.fields:
        identity["fields"] = [spec.columns, spec.fields]
    if isinstance(format, Table):
        identity["columns"] = format.columns.hex()
    if spec.on_error == "record":  # what decides which rows become error rows, and their text
        identity |= {"batch_timeout": spec.batch_timeout, "redact": context.rows.redact}
    if spec.on_invalid == "record":  # likewise
        identity |= {"on_invalid": "record", "strict": spec.strict, "redact": context.rows.redact}
    if spec.keep:
        identity["keep"] = spec.keep
    if kept is not None:
        identity["kept"] = kept
    text = json.dumps(identity, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@lru_cache(maxsize=64)
def contract_digest(request: type[BaseModel], response: type[BaseModel]) -> str:
    """Hash of what the rows and the answers of a contract may say (hex, 64 digits)."""
    forms = [_form_of(request), _form_of(response)]
    text = json.dumps(forms, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _form_of(model: type[BaseModel]) -> dict[str, Any]:
    try:
        return schema_of(model)
    except Exception:  # a type of the user's own that has no schema
        return {name: str(field.annotation) for name, field in model.model_fields.items()}


def sink_format(
    context: ModelContext, spec: BatchSpec, types: KeptTypes = MappingProxyType({})
) -> Format:
    """How a job's answers are written: as lines, or in the columns of their contract.

    Args:
        context: The model.
        spec: The file.
        types: Of the fields that are kept, as the source has them.

    Raises:
        SpecError: The contract's answers can't be columns, or lines have no type of numbers.
    """
    format = format_of(spec.sink)
    check_float_type(spec, spec.sink)
    if not isinstance(format, Table):
        return format
    columns = columns_of(
        contract_for(context.spec.model_type).response, spec.float_type, tuple(spec.keep)
    )
    for name, type in types.items():
        i = columns.get_field_index(name)
        columns = columns.set(i, columns.field(i).with_type(type))
    return replace(format, columns=columns.serialize().to_pybytes())
