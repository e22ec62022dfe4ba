"""The Chronos forecasters: Chronos-Bolt, Chronos-T5 and Chronos-2."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Sequence
from copy import copy
from itertools import chain
from typing import Any, NamedTuple, Self

from pydantic import BaseModel

from sheaf_dagster.backends.base import ModelBackend
from sheaf_dagster.backends.columns import ResponseColumns
from sheaf_dagster.backends.common.digest import weights_digest
from sheaf_dagster.backends.common.libraries import pick_device, require, use_own_threads
from sheaf_dagster.backends.forecasting.magnitude import LARGE, overflows
from sheaf_dagster.backends.forecasting.row_draws import drawing_by_row
from sheaf_dagster.contracts import (
    Deviation,
    ModelType,
    OutputMode,
    TimeSeriesRequest,
    TimeSeriesResponse,
)
from sheaf_dagster.errors import SpecError

__all__ = ["ChronosBackend"]

_NAME = "chronos2"
_MODEL_ID = "amazon/chronos-bolt-tiny"
_DRAWS, _JOINT = "ChronosPipeline", "Chronos2Pipeline"
"""The family that draws paths (T5), and the one that sees all variates (Chronos-2)."""
_DTYPES = ("float32", "bfloat16", "float16")


class _Prepared(NamedTuple):
    """What the model is asked of a row."""

    history: Any
    """Shape: variates × time."""
    target: int
    """The variate to forecast."""
    horizon: int
    paths: int
    id: bytes


class ChronosBackend(ModelBackend):
    """Forecasts with a pretrained Chronos model, from a local path or a hub id.

    Rows of a batch may differ in everything. They are grouped by horizon, and the library pads
    histories of different lengths. Chronos-2 uses all variates of a multivariate history together.
    The other two families use only the target variate.

    Bolt and Chronos-2 predict quantiles. ``mean`` is then the median. Crossing levels are sorted.
    Levels between the trained ones are interpolated linearly, and levels beyond them get the value of
    the outermost level. Samples are drawn step by step from the interpolated distribution. T5 draws
    paths, and mean and quantiles come from the paths. Each row has its own seed, made from its
    ``request_id``, so its draws don't depend on the rest of the batch.

    Missing values are null or NaN. An infinite value, or a value beyond float32, fails its row. An
    answer that deviates from its row is marked: ``truncated`` if the history is longer than the
    model's context; ``ignored_field`` if variates have no effect, or if ``target_index`` is set for a
    history without variates; ``clipped`` if samples or levels beyond the trained ones get the value of
    the outermost level.

    Args:
        model_id: For example ``amazon/chronos-bolt-tiny``, ``amazon/chronos-2``, or a path.
        device: ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        num_samples: Paths that T5 draws for a row that doesn't ask for samples itself.
        seed: Mixed into the seed of each row.
        revision: Revision of a hub model.
        device_map: sheaf-serve's name of ``device``.
        torch_dtype: sheaf-serve's name of ``dtype``.

    Raises:
        MissingDependencyError: At load: chronos-forecasting is not installed.
    """

    model_type = ModelType.TIME_SERIES

    @classmethod
    def identify(
        cls, *, model_id: str = _MODEL_ID, revision: str | None = None, **_: Any
    ) -> str | None:
        return weights_digest(model_id, revision)

    def __init__(
        self,
        model_id: str = _MODEL_ID,
        device: str = "auto",
        dtype: str = "float32",
        num_samples: int = 20,
        seed: int = 0,
        revision: str | None = None,
        device_map: str | None = None,
        torch_dtype: str | None = None,
    ) -> None:
        self._model_id = model_id
        self._device = device_map or device
        self._dtype = torch_dtype or dtype
        if self._dtype not in _DTYPES:
            raise SpecError(f"dtype must be one of {', '.join(_DTYPES)}, got {self._dtype!r}")
        if num_samples < 1:
            raise SpecError(f"num_samples must be at least 1, got {num_samples}")
        self._num_samples = num_samples
        self._seed = seed
        self._revision = revision
        self._pipeline: Any = None
        self._family = ""
        self._context = 0
        self._levels_of_model: list[float] = []

    def load(self) -> None:
        torch, chronos = require(_NAME, "chronos", "torch", "chronos")
        use_own_threads(torch)
        device = pick_device(torch, self._device)
        options = {} if self._revision is None else {"revision": self._revision}
        self._pipeline = chronos.BaseChronosPipeline.from_pretrained(
            self._model_id, device_map=device, dtype=getattr(torch, self._dtype), **options
        )
        self._family = type(self._pipeline).__name__
        self._context = int(self._pipeline.model_context_length)

    def without_model(self) -> Self:
        other = copy(self)
        if self._family != _DRAWS:
            other._levels_of_model = self._levels
        other._pipeline = None
        return other

    def prepare(self, request: TimeSeriesRequest) -> _Prepared:
        """What the model reads of a row.

        Raises:
            ValueError: The row can't be forecast.
        """
        joint = self._family == _JOINT and request.n_variates > 1
        target = request.target_index if joint else 0
        history = self._history(request, joint, target)
        return _Prepared(
            history, target, request.horizon, self._paths(request), request.request_id.bytes
        )

    def size(self, prepared: _Prepared) -> int:
        """Values of the history that the model reads."""
        variates, steps = prepared.history.shape
        return int(variates * min(steps, self._context))

    def device_size(self, prepared: Sequence[_Prepared], sizes: Sequence[int]) -> int:
        """Values of all histories, each filled up to the longest of those forecast together."""
        return sum(
            sum(len(prepared[i].history) for i in members)
            * max(min(prepared[i].history.shape[1], self._context) for i in members)
            for members in _together(prepared)
        )

    def infer(self, prepared: Sequence[_Prepared]) -> list[Any]:
        """One array a row (shape: paths, or trained levels, × horizon)."""
        import torch

        found: dict[int, Any] = {}
        with torch.inference_mode():  # less bookkeeping than the no_grad of the pipelines
            for members in _together(prepared):
                made = self._forecasts([prepared[i] for i in members])
                found.update(zip(members, made, strict=True))
        return [found[i] for i in range(len(prepared))]

    def respond(
        self, requests: Sequence[TimeSeriesRequest], outputs: Sequence[Any]
    ) -> Sequence[BaseModel]:
        """The responses.

        Raises:
            ValueError: The model has no finite answer to a row.
        """
        groups: dict[tuple[int, int, OutputMode, tuple[float, ...]], list[int]] = defaultdict(list)
        for i, request in enumerate(requests):
            asked = request.horizon, self._paths(request), request.output_mode, _levels_of(request)
            groups[asked].append(i)
        made = [
            self._answers([requests[i] for i in members], [outputs[i] for i in members])
            for members in groups.values()
        ]
        if len(made) == 1:
            return made[0]
        places = chain.from_iterable(groups.values())
        answers = dict(zip(places, chain.from_iterable(made), strict=True))
        return [answers[i] for i in range(len(requests))]

    def _answers(
        self, requests: Sequence[TimeSeriesRequest], outputs: Sequence[Any]
    ) -> ResponseColumns:
        """The responses to rows that ask for the same."""
        forecasts = _finite(requests, outputs)
        columns: dict[str, Any] = (
            _from_paths(requests, forecasts)
            if self._family == _DRAWS
            else _from_quantiles(requests, forecasts, self._levels, self._seed)
        )
        return ResponseColumns(
            TimeSeriesResponse,
            requests,
            columns,
            copied=("horizon", "frequency"),
            deviations=[self._deviations(request) for request in requests],
        )

    @property
    def _levels(self) -> list[float]:
        """Quantile levels that Bolt and Chronos-2 were trained for."""
        if self._pipeline is None:
            return self._levels_of_model
        return [float(q) for q in self._pipeline.quantiles]

    def _history(self, request: TimeSeriesRequest, joint: bool, target: int) -> Any:
        """A row's values, NaN where one is missing (shape: variates × time)."""
        import numpy as np

        _check(request)
        given = np.array(request.history if joint else request.target_history, dtype=np.float64)
        given = given.T if given.ndim > 1 else given[None]
        if given.size and np.vdot(given, given) < LARGE**2:
            return given.astype(np.float32)  # as nearly every row is: all there, and of some size
        with np.errstate(over="ignore"):
            values = given.astype(np.float32)
        row = f"request {request.request_id}"
        if self._family != _DRAWS and overflows(values):
            raise ValueError(
                f"{row}: the values of 'history' are too large, or too far apart, for the model, "
                "which computes in float32; give the values in another unit"
            )
        if values.size and np.isfinite(values).all():
            return values
        # One such value turns a batch's other answers to NaN, too.
        if (infinite := np.argwhere(np.isinf(values.T))).size:
            raise ValueError(
                f"{row}: 'history' is infinite, or beyond float32, at step {infinite[0][0]}; "
                "a missing value is null"
            )
        if np.isnan(values[target, -self._context :]).all():
            read = f" in the last {self._context} steps, which the model reads"
            raise ValueError(
                f"{row}: 'history' has no value to forecast from"
                + (read if values.shape[1] > self._context else "")
            )
        return values

    def _deviations(self, request: TimeSeriesRequest) -> list[Deviation]:
        """In which ways a row is answered otherwise than asked."""
        found: list[Deviation] = []
        if request.history is not None and len(request.history) > self._context:
            found.append("truncated")
        if self._family != _JOINT if request.n_variates > 1 else request.target_index > 0:
            found.append("ignored_field")
        if self._family == _DRAWS or request.output_mode is OutputMode.MEAN:
            return found
        low, high = min(self._levels), max(self._levels)
        held = request.output_mode is OutputMode.SAMPLES or any(
            not low <= q <= high for q in request.quantile_levels
        )
        if held:  # to the outermost of the trained levels
            found.append("clipped")
        return found

    def _paths(self, request: TimeSeriesRequest) -> int:
        if self._family != _DRAWS:
            return 0
        return (
            request.num_samples
            if request.output_mode is OutputMode.SAMPLES
            else (self._num_samples)
        )

    def _forecasts(self, rows: list[_Prepared]) -> list[Any]:
        """What the model predicts for rows of one horizon, each with its mates or else alone."""
        made = self._run(rows)
        # Chronos-2 attends across a batch: a row whose scale overflows spoils its mates.
        if self._family == _JOINT and len(rows) > 1:
            for i, is_finite in enumerate(_are_finite(made)):
                if not is_finite:
                    made[i] = self._run(rows[i : i + 1])[0]
        return made

    def _run(self, rows: list[_Prepared]) -> list[Any]:
        import torch

        given, horizon = [torch.from_numpy(row.history) for row in rows], rows[0].horizon
        if self._family == _JOINT:
            predicted = self._pipeline.predict(given, prediction_length=horizon)
            return [
                p[row.target].float().cpu().numpy() for row, p in zip(rows, predicted, strict=True)
            ]
        contexts = [history[0] for history in given]
        if self._family == _DRAWS:
            paths = rows[0].paths
            with drawing_by_row(self._pipeline.model, [self._seed_of(row) for row in rows], paths):
                predicted = self._pipeline.predict(
                    contexts, prediction_length=horizon, num_samples=paths
                )
        else:
            predicted = self._pipeline.predict(contexts, prediction_length=horizon)
        return list(predicted.float().cpu().numpy())

    def _seed_of(self, row: _Prepared) -> int:
        own = hashlib.sha256(row.id).digest()
        return (int.from_bytes(own[:6], "big") + self._seed) % 2**63


