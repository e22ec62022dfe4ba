"""What a fitted scikit-learn estimator knows of its columns, beside their names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sheaf_dagster.backends.tables.dates import date_kind

__all__ = ["FittedColumn", "column_names", "fitted_columns"]


@dataclass(frozen=True)
class FittedColumn:
    """A column as it was when the estimator was fitted.

    Attributes:
        objects: It held texts or mixed values, in an array of Python objects. In such a column a
            missing value looks like any other cell, in one of numbers it is a float.
        none: Missing values were ``None`` in it, and not ``NaN``.
        dates: It held dates of this kind (one of ``DATE_KINDS``).
    """

    objects: bool = False
    none: bool = False
    dates: str | None = None


def column_names(estimator: Any) -> list[str] | None:
    """Names of the columns that an estimator was fitted with; None where it knows none."""
    names = getattr(estimator, "feature_names_in_", None)
    return None if names is None else [str(name) for name in names]


def fitted_columns(estimator: Any) -> dict[int, FittedColumn]:
    """What the parts of an estimator that see its input say of the columns, by position.

    Encoders keep the categories that they met, imputers the type and what they replace. A column
    that no such part sees is left out.
    """
    width = getattr(estimator, "n_features_in_", None)
    if not isinstance(width, int):  # it is none of scikit-learn's kind
        return {}
    objects: set[int] = set()
    none: set[int] = set()
    nan: set[int] = set()
    dates: dict[int, str] = {}
    for part, columns in _readers(estimator, list(range(width)), column_names(estimator)):
        if hasattr(part, "vocabulary_"):
            objects.update(columns)
        if hasattr(part, "statistics_"):
            if part.statistics_.dtype.kind == "O":
                objects.update(columns)
            if part.missing_values is None:
                none.update(columns)
        mask = getattr(part, "is_categorical_", None)
        if mask is not None:
            objects.update(c for c, is_one in zip(columns, mask, strict=True) if is_one)
        categories = getattr(part, "categories_", None)
        for column, known in zip(columns, () if categories is None else categories, strict=False):
            if kind := date_kind(known):
                dates[column] = kind
            elif known.dtype.kind in "OU":
                objects.add(column)
            if known.dtype.kind == "O":
                none.update({column} if any(v is None for v in known) else ())
                nan.update({column} if any(v != v for v in known) else ())
    return {
        c: FittedColumn(c in objects, c in none - nan, dates.get(c))
        for c in sorted(objects | none | dates.keys())
    }


def _readers(
    part: Any, columns: Sequence[int], names: Sequence[str] | None
) -> Iterator[tuple[Any, Sequence[int]]]:
    """The parts that see the input's own columns, with the positions of these."""
    if hasattr(part, "transformers_"):  # of a ColumnTransformer
        for _, inner, chosen in part.transformers_:
            yield from _readers(inner, _positions(chosen, columns, names), names)
    elif hasattr(part, "steps"):  # of a Pipeline
        for _, step in part.steps:
            if step in (None, "passthrough"):
                continue
            yield from _readers(step, columns, names)
            if not hasattr(step, "statistics_") or len(step.statistics_) != len(columns):
                return  # what comes after it sees other columns; an imputer keeps them
    elif hasattr(part, "transformer_list"):  # of a FeatureUnion
        for _, inner in part.transformer_list:
            yield from _readers(inner, columns, names)
    else:
        yield part, columns
        for wrapped in ("best_estimator_", "estimator_", "regressor_"):
            if hasattr(part, wrapped):
                yield from _readers(getattr(part, wrapped), columns, names)
        for one in list(getattr(part, "estimators_", ()))[:1]:
            yield from _readers(one, columns, names)


def _positions(chosen: Any, columns: Sequence[int], names: Sequence[str] | None) -> Sequence[int]:
    """Columns that a ColumnTransformer chose: by name, position, mask, or a slice of the former."""
    import numpy as np

    places: dict[Any, Any] = {name: i for i, name in enumerate(names or ())}
    if isinstance(chosen, slice):
        first, last = (places.get(end, end) for end in (chosen.start, chosen.stop))
        if isinstance(chosen.stop, str):
            last = places[chosen.stop] + 1  # by name the last one counts
        return columns[slice(first, last, chosen.step)]
    several = [chosen] if isinstance(chosen, (str, int)) else list(chosen)
    if several and isinstance(several[0], (bool, np.bool_)):
        return [column for column, is_one in zip(columns, several, strict=True) if is_one]
    return [columns[places.get(one, one)] for one in several]
