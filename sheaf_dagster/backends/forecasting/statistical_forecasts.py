"""What one of statsforecast's models says of a history: mean, quantiles, sample paths."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sheaf_dagster.backends.forecasting.statistical_models import StatisticalModel

__all__ = ["level_of", "mean_of", "quantiles_of", "samples_of"]

_ONE_SIGMA = 100 * (2 * NormalDist().cdf(1) - 1)
"""Level (percent) of the interval that reaches one standard deviation to each side."""


def mean_of(model: StatisticalModel, history: Any, season: int | list[int], horizon: int) -> Any:
    """The point forecast.

    Args:
        model: The model.
        history: Past values, all finite (shape: time).
        season: Steps of a season.
        horizon: Number of future steps.

    Returns:
        Array of the length ``horizon``.
    """
    return _forecast(model, model.build(season), history, horizon, None)["mean"]


def quantiles_of(
    model: StatisticalModel,
    history: Any,
    season: int | list[int],
    horizon: int,
    levels: Sequence[float],
    seed: int,
) -> tuple[Any, list[Any]]:
    """The point forecast, and one array of the length ``horizon`` for each level.

    The median is the middle of the narrowest interval, which is the mean but for a few models.

    Args:
        model: A model that ``has_intervals``.
        history: Past values, all finite (shape: time).
        season: Steps of a season.
        horizon: Number of future steps.
        levels: Quantile levels, between 0 and 1.
        seed: For the one model that draws its intervals.
    """
    import numpy as np

    length = model.window(horizon)
    made = model.build(season, length)
    wanted = sorted({level_of(q) for q in levels})
    if hasattr(made, "_intervals_from_samples"):  # its forecast() draws them without a seed
        paths = made.simulate(y=history, h=length, n_paths=made.n_samples, seed=seed)
        result = made.predict(h=length) | made._intervals_from_samples(paths, wanted)
    else:
        result = _forecast(model, made, history, length, wanted or None)
    sides = {q: ("lo",) if q < 0.5 else ("hi",) if q > 0.5 else ("lo", "hi") for q in levels}
    ends = [np.mean([result[f"{s}-{level_of(q)}"] for s in sides[q]], axis=0) for q in levels]
    return result["mean"][:horizon], [end[:horizon] for end in ends]


def samples_of(
    model: StatisticalModel,
    history: Any,
    season: int | list[int],
    horizon: int,
    paths: int,
    seed: int,
) -> tuple[Any, Any]:
    """The point forecast, and paths whose steps depend on each other as the model says.

    Args:
        model: A model that ``has_paths``.
        history: Past values, all finite (shape: time).
        season: Steps of a season.
        horizon: Number of future steps.
        paths: Number of paths.
        seed: The same one gives the same paths.

    Returns:
        Arrays of the shapes ``horizon`` and paths × horizon.
    """
    length = model.window(horizon)
    made = model.build(season, length).fit(history)
    mean = made.predict(h=length)["mean"]
    return mean[:horizon], _paths(made, length, paths, seed)[:, :horizon]


def level_of(quantile: float) -> float:
    """The central interval (percent) of which a quantile is an end."""
    return round(abs(2 * quantile - 1) * 100, 6)


def _forecast(
    model: StatisticalModel, made: Any, history: Any, horizon: int, levels: list[float] | None
) -> Any:
    if model.fits_another_distribution:  # which forecast() doesn't look at
        return made.fit(history).predict(h=horizon, level=levels)
    return made.forecast(y=history, h=horizon, level=levels)


def _paths(made: Any, horizon: int, paths: int, seed: int) -> Any:
    """Paths of a fitted model (shape: paths × horizon).

    Conformal intervals come first: paths are then the forecast with the errors of one window added
    or subtracted, as the library has it where it computes the intervals. Otherwise the library
    simulates, where it can. Else paths are made that have its intervals as their marginals.
    """
    import numpy as np

    trend = getattr(made, "trend_forecaster", None)
    if trend is not None:  # MSTL: a seasonal component, the same each time, upon another model
        seasonal = made.predict(h=horizon)["mean"] - trend.predict(h=horizon)["mean"]
        return _paths(trend, horizon, paths, seed) + seasonal
    if getattr(made, "prediction_intervals", None) is not None:
        errors = np.vstack([-made._cs, made._cs])  # shape: 2 · windows × horizon
        rows = np.random.default_rng(seed).integers(len(errors), size=paths)
        return np.asarray(made.predict(h=horizon)["mean"]) + errors[rows]
    fitted = getattr(made, "model_", None)
    if isinstance(fitted, dict) and "arma" in fitted:
        from statsforecast.arima import simulate_arima  # of these models only AutoARIMA calls it

        return simulate_arima(fitted, h=horizon, n_paths=paths, seed=seed)
    try:
        return made.simulate(h=horizon, n_paths=paths, seed=seed)
    except (AttributeError, NotImplementedError):
        return _paths_from_intervals(made, horizon, paths, seed)


def _paths_from_intervals(made: Any, horizon: int, paths: int, seed: int) -> Any:
    """Paths with the marginals of a model's intervals.

    The error of a linear model's forecast is a weighted sum of one innovation a step. The weights
    follow, but for their signs, from how the variance grows with the horizon. Where it shrinks
    (GARCH) steps are drawn independently.
    """
    import numpy as np

    result = made.predict(h=horizon, level=[_ONE_SIGMA])
    low, high = (np.asarray(result[f"{side}-{_ONE_SIGMA}"]) for side in ("lo", "hi"))
    mean = np.asarray(result["mean"])
    variance = ((high - low) / 2) ** 2
    z = np.random.default_rng(seed).standard_normal((paths, horizon))
    growth = np.diff(variance)
    if variance[0] > 0 and (growth >= -1e-9 * variance[0]).all():
        weights = np.sqrt(np.concatenate([variance[:1], growth.clip(0)]) / variance[0])
        sums = np.stack([np.convolve(row, weights)[:horizon] for row in z])
        z = sums * np.sqrt(variance[0] / variance)
    return mean + np.where(z > 0, z * (high - mean), z * (mean - low))
