"""Rows of features as a table, and a table's cells as JSON values."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

from sheaf_dagster.contracts import FeaturesRequest

__all__ = ["grouped", "named_columns", "plain"]

KeyT = TypeVar("KeyT", bound=Hashable)


def named_columns(
    requests: Sequence[FeaturesRequest], columns: Sequence[str] | None
) -> tuple[list[str] | None, list[list[Any]]]:
    """The rows' values in one order of columns.

    Args:
        requests: Rows that are all objects or all lists, with the same columns.
        columns: Names and order that the model was fitted with, where it knows them.

    Returns:
        The column names (None where neither the model nor the rows have any) and one list of
        values a row.

    Raises:
        ValueError: A row lacks a column, or has another number of values; it is named.
    """
    first = requests[0].features
    names = list(columns) if columns is not None else None
    if names is None and isinstance(first, dict):
        names = sorted(first)
    table = []
    for request in requests:
        given = request.features
        if isinstance(given, dict):
            if names is None:
                raise ValueError(f"request {request.request_id}: 'features' must be a list")
            missing = [n for n in names if n not in given]
            if missing:
                raise ValueError(
                    f"request {request.request_id}: 'features' lacks {', '.join(missing[:5])}"
                    f"{' …' if len(missing) > 5 else ''}; the model needs {len(names)} columns"
                )
            table.append([given[n] for n in names])
            continue
        if names is not None and len(given) != len(names):
            raise ValueError(
                f"request {request.request_id}: 'features' has {len(given)} values, "
                f"but the model has {len(names)} columns"
            )
        table.append(list(given))
    return names, table


def grouped(requests: Sequence[Any], key: Callable[[Any], KeyT]) -> dict[KeyT, list[int]]:
    """Positions of the requests that have the same key, in order."""
    groups: dict[KeyT, list[int]] = defaultdict(list)
    for i, request in enumerate(requests):
        groups[key(request)].append(i)
    return groups


def plain(value: Any) -> Any:
    """A numpy, pandas or Python value as JSON has it; missing values become None."""
    import numpy as np

    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, dict):
        return {str(plain(k)): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if type(value).__name__ in ("NaTType", "NAType"):
        return None
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return value
