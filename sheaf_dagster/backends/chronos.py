"""The Chronos forecasters: Chronos-Bolt, Chronos-T5 and Chronos-2."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sheaf_dagster.backends.base import ModelBackend
from sheaf_dagster.backends.digest import weights_digest
from sheaf_dagster.backends.libraries import require, use_own_threads
from sheaf_dagster.contracts import ModelType, OutputMode, TimeSeriesRequest, TimeSeriesResponse
from sheaf_dagster.errors import SpecError

__all__ = ["ChronosBackend"]

_NAME = "chronos2"
_MODEL_ID = "amazon/chronos-bolt-tiny"
_DTYPES = ("float32", "bfloat16", "float16")


class ChronosBackend(ModelBackend):
    """Forecasts with a pretrained Chronos model, from a local path or a hub id.

    Rows of a batch may differ in everything: they are grouped by horizon, and histories of
    different lengths are padded by the library. Chronos-2 sees all variates of a multivariate
    history together; the other two families see the target variate alone.

    What the families give: Bolt and Chronos-2 predict quantiles, of which the median is
    reported as ``mean``, crossing levels are put in order, other levels are interpolated linearly (levels beyond the trained
    ones are held at the outermost), and samples are drawn step by step from the interpolated
    distribution. T5 draws paths, of which mean and quantiles are taken. Draws are seeded by the
    requests, so that a batch gives the same answer whenever it runs.

    Args:
        model_id: For example ``amazon/chronos-bolt-tiny``, ``amazon/chronos-2``, or a path.
        device: ``"auto"`` (a GPU where there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``,
            ``"mps"``.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        num_samples: Paths that T5 draws where the row asks for no samples itself.
        seed: Mixed into the seeds.
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
        self._num_samples = num_samples
        self._seed = seed
        self._revision = revision
        self._pipeline: Any = None
        self._family = ""

    def load(self) -> None:
        torch, chronos = require(_NAME, "chronos", "torch", "chronos")
        use_own_threads(torch)
        device = self._device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        options = {} if self._revision is None else {"revision": self._revision}
        self._pipeline = chronos.BaseChronosPipeline.from_pretrained(
            self._model_id, device_map=device, dtype=getattr(torch, self._dtype), **options
        )
        self._family = type(self._pipeline).__name__

    def batch_predict(self, requests: Sequence[TimeSeriesRequest]) -> list[TimeSeriesResponse]:  # type: ignore[override]
        for request in requests:
            _check(request)
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for i, request in enumerate(requests):
            groups[request.horizon, self._paths(request)].append(i)
        answers: dict[int, TimeSeriesResponse] = {}
        for (horizon, paths), members in groups.items():
            group = [requests[i] for i in members]
            if self._family == "ChronosPipeline":
                forecasts = self._draw(group, horizon, paths)
                made = [_from_paths(r, f) for r, f in zip(group, forecasts, strict=True)]
            else:
                levels = [float(q) for q in self._pipeline.quantiles]
                forecasts = self._quantiles(group, horizon)
                made = _from_quantiles(group, forecasts, levels, self._seed)
            answers.update(zip(members, made, strict=True))
        return [answers[i] for i in range(len(requests))]

    def _paths(self, request: TimeSeriesRequest) -> int:
        if self._family != "ChronosPipeline":
            return 0
        return (
            request.num_samples
            if request.output_mode is OutputMode.SAMPLES
            else (self._num_samples)
        )

    def _draw(self, group: list[TimeSeriesRequest], horizon: int, paths: int) -> list[Any]:
        """T5: one array a row (shape: paths × horizon)."""
        import torch

        seed = hashlib.sha256(b"".join(r.request_id.bytes for r in group))
        torch.manual_seed((int.from_bytes(seed.digest()[:6], "big") + self._seed) % 2**63)
        contexts = [_tensor(r.target_history) for r in group]
        drawn = self._pipeline.predict(contexts, prediction_length=horizon, num_samples=paths)
        return list(drawn.float().cpu().numpy())

    def _quantiles(self, group: list[TimeSeriesRequest], horizon: int) -> list[Any]:
        """Bolt and Chronos-2: one array a row (shape: trained levels × horizon)."""
        if self._family != "Chronos2Pipeline":
            contexts = [_tensor(r.target_history) for r in group]
            predicted = self._pipeline.predict(contexts, prediction_length=horizon)
            return list(predicted.float().cpu().numpy())
        histories = []
        for r in group:
            history = _tensor(r.history)
            histories.append(history.T if history.ndim == 2 else history)
        predicted = self._pipeline.predict(histories, prediction_length=horizon)
        return [
            p[r.target_index if r.n_variates > 1 else 0].float().cpu().numpy()
            for r, p in zip(group, predicted, strict=True)
        ]


def _tensor(values: Any) -> Any:
    import numpy as np
    import torch

    return torch.from_numpy(np.array(values, dtype=np.float32))  # half the time of torch.tensor


def _check(request: TimeSeriesRequest) -> None:
    if request.history is None:
        raise ValueError(
            f"request {request.request_id}: 'feature_ref' must be looked up before a batch job; "
            "give 'history'"
        )
    if not any(value == value for value in request.target_history):
        raise ValueError(f"request {request.request_id}: 'history' has no value to forecast from")
    if request.output_mode is OutputMode.SAMPLES and request.num_samples < 1:
        raise ValueError(f"request {request.request_id}: 'num_samples' must be at least 1")
    for q in request.quantile_levels:
        if request.output_mode is OutputMode.QUANTILES and not 0 <= q <= 1:
            raise ValueError(f"request {request.request_id}: quantile level {q:g} is not in 0..1")


def _from_paths(request: TimeSeriesRequest, paths: Any) -> TimeSeriesResponse:
    import numpy as np

    quantiles = samples = None
    if request.output_mode is OutputMode.QUANTILES:
        levels = request.quantile_levels
        values = np.quantile(paths, levels, axis=0) if levels else []
        quantiles = {str(q): v.tolist() for q, v in zip(levels, values, strict=True)}
    if request.output_mode is OutputMode.SAMPLES:
        samples = paths.tolist()
    return _response(request, paths.mean(axis=0).tolist(), quantiles, samples)


def _from_quantiles(
    requests: Sequence[TimeSeriesRequest], forecasts: list[Any], levels: list[float], seed: int
) -> list[TimeSeriesResponse]:
    """Answers of rows of one horizon from arrays of the shape trained levels × horizon."""
    import numpy as np

    # Crossing quantiles are put in order (rearrangement, Chernozhukov et al. 2010).
    predicted = np.sort(np.stack(forecasts), axis=1)
    means = _interpolate([0.5], levels, predicted)[:, 0].tolist()
    made = []
    for request, own, mean in zip(requests, predicted, means, strict=True):
        quantiles = samples = None
        if request.output_mode is OutputMode.QUANTILES:
            wanted = request.quantile_levels
            rows = _interpolate(wanted, levels, own).tolist()
            quantiles = {str(q): row for q, row in zip(wanted, rows, strict=True)}
        if request.output_mode is OutputMode.SAMPLES:
            random = np.random.default_rng([request.request_id.int % 2**64, seed])
            u = random.random((request.horizon, request.num_samples))
            steps = [_interpolate(u[t], levels, own[:, t, None])[:, 0] for t in range(len(u))]
            samples = np.array(steps).T.tolist()
        made.append(_response(request, mean, quantiles, samples))
    return made


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
    low, high = predicted[..., below, :], predicted[..., above, :]
    return low + share[:, None] * (high - low)


def _response(
    request: TimeSeriesRequest,
    mean: list[float],
    quantiles: dict[str, list[float]] | None,
    samples: list[list[float]] | None,
) -> TimeSeriesResponse:
    return TimeSeriesResponse(
        request_id=request.request_id,
        model_name=request.model_name,
        mean=mean,
        quantiles=quantiles,
        samples=samples,
        horizon=request.horizon,
        frequency=request.frequency.value,
    )
