"""Models that a team has logged or registered in MLflow, as python functions."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from sheaf_dagster.backends.base import ModelBackend
from sheaf_dagster.backends.common.digest import weights_digest
from sheaf_dagster.backends.common.libraries import require
from sheaf_dagster.backends.tables.fitted import column_names, fitted_columns
from sheaf_dagster.backends.tables.records import per_row, with_columns_named
from sheaf_dagster.backends.tables.signature import ColumnInputs, TensorInputs, UnsignedInputs
from sheaf_dagster.contracts import FEATURES, FeaturesRequest, FeaturesResponse

__all__ = ["MlflowBackend"]

_NAME = "mlflow"
_MODEL_URI = "model"
_IS_FILE = re.compile("file:").match


class MlflowBackend(ModelBackend):
    """Predicts with a pyfunc model: a batch is one data frame, and each row gets one prediction.

    Columns and their types come from the model's signature, whatever a batch contains. A value that
    doesn't fit the signature fails its row. Dates are ISO 8601 text; dates with a time zone are
    converted to UTC. Optional columns may be left out or ``null``. The model gets them as missing
    values, or doesn't get them at all if their type has no missing value (integers). A row that lacks
    an optional column and has a field unknown to the signature is marked ``ignored_field``.

    Without a signature, a scikit-learn model gets the columns that it was fitted with. Any other model
    gets the row's own columns, in the row's order. If a model returns a data frame, each row gets an
    object.

    A pyfunc model is code: load only models that you trust.

    Args:
        model_uri: ``models:/name/version``, ``models:/name@alias``, ``runs:/…``, or a path.
        tracking_uri: Location of the runs. By default from the environment.
        registry_uri: Location of the registered models. By default the location of the runs.
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
        folder = url2pathname(urlsplit(model_uri).path) if _IS_FILE(model_uri) else model_uri
        if os.path.isdir(folder):  # whose files may change behind the model's id
            return weights_digest(folder)
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
        self._inputs: ColumnInputs | TensorInputs | UnsignedInputs | None = None

    def load(self) -> None:
        mlflow, pyfunc, _ = require(_NAME, "mlflow", "mlflow", "mlflow.pyfunc", "pandas")
        _connect(mlflow, self._tracking_uri, self._registry_uri)
        self._model = pyfunc.load_model(self._model_uri)
        inside = _model_inside(self._model)
        schema = self._model.metadata.get_input_schema()
        if not schema:
            self._inputs = UnsignedInputs(column_names(inside), fitted_columns(inside))
        elif schema.is_tensor_spec():
            self._inputs = TensorInputs(schema)
        else:
            self._inputs = ColumnInputs(schema, fitted_columns(inside))

    def batch_predict(self, requests: Sequence[FeaturesRequest]) -> list[FeaturesResponse]:  # type: ignore[override]
        groups: dict[Any, list[tuple[int, list[Any]]]] = defaultdict(list)
        for i, request in enumerate(requests):
            key, values = self._read(request)
            groups[key].append((i, values))
        answers: dict[int, FeaturesResponse] = {}
        for key, members in groups.items():
            with with_columns_named([requests[i] for i, _ in members]):
                predictions = self._run(key, [values for _, values in members])
            for (i, _), value in zip(members, predictions, strict=True):
                answers[i] = FeaturesResponse(
                    request_id=requests[i].request_id,
                    model_name=requests[i].model_name,
                    prediction=value,
                )
                if isinstance(self._inputs, ColumnInputs) and self._inputs.ignores(requests[i]):
                    answers[i].deviates("ignored_field")
        return [answers[i] for i in range(len(requests))]

    def _read(self, request: FeaturesRequest) -> tuple[Any, list[Any]]:
        if request.output_mode != "predictions":
            raise ValueError(
                f"request {request.request_id}: an MLflow model gives predictions only; use "
                "output_mode='predictions'"
            )
        return self._inputs.read(request)  # type: ignore[union-attr]

    def _run(self, key: Any, rows: list[list[Any]]) -> list[Any]:
        table = self._inputs.table(key, rows)  # type: ignore[union-attr]
        found = self._model.predict(table, params=self._params)
        if isinstance(table, dict):  # of arrays
            return per_row(found, len(rows))
        return per_row(found, len(table))[: len(rows)]


def _model_inside(model: Any) -> Any:
    """What a pyfunc model wraps, where its flavour tells."""
    try:
        return model.get_raw_model()
    except (NotImplementedError, AttributeError):
        return None


def _connect(mlflow: Any, tracking_uri: str | None, registry_uri: str | None) -> None:
    if tracking_uri is not None:
        mlflow.set_tracking_uri(tracking_uri)
    if registry_uri is not None:
        mlflow.set_registry_uri(registry_uri)
