"""Rows of arrays as batches: cast, grouped by shape or padded, stacked, and taken apart again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from sheaf_dagster.contracts import TensorsRequest, TensorsResponse
from sheaf_dagster.errors import SpecError

__all__ = ["InputField", "OutputField", "Stacker", "parse_fields"]

FieldT = TypeVar("FieldT", bound=BaseModel)


class InputField(BaseModel):
    """How an input is made of a row's value.

    Attributes:
        dtype: Name of a numpy type; ``str`` for texts.
        pad: Value by which shorter rows are filled up at the end of each axis, so that rows of
            different shapes share a batch. None: only rows of equal shapes do.
        mask: Name of a further input that the model has, which is made here: 1 where the row had
            values along the first axis, 0 where it was padded.
    """

    model_config = ConfigDict(extra="forbid")

    dtype: str = "float32"
    pad: float | None = None
    mask: str | None = None


class OutputField(BaseModel):
    """How a row's answer is cut out of an output.

    Attributes:
        trim_to: Name of a padded input; the output's first axis is cut to that row's own length.
    """

    model_config = ConfigDict(extra="forbid")

    trim_to: str | None = None


def parse_fields(
    kind: type[FieldT], given: dict[str, Any] | Sequence[str] | None, where: str
) -> dict[str, FieldT]:
    """Declared fields: a list of names, or names with their settings.

    Raises:
        SpecError: A setting is unknown or wrong.
    """
    if not isinstance(given, dict):
        return {name: kind() for name in given or ()}
    fields = {}
    for name, settings in given.items():
        try:
            fields[name] = kind.model_validate(settings)
        except ValidationError as e:
            first = e.errors()[0]
            path = ".".join(str(part) for part in (name, *first["loc"]))
            raise SpecError(f"{where}: {path}: {first['msg']}") from e
    return fields


@dataclass
class Stacker:
    """Runs rows through a function of stacked arrays.

    Attributes:
        inputs: The fields that rows give, by name.
        outputs: What is known of the outputs.
        run: Takes the stacked inputs by name; gives arrays (or lists) by name, whose first axis
            is the batch.
        fewest: Rows that the function needs at least; repeats of the last fill it up.
        most: Rows that it takes at most.
    """

    inputs: dict[str, InputField]
    outputs: dict[str, OutputField]
    run: Callable[[dict[str, Any]], dict[str, Any]]
    fewest: int = 1
    most: int | None = None
    _made: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self._made = {f.mask for f in self.inputs.values() if f.mask is not None}

    def answer(self, requests: Sequence[TensorsRequest]) -> list[TensorsResponse]:
        """One response a row, in order.

        Raises:
            ValueError: A row's inputs aren't the declared ones; it is named.
        """
        arrays = [self._arrays(request) for request in requests]
        groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        for i, row in enumerate(arrays):
            groups[self._shape_key(row)].append(i)
        answers: dict[int, TensorsResponse] = {}
        for members in groups.values():
            size = self.most or len(members)
            for start in range(0, len(members), size):
                some = members[start : start + size]
                found = self._batch([arrays[i] for i in some])
                for i, outputs in zip(some, found, strict=True):
                    answers[i] = TensorsResponse(
                        request_id=requests[i].request_id,
                        model_name=requests[i].model_name,
                        outputs=outputs,
                    )
        return [answers[i] for i in range(len(requests))]

    def examples(self, shapes: dict[str, Sequence[Any]]) -> list[TensorsRequest]:
        """A row of zeros, to warm a model up.

        Args:
            shapes: Of each input without the batch axis; what isn't an integer counts as 1.
        """
        import numpy as np

        inputs = {}
        for name in self.inputs.keys() - self._made:
            shape = tuple(n if isinstance(n, int) else 1 for n in shapes[name])
            text = self.inputs[name].dtype == "str"
            kind = object if text else np.dtype(self.inputs[name].dtype)
            inputs[name] = np.full(shape, "" if text else 0, kind).tolist()
        return [TensorsRequest(model_name="warm-up", inputs=inputs)]

    def _arrays(self, request: TensorsRequest) -> dict[str, Any]:
        import numpy as np

        wanted = self.inputs.keys() - self._made
        if request.inputs.keys() != wanted:
            missing, unknown = wanted - request.inputs.keys(), request.inputs.keys() - wanted
            parts = [f"lacks {', '.join(sorted(missing))}"] if missing else []
            parts += [f"has unknown {', '.join(sorted(unknown))}"] if unknown else []
            raise ValueError(
                f"request {request.request_id}: 'inputs' {' and '.join(parts)}; "
                f"the model takes {', '.join(n for n in self.inputs if n in wanted)}"
            )
        made = {}
        for name, value in request.inputs.items():
            dtype = self.inputs[name].dtype
            try:
                raw = np.asarray(value)
                text = dtype == "str"
                made[name] = raw.astype(str).astype(object) if text else _cast(raw, np.dtype(dtype))
            except (ValueError, TypeError, OverflowError) as e:
                raise ValueError(f"request {request.request_id}: input {name!r}: {e}") from e
        return made

    def _shape_key(self, row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(
            row[name].shape if self.inputs[name].pad is None else row[name].ndim
            for name in sorted(row)
        )

    def _batch(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        import numpy as np

        filled = rows + [rows[-1]] * (self.fewest - len(rows))
        stacked = {}
        for name in rows[0]:
            settings, arrays = self.inputs[name], [row[name] for row in filled]
            if settings.mask is not None:
                longest = max(len(a) for a in arrays)
                made = self.inputs.get(settings.mask, InputField(dtype="int64"))
                stacked[settings.mask] = np.array(
                    [[1] * len(a) + [0] * (longest - len(a)) for a in arrays], dtype=made.dtype
                )
            if settings.pad is not None:
                shape = np.max([a.shape for a in arrays], axis=0) if arrays[0].ndim else ()
                arrays = [
                    np.pad(
                        a,
                        [(0, int(n) - have) for n, have in zip(shape, a.shape, strict=True)],
                        constant_values=settings.pad,
                    )
                    for a in arrays
                ]
            stacked[name] = np.stack(arrays)
        found = self.run(stacked)
        for name, values in found.items():
            got = len(values) if np.ndim(values) or isinstance(values, list) else None
            if got != len(filled):
                raise ValueError(
                    f"output {name!r} has {'no axes' if got is None else f'length {got}'}, but "
                    f"its first axis must be the batch of {len(filled)} rows"
                )
        return [
            {name: self._cut(name, values[i], row) for name, values in found.items()}
            for i, row in enumerate(rows)
        ]

    def _cut(self, name: str, value: Any, row: dict[str, Any]) -> Any:
        settings = self.outputs.get(name)
        if settings is not None and settings.trim_to is not None:
            value = value[: len(row[settings.trim_to])]
        return value


def _cast(raw: Any, dtype: Any) -> Any:
    """A row's values in the type of the input, where that costs digits at most.

    JSON has one kind of integer: whether one fits is a question of its size, not of its type.
    """
    import numpy as np

    if raw.size and raw.dtype.kind in "iu" and dtype.kind in "iub":
        low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        if raw.min() < low or raw.max() > high:
            raise ValueError(f"{raw.min()} … {raw.max()} is not within {low} … {high} ({dtype})")
    elif raw.size and not np.can_cast(raw.dtype, dtype, "same_kind"):
        raise ValueError(f"{raw.dtype} values can't be {dtype}")
    return raw.astype(dtype)
