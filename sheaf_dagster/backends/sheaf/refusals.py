"""Rows that a backend of sheaf-serve would answer with something that was not asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from sheaf_dagster.backends.forecasting.magnitude import overflows

__all__ = ["refuse", "refuse_answer"]

_TRAINED = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
"""Quantile levels of Chronos-Bolt and of TimesFM."""


def refuse(name: str, backend: Any, request: Any) -> None:
    """Raises where a row's answer would be made of other values than the row's.

    Args:
        name: The backend's name there.
        backend: It, loaded.
        request: A row, of its class.

    Raises:
        ValueError: With the field and what to give in its place.
    """
    check = _CHECKS.get(name)
    said = check(backend, request) if check is not None else None
    if said is not None:
        raise ValueError(f"request {request.request_id}: {said}")


def refuse_answer(request: Any, answer: Any) -> None:
    """Raises where an answer lacks what its row asks for.

    Args:
        request: A row.
        answer: What the backend made of it.

    Raises:
        ValueError: The backend gives no such output.
    """
    mode = str(getattr(request, "output_mode", ""))
    if mode in ("quantiles", "samples", "probabilities") and getattr(answer, mode, ()) is None:
        raise ValueError(
            f"request {request.request_id}: the model gives no {mode}; ask for another 'output_mode'"
        )


def _chronos(backend: Any, request: Any) -> str | None:
    said = _history(request)
    if said is not None:
        return said
    if not backend._is_bolt:
        return None
    import numpy as np

    if overflows(np.atleast_2d(np.asarray(request.target_history, dtype=np.float32))):
        return (
            "the values of 'history' are too large, or too far apart, for the model, which computes "
            "in float32; give the values in another unit"
        )
    if request.output_mode == "quantiles":
        # It looks levels up by their text, and gives the median for any that it doesn't find.
        known = [str(level) for level in _TRAINED]
        for level in request.quantile_levels:
            if str(level) not in known:
                return (
                    f"the model has no quantile level {level:g}; it has {', '.join(known)}. Backend "
                    "'chronos2' of sheaf_dagster interpolates"
                )
    return None


def _timesfm(backend: Any, request: Any) -> str | None:
    said = _history(request)
    if said is None and request.output_mode == "quantiles":
        for level in request.quantile_levels:
            if not _TRAINED[0] <= level <= _TRAINED[-1]:
                said = f"the model has no quantile level {level:g}; its levels lie in 0.1..0.9"
    return said


def _moirai(backend: Any, request: Any) -> str | None:
    return _history(request, request.history)  # it sees all variates together


def _history(request: Any, read: Any = None) -> str | None:
    """What is wrong with the values of a history that a model reads; by default the target's."""
    import numpy as np

    target = np.asarray(request.target_history, dtype=np.float64)
    values = target if read is None else np.asarray(read, dtype=np.float64)
    if (beyond := _beyond_float32(values)) is not None:
        step = beyond // (values.size // len(values))
        return f"'history' is infinite, or beyond float32, at step {step}; a missing value is null"
    if np.isnan(target).all():
        return "'history' has no value to forecast from"
    return None


def _tabpfn(backend: Any, request: Any) -> str | None:
    for field in ("context_X", "query_X"):
        rows: Sequence[Sequence[float]] = getattr(request, field)
        at = _beyond_float32(list(chain.from_iterable(rows)))
        if at is not None:
            return (
                f"{field!r} is infinite, or beyond float32, in row {at // len(rows[0])}; a missing "
                "value is null"
            )
    return None


def _beyond_float32(values: Any) -> int | None:
    """Index of the first value that float32 makes infinite."""
    import numpy as np

    with np.errstate(over="ignore"):
        found = np.flatnonzero(np.isinf(np.asarray(values, dtype=np.float64).astype(np.float32)))
    return int(found[0]) if found.size else None


def _mace(backend: Any, request: Any) -> str | None:
    periodic = any(request.pbc) if isinstance(request.pbc, list) else request.pbc
    if periodic and request.cell is None:
        return "'pbc' needs 'cell', the lattice vectors"
    return None


def _videomae(backend: Any, request: Any) -> str | None:
    if request.task != backend._task:
        return (
            f"'task' is {request.task!r}, but the model was loaded for {backend._task!r}; set 'task' "
            "of the row, or of backend_kwargs"
        )
    return None


def _sdxl(backend: Any, request: Any) -> str | None:
    if (request.mask_b64 is not None) != (backend._mode == "inpaint"):
        return (
            "'mask_b64' goes with backend_kwargs mode='inpaint', and only with it; the model was "
            f"loaded with mode={backend._mode!r}"
        )
    return None


_CHECKS: dict[str, Callable[[Any, Any], str | None]] = {
    "chronos2": _chronos,
    "mace": _mace,
    "moirai": _moirai,
    "sdxl": _sdxl,
    "tabpfn": _tabpfn,
    "timesfm": _timesfm,
    "videomae": _videomae,
}
