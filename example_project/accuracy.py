"""How good forecasts are, as points and as distributions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

__all__ = ["Accuracy", "read_responses", "score"]


@dataclass(frozen=True)
class Accuracy:
    """Errors of forecasts over all routes and days; lower is better for the first two.

    Attributes:
        wape: Sum of the absolute errors of the mean over the sum of actuals.
        quantile_loss: The weighted quantile loss of Amazon's and GluonTS's papers: twice the
            pinball loss over the sum of actuals, the mean over all quantiles of the answers.
        coverage: Share of actuals inside the interval from the 0.1 to the 0.9 quantile. It should
            be 0.8.
        values: How many actuals there were.
    """

    wape: float
    quantile_loss: float
    coverage: float
    values: int

    def to_dict(self, prefix: str = "") -> dict[str, float]:
        """JSON-ready form, each name behind ``prefix``."""
        return {f"{prefix}{name}": value for name, value in asdict(self).items()}

    @classmethod
    def of(cls, values: Mapping[str, Any], prefix: str = "") -> Accuracy:
        """From ``to_dict`` of the same prefix, whatever else the mapping holds."""
        return cls(**{field.name: values[f"{prefix}{field.name}"] for field in fields(cls)})

    @classmethod
    def mean(cls, scores: Iterable[Accuracy]) -> Accuracy:
        """The mean of several days' scores."""
        all_of = list(scores)
        return cls(
            wape=sum(s.wape for s in all_of) / len(all_of),
            quantile_loss=sum(s.quantile_loss for s in all_of) / len(all_of),
            coverage=sum(s.coverage for s in all_of) / len(all_of),
            values=sum(s.values for s in all_of),
        )


def read_responses(path: Path) -> list[dict]:
    """The rows of a file of responses."""
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def score(responses: Sequence[dict], actuals: Sequence[Sequence[float | None]]) -> Accuracy:
    """Scores forecasts against what happened; both are in the order of the routes."""
    error = pinball = total = 0.0
    inside = count = 0
    for response, actual in zip(responses, actuals, strict=True):
        quantiles = {float(level): values for level, values in response["quantiles"].items()}
        for t, value in enumerate(actual):
            if value is None:
                continue
            error += abs(response["mean"][t] - value)
            losses = [
                max(level * (value - line[t]), (1 - level) * (line[t] - value))
                for level, line in quantiles.items()
            ]
            pinball += 2 * sum(losses) / len(losses)
            inside += quantiles[0.1][t] <= value <= quantiles[0.9][t]
            total += value
            count += 1
    return Accuracy(error / total, pinball / total, inside / count, count)
