"""A row's JSON values as an array of a model's own type, where that costs digits at most."""

from __future__ import annotations

from typing import Any

__all__ = ["cast", "numpy_type"]

_BFLOAT16_OVERFLOWS_AT = 3.3961775292304957e38
"""From here on rounding to bfloat16, of which numpy knows nothing, gives infinity."""

_REGISTERED = 2
"""What ``numpy.dtype.isbuiltin`` says of types that aren't numpy's own, such as float8 or int4."""


def numpy_type(dtype: Any) -> Any:
    """The numpy type that ``cast`` gives for a type, or a type's name, of a model.

    ``str`` gives objects, ``bfloat16`` floats of 32 bits.

    Raises:
        TypeError: There is no such type.
    """
    import numpy as np

    made = np.dtype({"str": "object", "bfloat16": "float32"}.get(str(dtype), dtype))
    if made.isbuiltin == _REGISTERED:  # a package that some other library has imported brought it
        raise TypeError(f"data type {str(dtype)!r} is not one of numpy's own")
    return made


def cast(value: Any, dtype: Any) -> Any:
    """An array of a number, a text, or nested lists of them.

    JSON has one kind of number: whether one fits is a question of its size, not of how it is
    written. ``null`` is NaN where the type has that.

    Args:
        value: The value of a row.
        dtype: A numpy type, or a type's name; also ``bfloat16`` and ``str``.

    Raises:
        ValueError: A value isn't of the type, or is beyond its range; it is named with its place.
    """
    import numpy as np

    name, wanted = str(dtype), numpy_type(dtype)
    if wanted.kind == "O" and name != "str":
        return np.asarray(value, dtype=object)
    if wanted.kind in "OUS":
        return _each(value, name, _text).astype(wanted)
    raw = np.asarray(value)
    if wanted.kind in "iub":
        if raw.dtype.kind not in "iub":  # of integers with a float among them numpy makes floats
            raw = _each(value, name, _integer)
        low, high = (0, 1) if wanted.kind == "b" else (np.iinfo(wanted).min, np.iinfo(wanted).max)
        outside = (raw < low) | (raw > high)
        if np.any(outside):
            raise ValueError(f"{_first(value, outside)} is not within {low} … {high} ({name})")
        return raw.astype(wanted)
    if raw.dtype.kind not in "iufb":
        raw = _each(value, name, _float).astype(np.float64)
    with np.errstate(over="ignore"):
        made = raw.astype(wanted)
    lost = np.isinf(made)
    if name == "bfloat16":
        lost |= np.abs(made) >= _BFLOAT16_OVERFLOWS_AT
    lost &= np.isfinite(raw)
    if np.any(lost):
        raise ValueError(f"{_first(value, lost)} is beyond the range of {name}")
    return made


def _each(value: Any, name: str, convert: Any) -> Any:
    """An array of objects, each of which was converted."""
    import numpy as np

    objects = np.asarray(value, dtype=object)
    made = np.empty(objects.shape, dtype=object)
    for place, one in np.ndenumerate(objects):
        try:
            made[place] = convert(one)
        except ValueError as e:
            raise ValueError(f"{_shown(one, place)} {e} ({name})") from None
    return made


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("is not text")
    return value


def _integer(value: Any) -> int:
    if value is None:
        raise ValueError("is a missing value, which the type doesn't have")
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    raise ValueError("is not an integer")


def _float(value: Any) -> float:
    if value is None:
        return float("nan")
    if not isinstance(value, (int, float)):
        raise ValueError(f"is not a number but a {type(value).__name__}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError("is beyond the range of the type") from None


def _first(value: Any, which: Any) -> str:
    """The first of some values, with its place."""
    import numpy as np

    place = tuple(int(i) for i in np.argwhere(which)[0])
    return _shown(np.asarray(value, dtype=object)[place], place)


def _shown(value: Any, place: tuple[int, ...]) -> str:
    text = "null" if value is None else repr(value)
    text = text if len(text) <= 40 else f"{text[:37]}…"
    return f"{text} (at {'.'.join(map(str, place))})" if place else text
