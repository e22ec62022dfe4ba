"""Rows and answers of tabular models. Field-compatible with sheaf-serve 0.13."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from sheaf_dagster.contracts.base import BaseRequest, BaseResponse, ModelType

__all__ = ["TabularRequest", "TabularResponse"]


class TabularRequest(BaseRequest):
    """Feature rows to predict, with labelled examples for models that learn in context.

    Attributes:
        context_X: Features of the examples (shape: n_context × n_features). ``null`` is a missing
            value, and read as NaN.
        context_y: Labels of the examples (length n_context).
        query_X: Features to predict (shape: n_query × n_features), likewise.
        task: What the labels are.
        feature_names: Names of the columns.
        categorical_feature_indices: Columns that are categories.
        output_mode: ``probabilities`` goes with classification, ``quantiles`` with regression.
        quantile_levels: Levels between 0 and 1, for ``output_mode="quantiles"``.
    """

    model_type: Literal[ModelType.TABULAR] = ModelType.TABULAR

    context_X: list[list[float | None]]
    context_y: list[float | int]
    query_X: list[list[float | None]]
    task: Literal["classification", "regression"] = "classification"
    feature_names: list[str] | None = None
    categorical_feature_indices: list[int] | None = None
    output_mode: Literal["predictions", "probabilities", "quantiles"] = "predictions"
    quantile_levels: list[float] = Field(default_factory=lambda: [0.1, 0.5, 0.9])

    @model_validator(mode="after")
    def _read_missing_values(self) -> Self:
        for row in (*self.context_X, *self.query_X):
            if None in row:
                row[:] = [math.nan if value is None else value for value in row]
        return self

    @model_validator(mode="after")
    def _check_shapes(self) -> Self:
        if len(self.context_X) != len(self.context_y):
            raise ValueError(
                f"'context_X' has {len(self.context_X)} rows, but 'context_y' has "
                f"{len(self.context_y)}; give each row one label"
            )
        if self.context_X and self.query_X:
            given, asked = len(self.context_X[0]), len(self.query_X[0])
            if given != asked:
                raise ValueError(
                    f"'context_X' has {given} features, but 'query_X' has {asked}; give both the "
                    "same features"
                )
        if (self.task, self.output_mode) == ("regression", "probabilities"):
            raise ValueError("output_mode='probabilities' needs task='classification'")
        if (self.task, self.output_mode) == ("classification", "quantiles"):
            raise ValueError("output_mode='quantiles' needs task='regression'")
        return self


class TabularResponse(BaseResponse):
    """Predictions for the query rows.

    Attributes:
        predictions: One a query row: a class label or a value.
        probabilities: Of each class (shape: n_query × n_classes).
        quantiles: One list of length n_query for each level, keyed ``"0.1"``, …
        classes: Labels of the probability columns.
        task: The request's own.
        n_context: Number of examples.
        n_query: Number of query rows.
    """

    model_type: Literal[ModelType.TABULAR] = ModelType.TABULAR

    predictions: list[float | int]
    probabilities: list[list[float]] | None = None
    quantiles: dict[str, list[float]] | None = None
    classes: list[int | str] | None = None
    task: str
    n_context: int
    n_query: int
