"""How good the forecasts are, next to repeating last week."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from example_project.series import SEASON

__all__ = ["Accuracy", "read_responses", "score"]


@dataclass(frozen=True)
class Accuracy:
    """Errors of one day's forecasts over all routes.

    Attributes:
        wape: Sum of absolute errors over the sum of actuals.
        naive_wape: The same of the seasonal-naive forecast (last week again).
        coverage: Share of actuals inside the 80 % interval.
        routes: How many routes.
    """

    wape: float
    naive_wape: float
    coverage: float
    routes: int

    def to_dict(self) -> dict[str, float]:
        """JSON-ready form."""
        return asdict(self)


def read_responses(path: Path) -> list[dict]:
    """The rows of a file of responses."""
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def score(
    responses: Sequence[dict],
    histories: Sequence[Sequence[float]],
    actuals: Sequence[Sequence[float]],
) -> Accuracy:
    """Scores forecasts against what happened; rows are in the order of the routes."""
    error = naive = total = 0.0
    inside = count = 0
    for response, history, actual in zip(responses, histories, actuals, strict=True):
        low, high = response["quantiles"]["0.1"], response["quantiles"]["0.9"]
        for t, value in enumerate(actual):
            error += abs(response["mean"][t] - value)
            naive += abs(history[t % SEASON - SEASON] - value)
            total += value
            inside += low[t] <= value <= high[t]
            count += 1
    return Accuracy(error / total, naive / total, inside / count, len(responses))