def _together(rows: Sequence[_Prepared]) -> Collection[list[int]]:
    """Rows that are forecast together, by their places."""
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        groups[row.horizon, row.paths].append(i)
    return groups.values()


def _check(request: TimeSeriesRequest) -> None:
    if request.history is None:
        raise ValueError(
            f"request {request.request_id}: 'feature_ref' must be looked up before a batch job; "
            "give 'history'"
        )
    if request.output_mode is OutputMode.SAMPLES and request.num_samples < 1:
        raise ValueError(f"request {request.request_id}: 'num_samples' must be at least 1")
    if request.output_mode is OutputMode.QUANTILES:
        for q in request.quantile_levels:
            if not 0 <= q <= 1:
                raise ValueError(
                    f"request {request.request_id}: quantile level {q:g} is not in 0..1"
                )


def _are_finite(forecasts: Any) -> Any:
    """Of each of some arrays of one size, whether all its values are finite."""
    import numpy as np

    return np.isfinite(np.reshape(forecasts, (len(forecasts), -1))).all(axis=1)


def _finite(requests: Sequence[TimeSeriesRequest], forecasts: Sequence[Any]) -> Any:
    """The forecasts as one array."""
    import numpy as np

    together = np.stack(forecasts)
    for request, is_finite in zip(requests, _are_finite(together).tolist(), strict=True):
        if not is_finite:
            raise ValueError(
                f"request {request.request_id}: the model has no finite answer to its 'history'; "
                "are its values extremely large?"
            )
    return together


