"""Rows of features as lists of values, and a model's answers as JSON values, one a row."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from sheaf_dagster.contracts import FeaturesRequest

__all__ = ["grouped", "per_row", "plain", "values_of", "with_columns_named"]

_LARGEST_FLOAT32 = 3.4028234663852886e38

KeyT = TypeVar("KeyT", bound=Hashable)


def values_of(
    request: FeaturesRequest, columns: Sequence[str], optional: frozenset[str] = frozenset()
) -> list[Any]:
    """A row's values in the order of a model's columns.

    Args:
        request: The row: an object, whose further fields are left out, or a list.
        columns: Names of the columns.
        optional: Those that an object may lack; they become None.

    Raises:
        ValueError: The row lacks a column, or has another number of values; it is named.
    """
    given = request.features
    if isinstance(given, dict):
        missing = [n for n in columns if n not in given and n not in optional]
        if missing:
            raise ValueError(
                f"request {request.request_id}: 'features' lacks {', '.join(missing[:5])}"
                f"{' …' if len(missing) > 5 else ''}; the model needs {len(columns)} columns"
            )
        return [given.get(n) for n in columns]
    if len(given) != len(columns):
        raise ValueError(
            f"request {request.request_id}: 'features' has {len(given)} values, "
            f"but the model has {len(columns)} columns"
        )
    return list(given)


@contextmanager
def with_columns_named(
    rows: Sequence[FeaturesRequest], columns: Sequence[str] | None = None
) -> Iterator[None]:
    """Adds to a library's error about a row the columns that it may mean.

    The library has numbers of columns at most, and those are often a step's inside the model.

    Args:
        rows: What the block predicts. Of several it is left open which is at fault: whoever
            called asks each alone.
        columns: Names of the model's columns; by default those of the row.
    """
    try:
        yield
    except (ValueError, TypeError, OverflowError) as e:
        if len(rows) > 1:
            raise
        given, text = rows[0].features, str(e)
        if isinstance(given, list):
            given = dict(zip(columns or map(str, range(len(given))), given, strict=False))
        found = [
            f"'features.{name}' ({_shown(v)})"
            for name, v in given.items()
            if (columns is None or name in columns) and _is_meant(v, text)
        ]
        if not found or "'features" in text:
            raise
        raise ValueError(f"request {rows[0].request_id}: {', '.join(found[:5])}: {text}") from e


def _shown(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 40 else f"{text[:37]}…"


def _is_meant(value: Any, text: str) -> bool:
    """Whether an error's text is probably about a value."""
    if isinstance(value, str):
        return repr(value) in text
    if isinstance(value, (list, dict)):
        return "sequence" in text or f"'{type(value).__name__}'" in text
    if value is None or value != value:
        return "nan" in text.lower() or "NoneType" in text
    if abs(value) > _LARGEST_FLOAT32 or math.isinf(value):
        return "too large" in text or "infinity" in text
    return f"[{value!r}]" in text


def grouped(requests: Sequence[Any], key: Callable[[Any], KeyT]) -> dict[KeyT, list[int]]:
    """Positions of the requests that have the same key, in order."""
    groups: dict[KeyT, list[int]] = defaultdict(list)
    for i, request in enumerate(requests):
        groups[key(request)].append(i)
    return groups


def per_row(found: Any, n: int) -> list[Any]:
    """What a model returned for ``n`` rows, as one JSON value each.

    A data frame, or a dictionary of columns, gives an object a row; a sparse matrix counts as the
    dense one.

    Raises:
        ValueError: It isn't one answer for each row, or has two columns of one name.
    """
    if hasattr(found, "toarray"):
        found = found.toarray()
    if hasattr(found, "to_dict") and hasattr(found, "columns"):
        twice = sorted({str(c) for c in found.columns[found.columns.duplicated()]})
        if twice:
            raise ValueError(f"the model's answer has several columns named {', '.join(twice)}")
        found = {name: column.tolist() for name, column in found.items()}
    if isinstance(found, dict):
        found = [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]
    if isinstance(found, (str, bytes)) or not hasattr(found, "__len__"):
        raise ValueError(f"the model gave a {type(found).__name__}; it must give one answer a row")
    if len(found) != n:
        raise ValueError(
            f"the model gave {len(found)} answers for {n} rows; it must give one for each"
        )
    return [plain(value) for value in found]


def plain(value: Any) -> Any:
    """A numpy, pandas or Python value as JSON has it; missing values become None."""
    import numpy as np

    if isinstance(value, (np.ndarray, np.generic)):
        kind: Any = value.dtype
        if kind.kind in "mM" and np.datetime_data(kind)[0] == "ns":
            value = value.astype(f"{kind.kind}8[us]")  # Python has no finer dates
        return plain(value.tolist())
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
