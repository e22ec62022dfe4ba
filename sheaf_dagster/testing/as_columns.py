"""Requests as a worker has them of a Parquet file, for backends that take columns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

__all__ = ["columns_of"]


def columns_of(requests: Sequence[Any]) -> Sequence[Any] | None:
    """The same requests in columns; None where a table can't hold them, or a worker would make each."""
    import pyarrow as pa

    from sheaf_dagster.batch.rows.in_columns import ColumnRows
    from sheaf_dagster.batch.rows.requests import RowContract
    from sheaf_dagster.storage import TableRows
    from sheaf_dagster.storage.formats import AS_THEY_ARE

    fields = [json.loads(request.model_dump_json(exclude_none=True)) for request in requests]
    try:
        (batch,) = pa.Table.from_pylist(fields).combine_chunks().to_batches()
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return None
    contract = RowContract("", type(requests[0]), table=True)
    block = contract.hold_columns(TableRows(batch, AS_THEY_ARE), 1, 0)
    if block is None:
        return None
    held = ColumnRows(block, 0, len(requests)).requests
    # A null that isn't the default is not in the table.
    same = [request.model_dump() for request in held] == [r.model_dump() for r in requests]
    return held if same else None