def _levels_of(request: TimeSeriesRequest) -> tuple[float, ...]:
    """The quantile levels that a row asks for."""
    wanted = request.output_mode is OutputMode.QUANTILES
    return tuple(request.quantile_levels) if wanted else ()


def _from_paths(requests: Sequence[TimeSeriesRequest], paths: Any) -> dict[str, Any]:
    """What rows that ask for the same get of their paths (shape: rows × paths × horizon)."""
    import numpy as np

    columns: dict[str, Any] = {"mean": paths.mean(axis=1)}
    mode, levels = requests[0].output_mode, requests[0].quantile_levels
    if mode is OutputMode.QUANTILES:
        values = np.quantile(paths, levels, axis=1) if levels else np.zeros((0, len(paths), 1))
        columns["quantiles"] = _by_level(levels, values.swapaxes(0, 1))
    if mode is OutputMode.SAMPLES:
        columns["samples"] = paths
    return columns


def _from_quantiles(
    requests: Sequence[TimeSeriesRequest], predicted: Any, levels: list[float], seed: int
) -> dict[str, Any]:
    """What rows that ask for the same get (shape of the prediction: rows × trained levels × horizon)."""
    import numpy as np

    # Crossing quantiles are put in order (rearrangement, Chernozhukov et al. 2010).
    if (predicted[:, 1:] < predicted[:, :-1]).any():
        predicted = np.sort(predicted, axis=1)
    columns: dict[str, Any] = {"mean": _interpolate([0.5], levels, predicted)[:, 0]}
    mode, wanted = requests[0].output_mode, requests[0].quantile_levels
    if mode is OutputMode.QUANTILES:
        columns["quantiles"] = _by_level(wanted, _interpolate(wanted, levels, predicted))
    if mode is OutputMode.SAMPLES:
        columns["samples"] = [
            _drawn(request, levels, own, seed)
            for request, own in zip(requests, predicted, strict=True)
        ]
    return columns


