"""Series for statsforecast's models, which answer them here and by hand."""

from __future__ import annotations

import inspect
from uuid import UUID

import numpy as np
import pytest

from sheaf_dagster.backends.statsforecast import StatsForecastBackend
from sheaf_dagster.contracts import TimeSeriesRequest

models = pytest.importorskip("statsforecast.models")

_T = np.arange(84)
_NOISE = np.random.default_rng(7).normal(size=84)
SEASONAL = (30 + 0.1 * _T + 6 * np.sin(2 * np.pi * _T / 7) + _NOISE).round(3).tolist()
DEMAND = np.random.default_rng(3).poisson(0.8, size=60).astype(float).tolist()

# Arguments of the models that can't be made without any.
NEEDED = {
    "AutoMFLES": {"test_size": 7},
    "AutoRegressive": {"lags": [1, 7]},
    "ConstantModel": {"constant": 2.5},
    "SeasonalExponentialSmoothing": {"alpha": 0.3},
    "SeasonalWindowAverage": {"window_size": 2},
    "SimpleExponentialSmoothing": {"alpha": 0.3},
    "TSB": {"alpha_d": 0.2, "alpha_p": 0.2},
    "WindowAverage": {"window_size": 5},
}


def row(**fields) -> TimeSeriesRequest:
    defaults = {
        "request_id": UUID(int=11),
        "model_name": "m",
        "history": SEASONAL,
        "horizon": 5,
        "frequency": "1d",
    }
    return TimeSeriesRequest(**{**defaults, **fields})


def loaded(model: str, **kwargs) -> StatsForecastBackend:
    extra = kwargs.pop("model_kwargs", {})
    backend = StatsForecastBackend(model, model_kwargs={**NEEDED.get(model, {}), **extra}, **kwargs)
    backend.load()
    return backend


def by_hand(model: str, season: int = 7, **kwargs):
    cls = getattr(models, model)
    if "season_length" in inspect.signature(cls.__init__).parameters:
        kwargs["season_length"] = season
    return cls(**NEEDED.get(model, {}), **kwargs)
