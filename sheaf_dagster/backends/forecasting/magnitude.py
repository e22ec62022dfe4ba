"""Values that are too large for a forecaster that scales its input in float32."""

from __future__ import annotations

from typing import Any

__all__ = ["LARGE", "overflows"]

LARGE = 1e18
"""Up to here squares are float32, too."""
_TOO_LARGE = 1e24
"""From here on the rounding error of a mean has a square that isn't."""


def overflows(values: Any) -> bool:
    """Whether a variance overflows, by which Bolt and Chronos-2 scale their input.

    They put the largest float32 in its place then, and their answers have no likeness to the input.

    Args:
        values: An array of shape variates × time.
    """
    import numpy as np

    for variate in values:
        known = variate[np.isfinite(variate)].astype(np.float64)
        largest = np.abs(known).max(initial=0)
        if largest > _TOO_LARGE:
            return True
        if largest > LARGE and np.square(known - known.mean()).sum() > np.finfo(np.float32).max:
            return True
    return False
