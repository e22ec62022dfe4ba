"""Rows of arrays as batches: cast, grouped by shape or padded, stacked, and taken apart again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from sheaf_dagster.backends.base import ModelBackend
from sheaf_dagster.backends.tables.casting import cast, numpy_type
from sheaf_dagster.backends.tables.records import plain
from sheaf_dagster.contracts import TENSORS, TensorsRequest, TensorsResponse
from sheaf_dagster.errors import SpecError

__all__ = ["InputField", "OutputField", "Stacker", "StackingBackend", "parse_fields"]

FieldT = TypeVar("FieldT", bound=BaseModel)


class InputField(BaseModel):
    """How an input is made of a row's value.

    Attributes:
        dtype: Type that a row's values must have, where that is narrower than the model's own
            (``uint8`` for pixels of a model that takes ``float32``).
        pad: Value by which shorter rows are filled up at the end of each axis, to the model's
            length or else to the batch's longest, so that rows of different shapes share a batch.
            None: only rows of equal shapes do.
        mask: Name of a further input that the model has, which is made here: 1 where the row had
            values along the first axis, 0 where it was padded.
    """

    model_config = ConfigDict(extra="forbid")

    dtype: str | None = None
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


@dataclass(frozen=True)
class ModelInput:
    """An input as the model has it.

    Attributes:
        dtype: Its type: a name of numpy's, ``bfloat16``, or ``str`` for texts.
        shape: Without the batch axis; what isn't an integer may be of any length. None: any.
    """

    dtype: str
    shape: tuple[Any, ...] | None = None


@dataclass
class Stacker:
    """Runs rows through a function of stacked arrays, in the stages of a backend.

    Attributes:
        model: The model's inputs, by name.
        inputs: Settings of the inputs.
        outputs: What is known of the outputs.
        run: Takes the stacked inputs by name; gives arrays (or lists) by name, whose first axis
            is the batch, or what waits for one (``from_device``).
        fewest: Rows that the function needs at least; repeats of the last fill it up.
        most: Rows that it takes at most.

    Raises:
        SpecError: A setting doesn't fit the model.
    """

    model: Mapping[str, ModelInput]
    inputs: Mapping[str, InputField]
    outputs: Mapping[str, OutputField]
    run: Callable[[dict[str, Any]], Mapping[str, Any]]
    fewest: int = 1
    most: int | None = None
    _settings: dict[str, InputField] = field(init=False)
    _given: list[str] = field(init=False)
    """Inputs that a row gives; the others are masks."""

    def __post_init__(self) -> None:
        self._settings = {name: self.inputs.get(name, InputField()) for name in self.model}
        masks = {one.mask: name for name, one in self._settings.items() if one.mask is not None}
        self._given = [name for name in self.model if name not in masks]
        for mask, name in masks.items():
            self._require(mask, f"inputs: {name}.mask")
        for name, output in self.outputs.items():
            if output.trim_to is not None:
                self._require(output.trim_to, f"outputs: {name}.trim_to")
        for name, one in self.model.items():
            settings = self._settings[name]
            try:
                numpy_type(one.dtype)
                if settings.pad is not None:
                    cast(settings.pad, one.dtype)
                narrow = numpy_type(settings.dtype or one.dtype)
            except TypeError as e:
                raise SpecError(f"inputs: {name}: JSON has no form for its type: {e}") from e
            except ValueError as e:
                raise SpecError(f"inputs: {name}.pad: {e}") from e
            if not _fits(narrow, numpy_type(one.dtype)):
                raise SpecError(f"inputs: {name}.dtype: {narrow} can't be the model's {one.dtype}")

    def _require(self, name: str, where: str) -> None:
        if name not in self.model:
            raise SpecError(f"{where}: no input {name!r}; the model has {', '.join(self.model)}")

    def without_run(self) -> Stacker:
        """The same without the function, for another process."""
        # An axis of any length may be told by a symbol of torch's.
        model = {
            name: replace(one, shape=tuple(n if isinstance(n, int) else None for n in one.shape))
            if one.shape
            else one
            for name, one in self.model.items()
        }
        return replace(self, model=model, run=_no_model)

    def prepare(self, request: TensorsRequest) -> dict[str, Any]:
        """A row's arrays by name, in the types of the model.

        Raises:
            ValueError: The row's inputs aren't the model's; row and input are named.
        """
        given, wanted = request.inputs, self._given
        if given.keys() != set(wanted):
            missing, unknown = set(wanted) - given.keys(), given.keys() - set(wanted)
            parts = [f"lacks {', '.join(sorted(missing))}"] if missing else []
            parts += [f"has unknown {', '.join(sorted(unknown))}"] if unknown else []
            raise ValueError(
                f"request {request.request_id}: 'inputs' {' and '.join(parts)}; "
                f"the model takes {', '.join(wanted)}"
            )
        made = {}
        for name in wanted:
            model, settings = self.model[name], self._settings[name]
            try:
                value = given[name]
                narrow = value if settings.dtype is None else cast(value, settings.dtype)
                made[name] = cast(narrow, model.dtype)
                _check_shape(made[name].shape, model.shape, settings)
            except (ValueError, TypeError, OverflowError) as e:
                raise ValueError(f"request {request.request_id}: input {name!r}: {e}") from e
        return made

    def size(self, prepared: Mapping[str, Any]) -> int:
        """Values in the largest of a row's arrays."""
        return max((int(array.size) for array in prepared.values()), default=1) or 1

    def infer(self, prepared: Sequence[dict[str, Any]]) -> Any:
        """The outputs of each row by name, without the batch axis, or what waits for them.

        Raises:
            ValueError: An output's first axis isn't the batch.
        """
        begun = [
            (some, self._begun([prepared[i] for i in some])) for some in self._together(prepared)
        ]

        def outputs() -> list[dict[str, Any]]:
            found: dict[int, dict[str, Any]] = {}
            for some, values in begun:
                found.update(
                    zip(some, self._by_row([prepared[i] for i in some], values), strict=True)
                )
            return [found[i] for i in range(len(prepared))]

        goes_on = any(callable(value) for _, values in begun for value in values.values())
        return outputs if goes_on else outputs()

    def device_size(self, prepared: Sequence[dict[str, Any]]) -> int:
        """Values in the largest input of all batches, filled up to their shapes and rows."""
        return sum(
            max(len(some), self.fewest)
            * max(
                (self._size_in(name, [prepared[i] for i in some]) for name in self._given),
                default=1,
            )
            for some in self._together(prepared)
        )

    def _size_in(self, name: str, rows: Sequence[dict[str, Any]]) -> int:
        """Values that an input has of each of some rows that run together."""
        arrays = [row[name] for row in rows]
        padded = self._settings[name].pad is not None
        return prod(self._padded_shape(name, arrays) if padded else arrays[0].shape) or 1

    def _together(self, prepared: Sequence[dict[str, Any]]) -> Iterator[list[int]]:
        """Rows that run at once, by their places."""
        groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        for i, row in enumerate(prepared):
            groups[self._shape_key(row)].append(i)
        for members in groups.values():
            size = self.most or len(members)
            for start in range(0, len(members), size):
                yield members[start : start + size]

    def respond(
        self, requests: Sequence[TensorsRequest], outputs: Sequence[Mapping[str, Any]]
    ) -> list[TensorsResponse]:
        """One response a row."""
        return [
            TensorsResponse(
                request_id=request.request_id,
                model_name=request.model_name,
                outputs={name: plain(value) for name, value in found.items()},
            )
            for request, found in zip(requests, outputs, strict=True)
        ]

    def examples(self) -> list[TensorsRequest]:
        """A row of zeros, to warm a model up; an axis of any length has one value."""
        import numpy as np

        inputs = {}
        for name in self._given:
            one = self.model[name]
            shape = tuple(n if isinstance(n, int) else 1 for n in one.shape or ())
            inputs[name] = np.full(shape, "" if one.dtype == "str" else 0, object).tolist()
        return [TensorsRequest(model_name="warm-up", inputs=inputs)]

    def _shape_key(self, row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(
            row[name].shape if self._settings[name].pad is None else row[name].ndim
            for name in self._given
        )

    def _begun(self, rows: list[dict[str, Any]]) -> Mapping[str, Any]:
        """What the function gives for some rows."""
        import numpy as np

        filled = rows + [rows[-1]] * (self.fewest - len(rows))
        stacked = {}
        for name in self._given:
            settings, arrays = self._settings[name], [row[name] for row in filled]
            shape = arrays[0].shape if settings.pad is None else self._padded_shape(name, arrays)
            if settings.mask is not None:
                stacked[settings.mask] = np.array(
                    [[1] * len(a) + [0] * (shape[0] - len(a)) for a in arrays],
                    dtype=numpy_type(self.model[settings.mask].dtype),
                )
            if settings.pad is not None:
                arrays = [
                    np.pad(
                        a,
                        [(0, n - have) for n, have in zip(shape, a.shape, strict=True)],
                        constant_values=settings.pad,
                    )
                    for a in arrays
                ]
            stacked[name] = np.stack(arrays)
        return self.run(stacked)

    def _by_row(
        self, rows: list[dict[str, Any]], values: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """What it gave, once it is here, cut into rows."""
        import numpy as np

        found = {name: value() if callable(value) else value for name, value in values.items()}
        count = max(len(rows), self.fewest)
        for name, array in found.items():
            got = len(array) if np.ndim(array) or isinstance(array, list) else None
            if got != count:
                raise ValueError(
                    f"output {name!r} has {'no axes' if got is None else f'length {got}'}, but "
                    f"its first axis must be the batch of {count} rows"
                )
        return [
            {name: self._cut(name, values[i], row) for name, values in found.items()}
            for i, row in enumerate(rows)
        ]

    def _padded_shape(self, name: str, arrays: Sequence[Any]) -> tuple[int, ...]:
        """The model's own lengths, and where those are free the longest array's."""
        wanted = self.model[name].shape or (None,) * arrays[0].ndim
        longest = zip(*(a.shape for a in arrays), strict=True)
        return tuple(
            own if isinstance(own, int) else max(lengths)
            for own, lengths in zip(wanted, longest, strict=True)
        )

    def _cut(self, name: str, value: Any, row: dict[str, Any]) -> Any:
        settings = self.outputs.get(name)
        if settings is not None and settings.trim_to is not None:
            value = value[: len(row[settings.trim_to])]
        return value


class StackingBackend(ModelBackend):
    """A backend whose stages are a ``Stacker``'s, which its ``load()`` makes."""

    model_type = TENSORS
    _stacker: Stacker

    def warmup_requests(self) -> Sequence[TensorsRequest]:
        return self._stacker.examples()

    def without_model(self) -> Self:
        other = copy(self)
        other._stacker = self._stacker.without_run()
        return other

    def prepare(self, request: TensorsRequest) -> dict[str, Any]:
        return self._stacker.prepare(request)

    def size(self, prepared: dict[str, Any]) -> int:
        return self._stacker.size(prepared)

    def device_size(self, prepared: Sequence[dict[str, Any]], sizes: Sequence[int]) -> int:
        return self._stacker.device_size(prepared)

    def infer(self, prepared: Sequence[dict[str, Any]]) -> Any:
        return self._stacker.infer(prepared)

    def respond(  # type: ignore[override]
        self, requests: Sequence[TensorsRequest], outputs: Sequence[dict[str, Any]]
    ) -> list[TensorsResponse]:
        return self._stacker.respond(requests, outputs)


def _no_model(stacked: dict[str, Any]) -> Mapping[str, Any]:
    raise NotImplementedError("the model is in another process")


def _fits(narrow: Any, wanted: Any) -> bool:
    """Whether values of one type may be asked for where the model takes another."""
    import numpy as np

    return narrow == wanted or (
        "O" not in narrow.kind + wanted.kind and bool(np.can_cast(narrow, wanted, "same_kind"))
    )


def _check_shape(
    shape: tuple[int, ...], wanted: tuple[Any, ...] | None, settings: InputField
) -> None:
    if wanted is None:
        return
    same = len(shape) == len(wanted) and all(
        n == w or (settings.pad is not None and n < w)
        for n, w in zip(shape, wanted, strict=True)
        if isinstance(w, int)
    )
    if not same:
        text = " × ".join(str(w) if isinstance(w, int) else "any" for w in wanted) or "one value"
        raise ValueError(
            f"its shape is {' × '.join(map(str, shape)) or 'one value'}, but the model takes {text}"
        )
