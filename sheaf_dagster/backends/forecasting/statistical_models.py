"""A model class of statsforecast with arguments from JSON, proven to work before a row is seen."""

from __future__ import annotations

import copy
import inspect
import json
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from sheaf_dagster.errors import SpecError

__all__ = ["StatisticalModel"]


class _Intervals(BaseModel):
    """Arguments of the library's ``ConformalIntervals``; without ``h`` it is each row's horizon."""

    model_config = ConfigDict(extra="forbid", strict=True)

    n_windows: int = Field(default=2, ge=2)
    h: int | None = Field(default=None, ge=1)
    method: Literal["conformal_distribution", "conformal_error"] = "conformal_distribution"


_Count = Annotated[int, Field(ge=0)]
_Length = Annotated[int, Field(ge=1)]
_Share = Annotated[float, Field(ge=0, le=1)]
_Rate = Annotated[float, Field(gt=0, le=1)]

_OWN_HINTS: dict[str, Any] = {
    # What the library's own annotations leave open, or have wrong (lags, test_kwargs).
    "AutoMFLES.n_windows": _Length,
    "MFLES.alpha": Annotated[float, Field(ge=0)],
    "MFLES.decay": float,
    "UCM.seasonal": Annotated[int, Field(ge=2)] | None,
    "SeasonalExponentialSmoothing.alpha": _Share,
    "SimpleExponentialSmoothing.alpha": _Share,
    "D": _Count | None,
    "alpha_d": _Share,
    "alpha_p": _Share,
    "autoregressive": _Length | None,
    "calib_frac": _Share,
    "config": dict[str, Annotated[list[Any], Field(min_length=1)]] | None,
    "constant": float,
    "d": _Count | None,
    "decay": Annotated[float, Field(ge=0)],
    "decomposition_type": Literal["multiplicative", "additive"],
    "fit_method": Literal["lbfgs", "bfgs", "newton", "nm", "powell", "cg", "ncg", "basinhopping"],
    **dict.fromkeys(["exogenous_lr", "residuals_lr", "seasonal_lr", "trend_lr"], _Rate),
    "fixed": dict[
        Annotated[str, Field(pattern=r"^((s?ar|s?ma)[1-9]\d*|intercept|drift|ex_\d+)$")],
        float | None,
    ]
    | None,
    "fourier_order": _Length | None,
    "lags": _Length | Annotated[list[_Length], Field(min_length=1)],
    **dict.fromkeys(["max_D", "max_P", "max_Q", "max_d", "max_order", "max_p", "max_q"], _Count),
    "ma": _Length | None,
    "max_rounds": _Length,
    "maxiter": _Length,
    "method": Literal["CSS-ML", "CSS", "ML"] | None,
    "metric": Literal["smape", "mape", "mse", "mae"],
    **dict.fromkeys(["max_alpha", "min_alpha"], _Rate),
    "n_changepoints": _Count | _Share | None,
    "n_samples": _Length,
    **dict.fromkeys(["p", "q"], _Count),
    "order": tuple[_Count, _Count, _Count],
    "season_length": _Length | Annotated[list[_Length], Field(min_length=1)],
    "seasonal_order": tuple[_Count, _Count, _Count],
    # Other tests are named in its docstrings, but the library runs this one whatever it is told.
    "seasonal_test": Literal["seas"],
    "seasonal_test_kwargs": dict[str, Any] | None,
    **dict.fromkeys(["start_P", "start_Q", "start_p", "start_q"], _Count),
    "step_size": _Length | None,
    "test": Literal["kpss"],
    "test_kwargs": dict[str, Any] | None,
    "test_size": _Length,
    "window_size": _Length,
}

_STARTS = {f"start_{order}": f"max_{order}" for order in "pqPQ"}
_ASCENDING = {
    "bc_lower_bound": "bc_upper_bound",
    "min_alpha": "max_alpha",
    **_STARTS,
}
"""Arguments that another one bounds. The library takes any, and quietly holds to one of the two."""

_SEASON_OF_PROOF = 4
"""At most. Whether arguments work is no question of a season's length, but time is: 74 s for
``ARIMA`` with a season of 52, 32 s for ``AutoETS`` with one of 288."""

_LEVEL = 80.0

_TERMS_OF_PROOF = 3
"""At most, of an autoregression and of a moving average: 183 s with 52 of them."""


