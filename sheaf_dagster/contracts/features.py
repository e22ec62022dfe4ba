"""Rows and answers of fitted models: one record of features a row, no examples with it."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, JsonValue, model_validator

from sheaf_dagster.contracts.base import BaseRequest, BaseResponse

__all__ = ["FEATURES", "FeaturesRequest", "FeaturesResponse"]

FEATURES = "features"
"""Model type under which the contract is registered."""


class FeaturesRequest(BaseRequest):
    """One record to predict from.

    Attributes:
        features: Values by column name, or a list of them in the order of the model's columns.
            ``null`` is a missing value.
        output_mode: What is wanted beside the prediction.
        quantile_levels: Levels between 0 and 1, for ``output_mode="quantiles"``.
    """

    model_type: Literal["features"] = "features"

    features: dict[str, JsonValue] | list[JsonValue] = Field(min_length=1)
    output_mode: Literal["predictions", "probabilities", "quantiles"] = "predictions"
    quantile_levels: list[float] = Field(default_factory=lambda: [0.1, 0.5, 0.9])

    @model_validator(mode="after")
    def _check_levels(self) -> Self:
        for level in self.quantile_levels:
            if not 0 < level < 1:
                raise ValueError(f"quantile level {level:g} is not between 0 and 1")
        return self


class FeaturesResponse(BaseResponse):
    """The prediction of one record.

    Attributes:
        prediction: A label or a value; a list or an object where the model has several outputs.
        probabilities: Of each class, by its label as text; one such object for each output where
            the model has several, in their order.
        quantiles: A value for each level, keyed ``"0.1"``, …; a list of them where the model has
            several outputs.
    """

    model_type: Literal["features"] = "features"

    prediction: Any
    probabilities: dict[str, float] | list[dict[str, float]] | None = None
    quantiles: dict[str, float | list[float]] | None = None
