"""The columns of a file of rows, as Dagster shows them."""

from __future__ import annotations

from typing import Any

import dagster as dg

from sheaf_dagster.batch.rows.columns import columns_of
from sheaf_dagster.batch.spec import BatchSpec
from sheaf_dagster.contracts import contract_for
from sheaf_dagster.storage.formats import ERROR_COLUMNS, is_parquet

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
    """The columns of a job's answers, as their contract has them; None where it can't be told."""
    try:
        schema = columns_of(contract_for(model_type).response, spec.float_type)
    except Exception:  # the file is committed: that a contract has no such schema is no failure
        return None
    # Rows of JSON have no columns for failed rows.
    return table_schema(schema, frozenset() if is_parquet(spec.sink) else frozenset(ERROR_COLUMNS))