class StatisticalModel:
    """Makes instances of one class of ``statsforecast.models``.

    Attributes:
        name: Name of the class.
        has_intervals: Whether it gives quantiles; known after ``prove``.
        has_paths: Whether it gives sample paths; known after ``prove``.

    Args:
        library: The module ``statsforecast.models``.
        name: Name of the class.
        kwargs: Its arguments. ``prediction_intervals`` holds those of ``ConformalIntervals``, and
            ``trend_forecaster`` (of MSTL) another model: ``{"model": …, "model_kwargs": {…}}``.

    Raises:
        SpecError: There is no such class, or it takes no such arguments.
    """

    def __init__(self, library: Any, name: str, kwargs: Mapping[str, Any]) -> None:
        cls: Any = getattr(library, name, None)
        if not (isinstance(cls, type) and hasattr(cls, "forecast")):
            raise SpecError(
                f"statsforecast has no model {name!r}; "
                "for example AutoETS, AutoTheta, AutoARIMA, AutoCES, SeasonalNaive"
            )
        if "X" in _required(cls.forecast):
            raise SpecError(
                f"statsforecast model {name} needs regressors, which rows of a time series don't "
                "have; choose another model"
            )
        self.name = name
        self._class: Any = cls
        self._parameters = inspect.signature(self._class).parameters
        self.has_intervals = self.has_paths = False
        kwargs = dict(kwargs)
        self._check(kwargs)
        given = kwargs.pop("prediction_intervals", None)
        self._conformal = None if given is None else _Intervals(**given)
        trend = kwargs.pop("trend_forecaster", None)
        self._trend: StatisticalModel | None = None
        if "trend_forecaster" in self._parameters:
            # Never the default, which all models of a process share and change.
            trend = (
                {"model": "AutoETS", "model_kwargs": {"model": "ZZN"}} if trend is None else trend
            )
            self._trend = StatisticalModel(library, trend["model"], trend.get("model_kwargs") or {})
        if isinstance(kwargs.get("fixed"), dict):  # null stands for a free coefficient
            kwargs["fixed"] = {k: math.nan if v is None else v for k, v in kwargs["fixed"].items()}
        self._kwargs = kwargs

    @property
    def fits_another_distribution(self) -> bool:
        """Whether it is asked for errors that ``forecast``, unlike ``fit``, takes as normal."""
        return bool(self._kwargs.get("distribution", "normal") != "normal")

    def window(self, horizon: int) -> int:
        """Steps to forecast for a horizon: conformal intervals are of one length.

        Raises:
            ValueError: The horizon is longer than that.
        """
        longest = self._conformal.h if self._conformal is not None else None
        if longest is not None and horizon > longest:
            raise ValueError(
                f"'horizon' is {horizon}, but conformal intervals are computed for {longest} steps; "
                "raise model_kwargs.prediction_intervals.h, or leave it out to take each row's own"
            )
        return longest or horizon

    @property
    def _brief(self) -> StatisticalModel:
        """The same with fewer terms of each kind, which is as good for a proof and soon done."""
        brief = copy.copy(self)
        brief._kwargs = {name: _shortened(name, v) for name, v in self._kwargs.items()}
        if self._kwargs.get("stepwise") is False:  # it tries each order up to this
            brief._kwargs["max_order"] = min(self._kwargs.get("max_order", 2), 2)
        return self if "fixed" in self._kwargs else brief

    def build(self, season: int | list[int], horizon: int | None = None) -> Any:
        """A new instance.

        Args:
            season: Steps of a season; without effect on a model that has none.
            horizon: Length of the windows of conformal intervals, where they are wanted.
        """
        kwargs = dict(self._kwargs)
        if "season_length" in self._parameters:
            kwargs.setdefault("season_length", season)
        if self._trend is not None:
            kwargs["trend_forecaster"] = self._trend.build(1, horizon)
        if horizon is not None and self._conformal is not None:
            from statsforecast.utils import ConformalIntervals

            kwargs["prediction_intervals"] = ConformalIntervals(
                n_windows=self._conformal.n_windows, h=horizon, method=self._conformal.method
            )
        return self._class(**kwargs)

    def prove(self, season: int | list[int]) -> None:
        """Fits a plain series and forecasts it.

        Raises:
            SpecError: That can't be done with these arguments.
        """
        if isinstance(season, int):
            season = min(season, _SEASON_OF_PROOF)
        longest = season if isinstance(season, int) else max(season)
        windows = self._conformal.n_windows + 2 if self._conformal is not None else 0
        enough = max(40, 3 * longest) + windows * self.window(2)
        error: Exception | None = None
        brief = self._brief
        # Arguments may fit one kind of series only: long histories, or counts with many zeros.
        for series in (_plain(enough, longest), _plain(enough + 160, longest), _counts(enough)):
            error = _failure(brief._forecast_once, series, season, [_LEVEL])
            if error is None:
                self.has_intervals = self.has_paths = True
                return
            # Where the arguments ask for intervals they must work, too.
            if self._conformal is None:
                error = _failure(brief._forecast_once, series, season, None)
            if error is None:
                self.has_paths = _failure(brief._simulate_once, series, season) is None
                return
        raise SpecError(
            f"statsforecast model {self.name} can't forecast a plain series with these arguments "
            f"({_shown(self._kwargs)}): {type(error).__name__}: {error}; check model_kwargs"
        ) from error

    def _forecast_once(
        self, series: Any, season: int | list[int], level: list[float] | None
    ) -> None:
        import numpy as np

        length = self.window(2)
        result = self.build(season, length).forecast(y=series, h=length, level=level)
        if not np.isfinite(result["mean"]).all():
            raise ValueError("its forecast isn't finite")
        if "distribution" in self._kwargs:  # forecast() doesn't look at it
            self.build(season).fit(series)

    def _simulate_once(self, series: Any, season: int | list[int]) -> None:
        self.build(season).fit(series).simulate(h=2, n_paths=2, seed=0)

    def _check(self, kwargs: dict[str, Any]) -> None:
        known = [name for name in self._parameters if name != "alias"]
        unknown = sorted(kwargs.keys() - self._parameters.keys())
        if unknown:
            raise SpecError(
                f"statsforecast model {self.name} has no argument {', '.join(map(repr, unknown))}; "
                f"model_kwargs may hold {', '.join(known)}"
            )
        missing = _required(self._class) - {"season_length", *kwargs}
        if missing:
            raise SpecError(
                f"statsforecast model {self.name} needs {', '.join(map(repr, sorted(missing)))}; "
                "give it in model_kwargs"
            )
        hints = get_type_hints(self._class.__init__)
        hints |= {k: v for k, v in _OWN_HINTS.items() if k in hints}
        hints |= {
            "prediction_intervals": _Intervals | None,
            "trend_forecaster": _Model | None,
        }
        for name, value in kwargs.items():
            hint = _OWN_HINTS.get(f"{self.name}.{name}", hints.get(name, Any))
            try:
                TypeAdapter(hint).validate_json(json.dumps(value), strict=True)
            except ValidationError as e:
                first = e.errors(include_url=False)[0]
                inner = (p for p in first["loc"] if isinstance(p, int) or p in _PARTS)
                path = ".".join([name, *map(str, inner)])
                raise SpecError(
                    f"model_kwargs.{path} of statsforecast model {self.name}: {first['msg']} "
                    f"(got {value!r})"
                ) from e
        for low, high in _ASCENDING.items():
            # The library's own start may be above a limit that is given: it starts there.
            if low in kwargs or (high in kwargs and low in known and low not in _STARTS):
                below, above = (kwargs.get(n, self._parameters[n].default) for n in (low, high))
                if below > above:
                    raise SpecError(
                        f"model_kwargs of statsforecast model {self.name}: {low} is {below}, "
                        f"above {high}, which is {above}"
                    )


