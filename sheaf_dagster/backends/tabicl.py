"""TabICL: tabular prediction from labelled examples in the row itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sheaf_dagster.backends.base import ModelBackend
from sheaf_dagster.backends.common.digest import weights_digest
from sheaf_dagster.backends.common.libraries import pick_device, require, use_own_threads
from sheaf_dagster.backends.tables.records import grouped, plain
from sheaf_dagster.contracts import ModelType, TabularRequest, TabularResponse
from sheaf_dagster.errors import SpecError

__all__ = ["TabICLBackend"]

_NAME = "tabicl"
_HUB_ID = "jingang/TabICL"
_EXACT = 2**53
"""Up to here each integer is a float of 64 bits, too."""


class TabICLBackend(ModelBackend):
    """Classifies or regresses query rows from the labelled rows beside them.

    Requests of a batch that have the same examples share one fit and one pass, so it pays to
    keep them together in the file. Each of the two models is loaded at its first request, once.

    Columns that ``categorical_feature_indices`` names go to the library as categories: it orders
    them, and takes one that no example has for an unknown one.

    Args:
        classifier_path: Checkpoint of the classifier; by default the library's own, from the
            hub.
        regressor_path: Checkpoint of the regressor, likewise.
        device: ``"auto"`` (a GPU where there is one), ``"cpu"``, ``"cuda"`` …
        n_estimators: Views of the examples (shuffled columns and classes) that are averaged.
        seed: Of the shuffling.
        load: Which models to load at once: ``classification``, ``regression`` or both; the
            other one is loaded when a row asks for it.

    Raises:
        SpecError: A given checkpoint doesn't exist.
        MissingDependencyError: At load: tabicl is not installed.
    """

    model_type = ModelType.TABULAR

    @classmethod
    def identify(
        cls, *, classifier_path: str | None = None, regressor_path: str | None = None, **_: Any
    ) -> str | None:
        if classifier_path is None and regressor_path is None:
            return weights_digest(_HUB_ID)
        # A file's digest counts also where the hub, for the other model, can't be asked.
        found = [weights_digest(p or _HUB_ID) for p in (classifier_path, regressor_path)]
        return " ".join(digest or _HUB_ID for digest in found)

    def __init__(
        self,
        classifier_path: str | None = None,
        regressor_path: str | None = None,
        device: str = "auto",
        n_estimators: int = 8,
        seed: int = 42,
        load: Sequence[str] = ("classification",),
    ) -> None:
        self._paths = {"classification": classifier_path, "regression": regressor_path}
        unknown = sorted(set(load) - self._paths.keys())
        if unknown:
            raise SpecError(f"load must name classification or regression, got {unknown}")
        self._device = device
        self._n_estimators = n_estimators
        self._seed = seed
        self._at_once = tuple(load)
        self._classes: dict[str, Any] = {}
        self._loaded: dict[str, Any] = {}

    def load(self) -> None:
        library, torch = require(_NAME, "tabicl", "tabicl", "torch")
        use_own_threads(torch)
        self._device = pick_device(torch, self._device)
        self._classes = {
            "classification": library.TabICLClassifier,
            "regression": library.TabICLRegressor,
        }
        for task in self._at_once:
            self._estimator(task)

    def warmup_requests(self) -> Sequence[Any]:
        x = [[float(i), float(i % 3)] for i in range(12)]
        y = [i % 2 for i in range(12)]
        return [
            TabularRequest.model_validate(
                {
                    "model_name": "warm-up",
                    "context_X": x,
                    "context_y": y,
                    "query_X": x,
                    "task": task,
                }
            )
            for task in self._at_once
        ]

    def batch_predict(self, requests: Sequence[TabularRequest]) -> list[TabularResponse]:  # type: ignore[override]
        for request in requests:
            _check(request)
        answers: dict[int, TabularResponse] = {}
        for members in grouped(requests, _context).values():
            rows = [requests[i] for i in members]
            answers.update(zip(members, self._answer(rows), strict=True))
        return [answers[i] for i in range(len(requests))]

    def _answer(self, rows: list[TabularRequest]) -> list[TabularResponse]:
        """Rows of one context: their queries go through together."""
        import numpy as np

        first = rows[0]
        queries = _table([q for row in rows for q in row.query_X], first)
        if not len(queries):
            return [_response(row, [], None, None, None) for row in rows]
        model = self._estimator(first.task)
        try:
            model.fit(_table(first.context_X, first), np.array(_labels(first)))
        except ValueError as e:
            raise ValueError(
                f"request {first.request_id}: nothing can be learned from 'context_X' and "
                f"'context_y' (task {first.task!r}): {e}"
            ) from e
        levels = first.quantile_levels if first.output_mode == "quantiles" else []
        classes: list[Any] | None = None
        probabilities = quantiles = None
        if first.task == "classification":
            probabilities = model.predict_proba(queries)
            values = model.classes_[probabilities.argmax(axis=1)]
            classes = plain(model.classes_)
        elif levels:
            found = model.predict(queries, output_type=["mean", "quantiles"], alphas=levels)
            values, quantiles = found["mean"], found["quantiles"]
        else:
            values = model.predict(queries)
        responses, at = [], 0
        for row in rows:
            own = slice(at, at + len(row.query_X))
            at = own.stop
            wants = row.output_mode == "probabilities" and probabilities is not None
            responses.append(
                _response(
                    row,
                    plain(values[own]),
                    plain(probabilities[own]) if wants and probabilities is not None else None,
                    None
                    if quantiles is None
                    else {str(q): plain(quantiles[own, k]) for k, q in enumerate(levels)},
                    classes if wants else None,
                )
            )
        return responses

    def _estimator(self, task: str) -> Any:
        """A fresh estimator around the loaded network: ``fit`` would read the file each time."""
        cls, path = self._classes[task], self._paths[task]
        made = cls(
            n_estimators=self._n_estimators,
            model_path=path,
            allow_auto_download=path is None,
            device=self._device,
            random_state=self._seed,
        )
        if task not in self._loaded:
            try:
                made._load_model()
            except ValueError as e:
                raise SpecError(f"backend {_NAME!r}: {e}") from e
            names = ("model_", "model_path_", "model_config_")
            self._loaded[task] = {n: getattr(made, n) for n in names}
        made.__dict__["_load_model"] = lambda: made.__dict__.update(self._loaded[task])
        return made


def _table(rows: list[list[Any]], request: TabularRequest) -> Any:
    """Examples or queries as an array, or as a frame whose columns the library tells apart."""
    import numpy as np

    table = np.array(rows, dtype=np.float64)
    if not request.categorical_feature_indices or not len(rows):
        return table
    import pandas as pd

    frame = pd.DataFrame(table)
    return frame.astype(dict.fromkeys(request.categorical_feature_indices, "category"))


def _labels(request: TabularRequest) -> list[float | int]:
    """The labels; whole ones as integers where a float would make another label of them."""
    labels = request.context_y
    if request.task == "regression" or max(map(abs, labels)) <= _EXACT:
        return labels
    return [int(label) if label == int(label) else label for label in labels]


def _check(request: TabularRequest) -> None:
    if not request.context_X:
        raise ValueError(
            f"request {request.request_id}: has no examples ('context_X'), from which this model "
            "learns; for a model that is fitted already see the backend 'sklearn'"
        )
    for i, label in enumerate(request.context_y):
        if isinstance(label, float) and not math.isfinite(label):
            raise ValueError(
                f"request {request.request_id}: 'context_y.{i}' is {label}; an example has a label"
            )
    width = len(request.context_X[0])
    for index in request.categorical_feature_indices or ():
        if not 0 <= index < width:
            raise ValueError(
                f"request {request.request_id}: 'categorical_feature_indices' has {index}, but "
                f"features are numbered 0 to {width - 1}"
            )
    for name, rows in (("context_X", request.context_X), ("query_X", request.query_X)):
        for i, row in enumerate(rows):
            if len(row) != width:
                raise ValueError(
                    f"request {request.request_id}: '{name}.{i}' has {len(row)} features, "
                    f"the first example {width}"
                )
            for k, value in enumerate(row):
                if value is not None and math.isinf(value):
                    raise ValueError(
                        f"request {request.request_id}: '{name}.{i}.{k}' is infinite, which the "
                        "model doesn't take; null is a missing value"
                    )
    for level in request.quantile_levels:
        if request.output_mode == "quantiles" and not 0 < level < 1:
            raise ValueError(
                f"request {request.request_id}: quantile level {level:g} is not between 0 and 1"
            )


def _context(request: TabularRequest) -> tuple[Any, ...]:
    levels = tuple(request.quantile_levels) if request.output_mode == "quantiles" else ()
    # The library leaves out a column that is missing in all queries of a pass.
    missing = tuple(all(q != q for q in column) for column in zip(*request.query_X, strict=True))
    categories = sorted(request.categorical_feature_indices or ())
    context = repr((request.context_X, request.context_y, categories))
    return request.task, levels, missing, context


def _response(
    request: TabularRequest,
    predictions: list[Any],
    probabilities: list[list[float]] | None,
    quantiles: dict[str, list[float]] | None,
    classes: list[Any] | None,
) -> TabularResponse:
    return TabularResponse(
        request_id=request.request_id,
        model_name=request.model_name,
        predictions=predictions,
        probabilities=probabilities,
        quantiles=quantiles,
        classes=classes,
        task=request.task,
        n_context=len(request.context_X),
        n_query=len(request.query_X),
    )
