"""Rows and answers of forecasters. Field-compatible with sheaf-serve 0.13."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from sheaf_dagster.contracts.base import BaseRequest, BaseResponse, ModelType, passes

__all__ = ["FeatureRef", "Frequency", "OutputMode", "TimeSeriesRequest", "TimeSeriesResponse"]


class Frequency(StrEnum):
    """Spacing of a series."""

    MINUTELY = "1min"
    FIVE_MINUTELY = "5min"
    FIFTEEN_MINUTELY = "15min"
    HOURLY = "1h"
    DAILY = "1d"
    WEEKLY = "1W"
    MONTHLY = "1M"


class OutputMode(StrEnum):
    """What a forecast consists of, beside its mean."""

    MEAN = "mean"
    QUANTILES = "quantiles"
    SAMPLES = "samples"


class FeatureRef(BaseModel):
    """Where a feature store (Feast) holds a history, in place of the history itself.

    Attributes:
        feature_view: The view.
        feature_name: The column in it; it must hold the whole history as a list.
        entity_key: Join key of the entity.
        entity_value: The entity to look up.
    """

    feature_view: str
    feature_name: str
    entity_key: str
    entity_value: str


class TimeSeriesRequest(BaseRequest):
    """One series to forecast.

    Attributes:
        history: Past values, oldest first: a list of numbers, or of equally long lists
            (shape: time × variates) where the series is multivariate. A missing value is null
            (or NaN).
        feature_ref: Where to look up the history instead. Exactly one of the two is given.
        target_index: Variate to forecast, counted from 0.
        horizon: Number of future steps.
        frequency: Spacing of the values.
        output_mode: What is wanted beside the mean.
        quantile_levels: Levels between 0 and 1, for ``output_mode="quantiles"``.
        num_samples: Paths to draw, for ``output_mode="samples"``.
    """

    model_type: Literal[ModelType.TIME_SERIES] = ModelType.TIME_SERIES

    history: list[float | None] | list[list[float | None]] | None = None
    feature_ref: FeatureRef | None = None
    target_index: int = Field(default=0, ge=0)
    horizon: int = Field(gt=0)
    frequency: Frequency
    output_mode: OutputMode = OutputMode.MEAN
    quantile_levels: list[float] = Field(default_factory=lambda: [0.1, 0.5, 0.9])
    num_samples: int = 20

    @model_validator(mode="after")
    @passes(history=list[float | None], feature_ref=None)
    def _check_input(self) -> Self:
        history = self.history
        if history is None:
            if self.feature_ref is None:
                raise ValueError("needs 'history' (or 'feature_ref', to look it up)")
            return self
        if self.feature_ref is not None:
            raise ValueError("has both 'history' and 'feature_ref'; give one of them")
        # The contract's union makes the list uniform: its first element speaks for all.
        if history and isinstance(history[0], list):
            rows: list[Any] = history
            width = len(rows[0])
            for i, row in enumerate(rows):
                if len(row) != width:
                    raise ValueError(
                        f"'history' is ragged: time step {i} has {len(row)} variates, "
                        f"but the first one has {width}"
                    )
            if self.target_index >= width:
                raise ValueError(
                    f"'target_index' is {self.target_index}, but 'history' has {width} variates "
                    f"(0 to {width - 1})"
                )
        return self

    @property
    def n_variates(self) -> int:
        """Number of variates; 1 for a univariate series."""
        if self.history and isinstance(self.history[0], list):
            return len(self.history[0])
        return 1

    @property
    def target_history(self) -> list[float | None]:
        """The past of the variate to forecast, oldest first."""
        if not self.history:
            return []
        if isinstance(self.history[0], list):
            rows: list[Any] = self.history
            return [row[self.target_index] for row in rows]
        values: list[Any] = self.history
        return values


class TimeSeriesResponse(BaseResponse):
    """A forecast.

    Attributes:
        mean: Point forecast; length ``horizon``.
        quantiles: One list of length ``horizon`` for each level, keyed ``"0.1"``, …
        samples: Drawn paths (shape: num_samples × horizon).
        horizon: The request's own.
        frequency: The request's own.
    """

    model_type: Literal[ModelType.TIME_SERIES] = ModelType.TIME_SERIES

    mean: list[float]
    quantiles: dict[str, list[float]] | None = None
    samples: list[list[float]] | None = None
    horizon: int
    frequency: str
