"""Statistical forecasters that need no weights, through Nixtla's statsforecast."""

from __future__ import annotations

import os
import re
import warnings
from importlib import metadata
from statistics import NormalDist
from typing import Any, Literal

from sheaf_dagster.backends.base import ModelBackend
from sheaf_dagster.backends.common.libraries import require
from sheaf_dagster.backends.forecasting.statistical_forecasts import (
    mean_of,
    quantiles_of,
    samples_of,
)
from sheaf_dagster.backends.forecasting.statistical_models import StatisticalModel
from sheaf_dagster.contracts import (
    Frequency,
    ModelType,
    OutputMode,
    TimeSeriesRequest,
    TimeSeriesResponse,
)
from sheaf_dagster.errors import SpecError

__all__ = ["StatsForecastBackend"]

_NAME = "statsforecast"
_SEASONS = {
    Frequency.MINUTELY: 60,
    Frequency.FIVE_MINUTELY: 288,
    Frequency.FIFTEEN_MINUTELY: 96,
    Frequency.HOURLY: 24,
    Frequency.DAILY: 7,
    Frequency.WEEKLY: 52,
    Frequency.MONTHLY: 12,
}
_PUT_ASIDE = re.compile("disabling Box-Cox|No drift term")
"""What the library warns of when it does without what its arguments ask for."""


class StatsForecastBackend(ModelBackend):
    """Fits one statistical model to each row's history and forecasts from it.

    Mean and quantiles are those of the library's model for that history, season and horizon. Some
    models have no intervals of their own (Croston's, ADIDA, IMAPA, TSB, exponential smoothing with
    given parameters, window averages, MFLES). A row that asks such a model for quantiles fails. To get
    quantiles, ask for conformal ones: ``model_kwargs={"prediction_intervals": {"n_windows": 2}}``.
    There, ``h`` is the longest horizon that rows may ask for, by default each row's own, and
    ``method`` is the library's.

    Samples are paths whose steps depend on each other as the model defines. The row gives the seed.

    A missing value (null, NaN) takes the value before it, and ``metadata.filled_values`` of the response
    counts them. An infinite value fails the row. Only the target variate of a multivariate history is
    used, and the row is marked ``ignored_field``. The same mark is set for a ``target_index`` of a
    history without variates, and for a history for which the library ignores an argument (``TBATS``
    ignores its Box-Cox transformation if a value isn't positive). The library's own warnings are in
    ``metadata.warnings``.

    Args:
        model: Class of ``statsforecast.models``: ``AutoETS``, ``AutoTheta``, ``AutoARIMA``,
            ``AutoCES``, ``SeasonalNaive``, ``HistoricAverage``, …
        season_length: Steps of a season, or of several seasons (``MSTL``, ``TBATS``). By default
            derived from the row's frequency (7 for daily, 24 for hourly, 12 for monthly values …).
        model_kwargs: Further arguments of the model's class.
        fallback: What happens if the model can't be fitted to a history, for example because it is
            too short. ``"error"`` fails the row. ``"last_season"`` repeats the last season (or
            value), marks the row as ``fell_back``, and gives the reason in its metadata.

    Raises:
        SpecError: At load: statsforecast has no such model, or the model can't forecast with these
            arguments.
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
        season_length: int | list[int] | None = None,
        model_kwargs: dict[str, Any] | None = None,
        fallback: Literal["error", "last_season"] = "error",
    ) -> None:
        if fallback not in ("error", "last_season"):
            raise SpecError(f"fallback must be 'error' or 'last_season', got {fallback!r}")
        self._kwargs = dict(model_kwargs or {})
        inner = self._kwargs.pop("season_length", None)
        if inner is not None and season_length is not None:
            raise SpecError("season_length is given twice: take it out of model_kwargs")
        self._season = _checked_season(season_length if inner is None else inner)
        self._name = model
        self._fallback = fallback
        self._model: StatisticalModel  # since load()

    def load(self) -> None:
        # Its models are compiled ahead of time; this only keeps its optional fugue quiet.
        os.environ.setdefault("NIXTLA_ID_AS_COL", "1")
        _, library = require(_NAME, _NAME, "statsforecast", "statsforecast.models")
        self._model = StatisticalModel(library, self._name, self._kwargs)
        self._model.prove(self._season or 7)

    def predict(self, request: TimeSeriesRequest) -> TimeSeriesResponse:
        import numpy as np

        self._check(request)
        history, filled = _filled(np.array(request.target_history, dtype=np.float64))
        response = TimeSeriesResponse(
            request_id=request.request_id,
            model_name=request.model_name,
            metadata={"model": self._name},
            mean=[],
            horizon=request.horizon,
            frequency=request.frequency.value,
        )
        if filled:
            response.metadata["filled_values"] = filled
        if request.n_variates > 1 or request.target_index > 0:
            response.deviates("ignored_field")
        season = self._season or _SEASONS[request.frequency]
        try:
            with warnings.catch_warnings(record=True) as told, np.errstate(all="ignore"):
                warnings.simplefilter("always")
                self._answer(request, history, season, response)
            self._note_ignored(season, [str(w.message) for w in told], response)
        except MemoryError:
            raise
        except Exception as e:  # the library has no class of its own for what it can't fit
            reason = f"{self._name} can't forecast this history ({len(history)} values): {e}"
            if self._fallback == "error":
                raise ValueError(
                    f"{reason}; fix the row, choose another model, or set fallback='last_season'"
                ) from e
            _continue(request, history, season, response)
            response.metadata |= {"model": "last season", "reason": reason}
            response.deviates("fell_back")
        return response

    def _note_ignored(
        self, season: int | list[int], told: list[str], response: TimeSeriesResponse
    ) -> None:
        """Notes arguments of the model that the library has put aside for this history."""
        found = [text for text in dict.fromkeys(told) if _PUT_ASIDE.search(text)]
        if found and getattr(self._model.build(season), "use_boxcox", True) is None:
            found = [text for text in found if "Box-Cox" not in text]  # the library may choose
        if found:
            response.metadata["warnings"] = found
            response.deviates("ignored_field")

    def _check(self, request: TimeSeriesRequest) -> None:
        """Raises ValueError for what no history and no fallback can mend."""
        if request.feature_ref is not None:
            raise ValueError("'feature_ref' must be looked up before a batch job; give 'history'")
        model, mode = self._model, request.output_mode
        if mode is OutputMode.MEAN:
            return
        if not (model.has_intervals if mode is OutputMode.QUANTILES else model.has_paths):
            raise ValueError(
                f"output_mode is {mode.value!r}, but {self._name} has no intervals of its own; ask "
                'for conformal ones: model_kwargs={"prediction_intervals": {"n_windows": 2}}'
            )
        model.window(request.horizon)
        if mode is OutputMode.SAMPLES and request.num_samples < 1:
            raise ValueError(f"'num_samples' must be at least 1, got {request.num_samples}")
        if mode is OutputMode.QUANTILES:
            for q in request.quantile_levels:
                if not 0 < q < 1:
                    raise ValueError(f"quantile level {q:g} is not between 0 and 1")

    def _answer(
        self,
        request: TimeSeriesRequest,
        history: Any,
        season: int | list[int],
        response: TimeSeriesResponse,
    ) -> None:
        """Fills a response with what the library's model gives."""
        model, mode, horizon = self._model, request.output_mode, request.horizon
        seed = request.request_id.int % 2**32
        if mode is OutputMode.MEAN:
            mean = mean_of(model, history, season, horizon)
        elif mode is OutputMode.QUANTILES:
            levels = request.quantile_levels
            mean, ends = quantiles_of(model, history, season, horizon, levels, seed)
            response.quantiles = {
                str(q): _finite(end, "interval") for q, end in zip(levels, ends, strict=True)
            }
        else:
            mean, paths = samples_of(model, history, season, horizon, request.num_samples, seed)
            response.samples = _finite(paths, "sample path")
        response.mean = _finite(mean, "forecast")


