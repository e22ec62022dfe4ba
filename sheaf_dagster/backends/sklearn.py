"""Fitted scikit-learn estimators, saved with skops or joblib."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

from sheaf_dagster.backends.base import ModelBackend
from sheaf_dagster.backends.common.files import file_identity, local_file, resolve_options
from sheaf_dagster.backends.common.libraries import require
from sheaf_dagster.backends.tables.fitted import FittedColumn, column_names, fitted_columns
from sheaf_dagster.backends.tables.records import (
    grouped,
    per_row,
    plain,
    values_of,
    with_columns_named,
)
from sheaf_dagster.backends.tables.table import array_of, frame_of
from sheaf_dagster.contracts import FEATURES, FeaturesRequest, FeaturesResponse
from sheaf_dagster.errors import SpecError

__all__ = ["SklearnBackend"]

_NAME = "sklearn"
_PATH = "model.skops"


class SklearnBackend(ModelBackend):
    """Predicts with an estimator, or a pipeline of them, in one call for each batch.

    Rows are matched to the columns that the estimator was fitted with: by name if it knows the names
    (it was fitted to a data frame), or else by position. ``null`` becomes the missing value that the
    estimator was fitted with: ``NaN``, or ``None`` if its encoders know ``None``. Class probabilities
    come from ``predict_proba``. Quantiles come from estimators whose ``predict`` takes ``quantiles``
    (quantile forests) or ``return_std`` (Gaussian processes, Bayesian regression; normal quantiles).

    A date in a row is ISO 8601 text. The estimator gets dates in the columns that it was fitted to
    with dates: those for which an encoder has kept dates, and those in ``datetime_columns``. Dates with
    a time zone are converted to UTC.

    Args:
        path: The saved estimator, a path or an fsspec URI: a ``.skops`` file, or a joblib or pickle
            file.
        trusted: Types that a skops file may load besides those that skops trusts.
        allow_pickle: Load a joblib or pickle file. This **runs any code in the file**: use it only
            for files that you wrote yourself.
        storage_options: Arguments of the file system of a remote path.
        datetime_columns: Columns that were ``datetime64`` when the estimator was fitted, if the
            estimator itself doesn't record that (a function of yours or a scaler reads them).

    Raises:
        SpecError: At load: a column doesn't exist, the file holds types that aren't trusted, or the
            file is a pickle and pickles aren't allowed.
        MissingDependencyError: At load: scikit-learn or skops is not installed.
    """

    model_type = FEATURES

    @classmethod
    def identify(
        cls, *, path: str = _PATH, storage_options: dict[str, Any] | None = None, **_: Any
    ) -> str | None:
        return file_identity(path, storage_options)

    def __init__(
        self,
        path: str = _PATH,
        trusted: list[str] | None = None,
        allow_pickle: bool = False,
        storage_options: dict[str, Any] | None = None,
        datetime_columns: list[str] | None = None,
    ) -> None:
        self._datetime_columns = list(datetime_columns or ())
        self._path = path
        self._trusted = list(trusted or ())
        self._allow_pickle = allow_pickle
        self._storage_options = storage_options
        self._model: Any = None
        self._names: list[str] | None = None
        self._fitted: dict[int, FittedColumn] = {}

    def load(self) -> None:
        require(_NAME, "sklearn", "sklearn")
        with local_file(self._path, resolve_options(self._storage_options)) as path:
            self._model = self._load_skops(path) if _is_zip(path) else self._load_pickle(path)
        if not hasattr(self._model, "predict"):
            raise SpecError(
                f"{self._path} holds a {type(self._model).__name__}, which has no predict()"
            )
        self._names = column_names(self._model)
        self._fitted = fitted_columns(self._model)
        for name in self._datetime_columns:
            if name not in (self._names or ()):
                known = ", ".join(self._names or ()) or "no names of columns"
                raise SpecError(
                    f"datetime_columns: {self._path} has no column {name!r}; it knows {known}"
                )
            position = (self._names or []).index(name)
            self._fitted[position] = FittedColumn(dates="datetime64")

    def _load_skops(self, path: str) -> Any:
        (io,) = require(_NAME, "sklearn", "skops.io")
        unknown = sorted(set(io.get_untrusted_types(file=path)) - set(self._trusted))
        if unknown:
            raise SpecError(
                f"{self._path} holds types that are not trusted: {', '.join(unknown)}; if you "
                f"know them, say so: backend_kwargs={{'trusted': {unknown!r}}}"
            )
        return io.load(path, trusted=self._trusted)

    def _load_pickle(self, path: str) -> Any:
        if not self._allow_pickle:
            raise SpecError(
                f"{self._path} is not a skops file, and a joblib or pickle file can run any code: "
                "save the estimator with skops.io.dump, or set allow_pickle=True for a file "
                "that you wrote yourself"
            )
        (joblib,) = require(_NAME, "sklearn", "joblib")
        return joblib.load(path)

    def batch_predict(self, requests: Sequence[FeaturesRequest]) -> list[FeaturesResponse]:  # type: ignore[override]
        answers: dict[int, FeaturesResponse] = {}
        for members in grouped(requests, _kind).values():
            rows = [requests[i] for i in members]
            with with_columns_named(rows, self._names):
                answers.update(zip(members, self._answer(rows), strict=True))
        return [answers[i] for i in range(len(requests))]

    def _answer(self, rows: list[FeaturesRequest]) -> list[FeaturesResponse]:
        table = self._table(rows)
        mode, levels = rows[0].output_mode, rows[0].quantile_levels
        probabilities: list[Any] = [None] * len(rows)
        quantiles: list[Any] = [None] * len(rows)
        if mode == "quantiles":
            found = self._quantiles(table, levels)
            quantiles = [
                {str(q): plain(row[..., k]) for k, q in enumerate(levels)} for row in found
            ]
        if mode == "probabilities":
            found = self._need("predict_proba")(table)
            probabilities = _probabilities(self._model.classes_, found, len(rows))
        return [
            FeaturesResponse(
                request_id=row.request_id,
                model_name=row.model_name,
                prediction=value,
                probabilities=p,
                quantiles=q,
            )
            for row, value, p, q in zip(
                rows,
                per_row(self._model.predict(table), len(rows)),
                probabilities,
                quantiles,
                strict=True,
            )
        ]

    def _table(self, rows: list[FeaturesRequest]) -> Any:
        if self._names is not None:
            names = self._names
            return frame_of([values_of(row, names) for row in rows], names, self._fitted)
        for row in rows:
            if isinstance(row.features, dict):
                raise ValueError(
                    f"request {row.request_id}: the estimator was fitted without column names; "
                    "give 'features' as a list"
                )
        return array_of([list(row.features) for row in rows], self._fitted)

    def _quantiles(self, table: Any, levels: list[float]) -> Any:
        """Of each row, by output where there are several, and by level (the last axis)."""
        import numpy as np

        last = self._model[-1] if hasattr(self._model, "steps") else self._model
        takes = inspect.signature(last.predict).parameters
        if "quantiles" in takes:
            found = np.asarray(self._model.predict(table, quantiles=levels))
            return found if found.shape[-1:] == (len(levels),) else found[..., None]
        if "return_std" in takes:
            mean, std = map(np.asarray, self._model.predict(table, return_std=True))
            z = np.array([NormalDist().inv_cdf(q) for q in levels])
            # Of several outputs some estimators give one deviation a row.
            spread = std if std.ndim == mean.ndim else std.reshape(len(std), *[1] * (mean.ndim - 1))
            return mean[..., None] + spread[..., None] * z
        raise ValueError(
            f"{type(last).__name__} has no quantiles; use a quantile forest or an estimator "
            "whose predict() takes return_std, or output_mode='predictions'"
        )

    def _need(self, method: str) -> Any:
        found = getattr(self._model, method, None)
        if found is None:
            raise ValueError(f"{type(self._model).__name__} has no {method}()")
        return found


def _kind(request: FeaturesRequest) -> tuple[Any, ...]:
    """Rows that one call can answer."""
    levels = tuple(request.quantile_levels) if request.output_mode == "quantiles" else ()
    given = request.features
    return request.output_mode, levels, isinstance(given, dict) or len(given)


def _probabilities(classes: Any, found: Any, n: int) -> list[Any]:
    """Of each row the classes with their probabilities; a list of such where outputs are several.

    Estimators for several outputs keep a list of classes and return a list of arrays. A chain of
    classifiers returns one array: of each output the probability of its second class.
    """
    if not isinstance(classes, list):
        keys = [str(plain(c)) for c in classes]
        return [dict(zip(keys, row, strict=True)) for row in per_row(found, n)]
    if not isinstance(found, list):
        found = [[[1 - p, p] for p in output] for output in found.T]
    outputs = [_probabilities(c, f, n) for c, f in zip(classes, found, strict=True)]
    return [list(row) for row in zip(*outputs, strict=True)]


def _is_zip(path: str) -> bool:
    with open(path, "rb") as f:
        return f.read(4) == b"PK\x03\x04"
