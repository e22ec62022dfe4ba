"""The columns of a file of rows, as Dagster shows them."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import dagster as dg

from sheaf_dagster.batch.rows.columns import columns_of
from sheaf_dagster.batch.spec import BatchSpec
from sheaf_dagster.contracts import contract_for
from sheaf_dagster.errors import SheafError
from sheaf_dagster.storage import Location
from sheaf_dagster.storage.formats import ERROR_COLUMNS, is_table, read_schema

__all__ = ["answers_schema", "table_schema"]


def table_schema(schema: Any, leave_out: frozenset[str] = frozenset()) -> dg.TableSchema:
    """An Arrow schema, with Arrow's own words for types."""
    columns = [
        dg.TableColumn(
            field.name,
            str(field.type),
            constraints=dg.TableColumnConstraints(nullable=field.nullable),
        )
        for field in schema
        if field.name not in leave_out
    ]
    return dg.TableSchema(columns)


def answers_schema(model_type: str, spec: BatchSpec) -> dg.TableSchema | None:
    """The columns of a job's answers; None where they can't be told.

    Those of a table are what it holds. Those of lines are what their contract says, and ``keep``.
    """
    if is_table(spec.sink):
        # What its contract says is less: how wide vectors are, and of which types kept fields.
        with suppress(SheafError):
            return table_schema(read_schema(Location.of(spec.sink, spec.storage_options)))
    try:
        schema = columns_of(contract_for(model_type).response, spec.float_type)
    except Exception:  # the file is committed: that a contract has no such schema is no failure
        return None
    # Rows of JSON have no columns for failed rows.
    own = table_schema(schema, frozenset() if is_table(spec.sink) else frozenset(ERROR_COLUMNS))
    kept = [dg.TableColumn(name, "any") for name in spec.keep]
    return dg.TableSchema([*own.columns, *kept])