def _by_level(levels: Sequence[float], values: Any) -> list[dict[str, list[float]]]:
    """For each row its values by level (shape: rows × levels × horizon)."""
    names = [*map(str, levels)]
    return [dict(zip(names, own, strict=True)) for own in values.tolist()]


def _drawn(
    request: TimeSeriesRequest, levels: list[float], predicted: Any, seed: int
) -> list[list[float]]:
    """Samples of a row, from its distribution (shape of that: trained levels × horizon)."""
    import numpy as np

    random = np.random.default_rng([request.request_id.int % 2**64, seed])
    u = random.random((request.horizon, request.num_samples))
    steps = [_interpolate(u[t], levels, predicted[:, t, None])[:, 0] for t in range(len(u))]
    return np.array(steps).T.tolist()  # type: ignore[no-any-return]


def _interpolate(wanted: Any, levels: list[float], predicted: Any) -> Any:
    """Values at quantile levels, linear between the trained ones and constant outside them.

    Args:
        wanted: Levels (length n).
        levels: The trained levels, ascending.
        predicted: Values at those (shape: … × trained levels × horizon).

    Returns:
        Values (shape: … × n × horizon).
    """
    import numpy as np

    known, wanted = np.asarray(levels), np.asarray(wanted, dtype=float)
    if len(known) == 1:
        return np.repeat(predicted, len(wanted), axis=-2)
    above = np.clip(np.searchsorted(known, wanted), 1, len(known) - 1)
    below = above - 1
    share = np.clip((wanted - known[below]) / (known[above] - known[below]), 0.0, 1.0)
    if np.isin(share, (0.0, 1.0)).all():  # the trained levels themselves, and those beyond them
        return predicted[..., np.where(share == 1.0, above, below), :]
    low, high = predicted[..., below, :], predicted[..., above, :]
    between = low + share[:, None] * (high - low)
    return np.where(share[:, None] == 1.0, high, between)  # which is rounded
