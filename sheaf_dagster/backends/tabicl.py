"""TabICL: tabular prediction from labelled examples in the row itself."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

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


class _Prepared(NamedTuple):
    """What the model is given of a row."""

    key: tuple[str, tuple[float, ...], bytes, bytes]
    """Task, quantile levels, columns without a query's value, hash of the examples."""
    id: Any
    categories: tuple[int, ...]
    """Columns whose values name something, and are no amounts."""
    x: Any
    """Shape: examples × features."""
    y: Any
    queries: Any
    """Shape: queries × features."""


class _Output(NamedTuple):
    """What the model found for a row's queries."""

    values: Any
    probabilities: Any
    """Shape: queries × classes; None of a regression."""
    quantiles: Any
    """Shape: queries × levels; None where none were asked for."""
    classes: Any


class TabICLBackend(ModelBackend):
    """Classifies or regresses query rows from the labelled rows beside them.

    Requests of a batch with the same examples share one fit and one pass, so keep them together in the
    file. Each of the two models is loaded once, at its first request.

    Columns in ``categorical_feature_indices`` are passed to the library as categories. The library
    orders them, and treats a category that no example has as unknown.

    Args:
        classifier_path: Checkpoint of the classifier. By default the library's own, from the hub.
        regressor_path: Checkpoint of the regressor. By default the library's own, from the hub.
        device: ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"`` …
        n_estimators: Views of the examples (with shuffled columns and classes) that are averaged.
        seed: Seed of the shuffling.
        load: Models to load at the start: ``classification``, ``regression`` or both. The other one
            is loaded when a row asks for it.

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

    def prepare(self, request: TabularRequest) -> _Prepared:
        """A row's arrays, and what it must share with others to share their fit and their pass.

        Raises:
            ValueError: The library doesn't take the row.
        """
        import numpy as np

        _check(request)
        queries = np.array(request.query_X, dtype=np.float64)
        x, y = np.array(request.context_X, dtype=np.float64), _labels(request)
        categories = tuple(sorted(request.categorical_feature_indices or ()))
        levels = tuple(request.quantile_levels) if request.output_mode == "quantiles" else ()
        examples = hashlib.sha256(repr((x.shape, y, categories)).encode())
        examples.update(x.tobytes())
        # The library leaves out a column that is missing in all queries of a pass.
        missing = np.isnan(queries).all(axis=0).tobytes() if len(queries) else b""
        key = (request.task, levels, missing, examples.digest())
        return _Prepared(key, request.request_id, categories, x, np.array(y), queries)

    def infer(self, prepared: Sequence[_Prepared]) -> list[_Output | None]:
        """What the model finds for the queries of each row; None where it has none."""
        outputs: list[_Output | None] = [None] * len(prepared)
        for members in grouped(prepared, lambda row: row.key).values():
            if len(prepared[members[0]].queries):
                made = self._answer([prepared[i] for i in members])
                for i, output in zip(members, made, strict=True):
                    outputs[i] = output
        return outputs

    def respond(  # type: ignore[override]
        self, requests: Sequence[TabularRequest], outputs: Sequence[_Output | None]
    ) -> list[TabularResponse]:
        return [_response(r, out) for r, out in zip(requests, outputs, strict=True)]

    def _answer(self, rows: list[_Prepared]) -> list[_Output]:
        """Rows of one context: their queries go through together."""
        import numpy as np

        first = rows[0]
        task, levels, *_ = first.key
        queries = _table(np.concatenate([row.queries for row in rows]), first.categories)
        model = self._estimator(task)
        try:
            model.fit(_table(first.x, first.categories), first.y)
        except ValueError as e:
            raise ValueError(
                f"request {first.id}: nothing can be learned from 'context_X' and 'context_y' "
                f"(task {task!r}): {e}"
            ) from e
        classes = probabilities = quantiles = None
        if task == "classification":
            probabilities = model.predict_proba(queries)
            classes = model.classes_
            values = classes[probabilities.argmax(axis=1)]
        elif levels:
            asked = list(levels)
            found = model.predict(queries, output_type=["mean", "quantiles"], alphas=asked)
            values, quantiles = found["mean"], found["quantiles"]
        else:
            values = model.predict(queries)
        outputs, at = [], 0
        for row in rows:
            own = slice(at, at + len(row.queries))
            at = own.stop
            outputs.append(
                _Output(
                    values[own],
                    None if probabilities is None else probabilities[own],
                    None if quantiles is None else quantiles[own],
                    classes,
                )
            )
        return outputs

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


def _table(values: Any, categories: Sequence[int]) -> Any:
    """Examples or queries; with categories a frame, whose columns the library tells apart."""
    if not categories:
        return values
    import pandas as pd

    return pd.DataFrame(values).astype(dict.fromkeys(categories, "category"))


def _labels(request: TabularRequest) -> list[float | int]:
    """The labels; whole ones as integers where a float would make another label of them."""
    labels = request.context_y
    if request.task == "regression" or max(map(abs, labels)) <= _EXACT:
        return labels
    return [int(label) if label == int(label) else label for label in labels]


def _check(request: TabularRequest) -> None:
    if not request.context_X:
        raise ValueError(
            f"request {request.request_id}: has no examples ('context_X') for this model to learn "
            "from; to run a model that is already fitted, use the backend 'sklearn'"
        )
    for i, label in enumerate(request.context_y):
        if isinstance(label, float) and not math.isfinite(label):
            raise ValueError(
                f"request {request.request_id}: 'context_y.{i}' is {label}; each example needs a "
                "finite label"
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
                    f"but the first example has {width}"
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


def _response(request: TabularRequest, output: _Output | None) -> TabularResponse:
    probabilities = quantiles = classes = None
    if output is not None and output.probabilities is not None:
        if request.output_mode == "probabilities":
            probabilities, classes = plain(output.probabilities), plain(output.classes)
    elif output is not None and output.quantiles is not None:
        levels = enumerate(request.quantile_levels)
        quantiles = {str(q): plain(output.quantiles[:, k]) for k, q in levels}
    return TabularResponse(
        request_id=request.request_id,
        model_name=request.model_name,
        predictions=[] if output is None else plain(output.values),
        probabilities=probabilities,
        quantiles=quantiles,
        classes=classes,
        task=request.task,
        n_context=len(request.context_X),
        n_query=len(request.query_X),
    )