def _shortened(name: str, value: Any) -> Any:
    """An argument that says how many terms a model has, with few of them."""
    if name in ("order", "seasonal_order"):
        p, d, q = value
        return min(p, _TERMS_OF_PROOF), d, min(q, _TERMS_OF_PROOF)
    if name == "lags":
        terms = value if isinstance(value, int) else len(set(value))
        return list(range(1, min(terms, _TERMS_OF_PROOF) + 1))
    return value


def _failure(attempt: Callable[..., None], *args: Any) -> Exception | None:
    """What the library raises; it has no class of its own for that."""
    import numpy as np

    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            attempt(*args)
    except MemoryError:
        raise
    except Exception as e:
        return e
    return None


class _Model(BaseModel):
    """Another model as an argument."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())

    model: str
    model_kwargs: dict[str, Any] = Field(default_factory=dict)


_PARTS = {*_Intervals.model_fields, *_Model.model_fields}


def _required(function: Any) -> set[str]:
    parameters = inspect.signature(function).parameters.values()
    named = (p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))
    return {p.name for p in named if p.default is p.empty}


def _plain(length: int, season: int) -> Any:
    """A positive series with trend, season and noise."""
    import numpy as np

    t = np.arange(length)
    noise = np.random.default_rng(0).normal(size=length)
    return 20 + 0.05 * t + 5 * np.sin(2 * np.pi * t / max(season, 2)) + noise


def _counts(length: int) -> Any:
    import numpy as np

    return np.random.default_rng(0).poisson(0.6, size=length).astype(float)


def _shown(kwargs: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={v!r}" for k, v in kwargs.items()) or "none"