def _finite(values: Any, what: str) -> Any:
    """Numbers as lists.

    Raises:
        ValueError: One isn't finite.
    """
    import numpy as np

    if not np.isfinite(values).all():
        raise ValueError(f"its {what} isn't finite")
    return np.asarray(values).tolist()


def _checked_season(season: Any) -> int | list[int] | None:
    given = season if isinstance(season, list) else [season]
    if season is None or (given and all(type(s) is int and s >= 1 for s in given)):
        return season  # type: ignore[no-any-return]
    raise SpecError(f"season_length must be at least 1, or a list of such numbers, got {season!r}")


def _filled(history: Any) -> tuple[Any, int]:
    """Missing values take the one before them; leading ones the first that is there.

    Returns:
        The whole history, and how many values were missing.

    Raises:
        ValueError: A value is infinite, or all are missing.
    """
    import numpy as np

    if (infinite := np.flatnonzero(np.isinf(history))).size:
        raise ValueError(f"'history' is infinite at step {infinite[0]}; a missing value is null")
    known = ~np.isnan(history)
    if not known.any():
        raise ValueError("'history' has no value to forecast from")
    missing = int(len(history) - known.sum())
    if not missing:
        return history, 0
    index = np.where(known, np.arange(len(history)), 0)
    np.maximum.accumulate(index, out=index)
    filled = history[index]
    filled[: int(np.argmax(known))] = history[int(np.argmax(known))]
    return filled, missing


def _continue(
    request: TimeSeriesRequest,
    history: Any,
    season: int | list[int],
    response: TimeSeriesResponse,
) -> None:
    """The last season (or value) repeated, with the spread of the past differences."""
    import numpy as np

    horizon = request.horizon
    longest = season if isinstance(season, int) else max(season)
    step = longest if len(history) >= longest else 1
    mean = np.resize(history[-step:], horizon)
    errors = history[step:] - history[:-step]
    sigma = float(np.sqrt(np.mean(errors**2))) if len(errors) else 0.0
    spread = sigma * np.sqrt(np.arange(horizon) // step + 1)
    response.mean = mean.tolist()
    response.quantiles = response.samples = None
    if request.output_mode is OutputMode.QUANTILES:
        response.quantiles = {
            str(q): (mean + NormalDist().inv_cdf(q) * spread).tolist()
            for q in request.quantile_levels
        }
    if request.output_mode is OutputMode.SAMPLES:
        # Each season is the one before it and an error, so errors add up from season to season.
        draws = np.random.default_rng(request.request_id.int % 2**32).standard_normal(
            (request.num_samples, -(-horizon // step), step)
        )
        sums = draws.cumsum(axis=1).reshape(request.num_samples, -1)[:, :horizon]
        response.samples = (mean + sigma * sums).tolist()
