"""Models that a team has logged or registered in MLflow, as python functions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from sheaf_dagster.backends.base import ModelBackend
from sheaf_dagster.backends.digest import weights_digest
from sheaf_dagster.backends.libraries import require
from sheaf_dagster.backends.records import grouped, named_columns, plain
from sheaf_dagster.contracts import FEATURES, FeaturesRequest, FeaturesResponse

__all__ = ["MlflowBackend"]

_NAME = "mlflow"
_MODEL_URI = "model"
_NUMBERS = {"double": "float64", "float": "float32", "long": "int64", "integer": "int32"}


class MlflowBackend(ModelBackend):
    """Predicts with a pyfunc model: the batch as a data frame, one prediction a row back.

    Columns follow the model's signature where it has one, types included; a value that can't be
    what the signature says is its row's error, and optional columns may be left out. A model
    that answers with a data frame gives an object a row.

    A pyfunc model is code: load those that you trust.

    Args:
        model_uri: ``models:/name/version``, ``models:/name@alias``, ``runs:/…``, or a path.
        tracking_uri: Where the runs are, if not where the environment says.
        registry_uri: Where the registered models are, if not there.
        params: Parameters of the model's ``predict``.

    Raises:
        MissingDependencyError: At load: mlflow or pandas is not installed.
    """

    model_type = FEATURES

    @classmethod
    def identify(
        cls,
        *,
        model_uri: str = _MODEL_URI,
        tracking_uri: str | None = None,
        registry_uri: str | None = None,
        **_: Any,
    ) -> str | None:
        if "://" not in model_uri and os.path.isdir(model_uri):
            return weights_digest(model_uri)
        mlflow, models = require(_NAME, "mlflow", "mlflow", "mlflow.models")
        _connect(mlflow, tracking_uri, registry_uri)
        # A logged model doesn't change: its id stands for its files.
        info = models.get_model_info(model_uri)
        return f"mlflow:{info.model_id or info.model_uuid}"

    def __init__(
        self,
        model_uri: str = _MODEL_URI,
        tracking_uri: str | None = None,
        registry_uri: str | None = None,
        params: dict[str, Any] | None = None,
    ) -> None:
        self._model_uri = model_uri
        self._tracking_uri = tracking_uri
        self._registry_uri = registry_uri
        self._params = params
        self._model: Any = None
        self._pandas: Any = None
        self._columns: list[str] | None = None
        self._optional: set[str] = set()
        self._types: dict[str, str] = {}

    def load(self) -> None:
        mlflow, pyfunc, self._pandas = require(_NAME, "mlflow", "mlflow", "mlflow.pyfunc", "pandas")
        _connect(mlflow, self._tracking_uri, self._registry_uri)
        self._model = pyfunc.load_model(self._model_uri)
        schema = self._model.metadata.get_input_schema()
        if schema is not None and schema.has_input_names():
            self._columns = schema.input_names()
            self._optional = set(schema.optional_input_names())
            self._types = {c.name: str(getattr(c.type, "name", "")) for c in schema.inputs}

    def batch_predict(self, requests: Sequence[FeaturesRequest]) -> list[FeaturesResponse]:  # type: ignore[override]
        answers: dict[int, FeaturesResponse] = {}
        for (_, columns), members in grouped(requests, self._shape).items():
            rows = [requests[i] for i in members]
            for i, row, value in zip(members, rows, self._run(rows, columns), strict=True):
                answers[i] = FeaturesResponse(
                    request_id=row.request_id, model_name=row.model_name, prediction=plain(value)
                )
        return [answers[i] for i in range(len(requests))]

    def _shape(self, request: FeaturesRequest) -> tuple[bool, tuple[str, ...] | None]:
        """Rows of one call: as objects or lists, with the same optional columns given.

        An integer column with a hole in it would become one of floats, which a signature refuses.
        """
        if request.output_mode != "predictions":
            raise ValueError(
                f"request {request.request_id}: an MLflow model gives what it gives; "
                "use output_mode='predictions'"
            )
        given = request.features
        if not isinstance(given, dict):
            return False, None
        columns = sorted(given) if self._columns is None else self._columns
        return True, tuple(
            c for c in columns if c not in self._optional or given.get(c) is not None
        )

    def _typed(self, column: Any) -> Any:
        """A column as the signature has it, where that loses nothing.

        JSON knows one kind of number and no dates; MLflow converts neither way by itself.
        """
        dtype = _NUMBERS.get(self._types.get(column.name, ""))
        if dtype is not None and column.dtype.kind in "if":
            cast = column.astype(dtype) if not column.isna().any() or dtype[0] == "f" else column
            return cast if dtype[0] == "f" or (cast == column).all() else column
        if self._types.get(column.name) == "datetime":
            return self._pandas.to_datetime(column)
        return column

    def _run(self, rows: list[FeaturesRequest], columns: tuple[str, ...] | None) -> list[Any]:
        names, values = named_columns(rows, self._columns if columns is None else columns)
        if names is None:
            import numpy as np

            table: Any = np.array(values)
        else:
            table = self._pandas.DataFrame(values, columns=names)
            for name in names:
                table[name] = self._typed(table[name])
        found = self._model.predict(table, params=self._params)
        if isinstance(found, self._pandas.DataFrame):
            found = found.to_dict(orient="records")
        elif isinstance(found, dict):  # columns by name
            found = [
                dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)
            ]
        elif not isinstance(found, list):
            found = list(found)
        if len(found) != len(rows):
            raise ValueError(
                f"{self._model_uri} gave {len(found)} predictions for {len(rows)} rows; it must "
                "give one for each"
            )
        return list(found)


def _connect(mlflow: Any, tracking_uri: str | None, registry_uri: str | None) -> None:
    if tracking_uri is not None:
        mlflow.set_tracking_uri(tracking_uri)
    if registry_uri is not None:
        mlflow.set_registry_uri(registry_uri)
