"""Statistical forecasters that need no weights, through Nixtla's statsforecast."""

from __future__ import annotations

import importlib
import math
import os
import warnings
from importlib import metadata
from typing import Any

from sheaf_dagster.backends.base import ModelBackend
from sheaf_dagster.contracts import (
    Frequency,
    ModelType,
    OutputMode,
    TimeSeriesRequest,
    TimeSeriesResponse,
)
from sheaf_dagster.errors import MissingDependencyError, SpecError

__all__ = ["StatsForecastBackend"]

_SEASONS = {
    Frequency.MINUTELY: 60,
    Frequency.FIVE_MINUTELY: 288,
    Frequency.FIFTEEN_MINUTELY: 96,
    Frequency.HOURLY: 24,
    Frequency.DAILY: 7,
    Frequency.WEEKLY: 52,
    Frequency.MONTHLY: 12,
}


class StatsForecastBackend(ModelBackend):
    """Fits one statistical model to each row's history and forecasts from it.

    A history that is shorter than two seasons is fitted without a season; one of fewer than
    three values, or one that the model can't be fitted to, is continued by its last season
    (or value). The response's ``metadata`` says which model answered. Missing values (NaN)
    are filled forward before the fit.

    Args:
        model: Class of ``statsforecast.models``: ``AutoETS``, ``AutoTheta``, ``AutoARIMA``,
            ``AutoCES``, ``SeasonalNaive``, ``HistoricAverage``, …
        season_length: Steps of a season; by default what the row's frequency suggests (7 for
            daily, 24 for hourly, 12 for monthly values …).
        model_kwargs: Further arguments of the model's class.

    Raises:
        SpecError: At load: statsforecast has no such model, or it takes no such arguments.
        MissingDependencyError: At load: statsforecast is not installed.
    """

    model_type = ModelType.TIME_SERIES

    @classmethod
    def identify(cls, **_: Any) -> str | None:
        try:  # there are no weights: the library is the model
            return f"statsforecast=={metadata.version('statsforecast')}"
        except metadata.PackageNotFoundError:
            return None

    def __init__(
        self,
        model: str = "AutoETS",
        season_length: int | None = None,
        model_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if season_length is not None and season_length < 1:
            raise SpecError(f"season_length must be at least 1, got {season_length}")
        self._name = model
        self._season_length = season_length
        self._kwargs = dict(model_kwargs or {})
        self._models: Any = None
        self._version = ""

    def load(self) -> None:
        # Its models are compiled ahead of time; this only keeps its optional fugue quiet.
        os.environ.setdefault("NIXTLA_ID_AS_COL", "1")
        try:
            library = importlib.import_module("statsforecast")
            self._models = importlib.import_module("statsforecast.models")
        except ImportError as e:
            raise MissingDependencyError(
                f"backend 'statsforecast' needs a package: "
                f"pip install 'sheaf_dagster[statsforecast]' ({e})"
            ) from e
        self._version = str(library.__version__)
        cls = getattr(self._models, self._name, None)
        if not (isinstance(cls, type) and hasattr(cls, "forecast")):
            raise SpecError(
                f"statsforecast {self._version} has no model {self._name!r}; "
                "for example AutoETS, AutoTheta, AutoARIMA, AutoCES, SeasonalNaive"
            )
        self._build(7)

    def predict(self, request: TimeSeriesRequest) -> TimeSeriesResponse:
        import numpy as np

        if request.feature_ref is not None:
            raise ValueError("'feature_ref' must be looked up before a batch job; give 'history'")
        history = _filled(np.asarray(request.target_history, dtype=np.float64))
        if not len(history):
            raise ValueError("'history' has no values to forecast from")
        levels = _interval_levels(request)
        season = self._season_length or _SEASONS[request.frequency]
        fitted, used = self._forecast(history, request.horizon, season, levels)
        return TimeSeriesResponse(
            request_id=request.request_id,
            model_name=request.model_name,
            metadata={"model": used},
            mean=fitted["mean"].tolist(),
            quantiles=_quantiles(fitted, request)
            if request.output_mode is OutputMode.QUANTILES
            else None,
            samples=_samples(fitted, request)
            if request.output_mode is OutputMode.SAMPLES
            else None,
            horizon=request.horizon,
            frequency=request.frequency.value,
        )

    def _build(self, season: int) -> Any:
        cls = getattr(self._models, self._name)
        try:
            return cls(season_length=season, **self._kwargs)
        except TypeError:
            pass
        try:  # models without a season
            return cls(**self._kwargs)
        except TypeError as e:
            raise SpecError(f"statsforecast model {self._name}: {e}; check model_kwargs") from e

    def _forecast(
        self, history: Any, horizon: int, season: int, levels: list[float]
    ) -> tuple[dict[str, Any], str]:
        import numpy as np

        seasonal = len(history) >= 2 * season
        if len(history) >= 3 and np.ptp(history) > 0:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    result = self._build(season if seasonal else 1).forecast(
                        y=history, h=horizon, level=levels or None
                    )
            except Exception:
                pass
            else:
                if np.isfinite(result["mean"]).all() and _has_intervals(result, levels):
                    return result, self._name if seasonal else f"{self._name} (no season)"
        return _continued(history, horizon, season, levels), "last season"


def _filled(history: Any) -> Any:
    """Missing values take the one before them; leading ones the first that is there."""
    import numpy as np

    known = np.isfinite(history)
    if known.all():
        return history
    if not known.any():
        raise ValueError("'history' has no finite value")
    index = np.where(known, np.arange(len(history)), 0)
    np.maximum.accumulate(index, out=index)
    filled = history[index]
    filled[: int(np.argmax(known))] = history[int(np.argmax(known))]
    return filled


def _continued(history: Any, horizon: int, season: int, levels: list[float]) -> dict[str, Any]:
    """The last season (or value) repeated, with the spread of the past differences."""
    import numpy as np

    step = season if len(history) >= season else 1
    mean = np.resize(history[-step:], horizon)
    errors = history[step:] - history[:-step]
    sigma = float(np.sqrt(np.mean(errors**2))) if len(errors) else 0.0
    spread = sigma * np.sqrt(np.arange(horizon) // step + 1)
    result = {"mean": mean}
    for level in levels:
        z = _normal_quantile(0.5 + level / 200)
        result[f"lo-{level:g}"], result[f"hi-{level:g}"] = mean - z * spread, mean + z * spread
    return result


def _interval_levels(request: TimeSeriesRequest) -> list[float]:
    """Central intervals (percent) whose ends are the wanted quantiles."""
    if request.output_mode is OutputMode.SAMPLES:
        return [68.0]
    if request.output_mode is not OutputMode.QUANTILES:
        return []
    for q in request.quantile_levels:
        if not 0 < q < 1:
            raise ValueError(f"quantile level {q:g} is not between 0 and 1")
    return sorted({_level(q) for q in request.quantile_levels if q != 0.5})


def _level(q: float) -> float:
    return round(abs(2 * q - 1) * 100, 6)


def _bound(result: dict[str, Any], side: str, level: float) -> Any:
    for key in (f"{side}-{level:g}", f"{side}-{level}", f"{side}-{int(level)}"):
        if key in result:
            return result[key]
    return None


def _has_intervals(result: dict[str, Any], levels: list[float]) -> bool:
    import numpy as np

    bounds = [_bound(result, side, level) for level in levels for side in ("lo", "hi")]
    return all(b is not None and np.isfinite(b).all() for b in bounds)


def _quantiles(result: dict[str, Any], request: TimeSeriesRequest) -> dict[str, list[float]]:
    out = {}
    for q in request.quantile_levels:
        bound = result["mean"] if q == 0.5 else _bound(result, "lo" if q < 0.5 else "hi", _level(q))
        out[str(q)] = bound.tolist()
    return out


def _samples(result: dict[str, Any], request: TimeSeriesRequest) -> list[list[float]]:
    """Independent normal draws around the mean; seeded by the request, so that they repeat."""
    import numpy as np

    z = _normal_quantile(0.84)
    sigma = (_bound(result, "hi", 68.0) - _bound(result, "lo", 68.0)) / (2 * z)
    random = np.random.default_rng(request.request_id.int)
    draws = random.standard_normal((max(request.num_samples, 0), request.horizon))
    return (result["mean"] + draws * sigma).tolist()  # type: ignore[no-any-return]


def _normal_quantile(p: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(min(max(p, 1e-9), 1 - 1e-9)) if math.isfinite(p) else math.nan
