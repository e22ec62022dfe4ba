"""A batch in columns: fields of its requests as arrays, and responses that are made of arrays."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from itertools import chain, repeat
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, Union, get_args, get_origin, overload

from pydantic import BaseModel

from sheaf_dagster.contracts.base import Deviation, note_deviations
from sheaf_dagster.errors import ResponseMismatchError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "ColumnRequests",
    "MadeWhenAsked",
    "ResponseColumns",
    "array_of",
    "choices_of",
    "request_column",
]

T = TypeVar("T")

_IDENTITY = ("request_id", "model_type", "model_name")
"""Fields that a response copies from its request, if both have them."""


class MadeWhenAsked(Sequence[T]):
    """A sequence whose items are all made when one of them is first asked for."""

    _items: list[T] | None = None

    @abstractmethod
    def _make(self) -> list[T]:
        """The items."""

    @property
    def items(self) -> list[T]:
        """The items, made once."""
        # A cached_property would hold a lock meanwhile, in Python 3.11 that of all instances.
        if self._items is None:
            self._items = self._make()
        return self._items

    @overload
    def __getitem__(self, i: int) -> T: ...

    @overload
    def __getitem__(self, i: slice) -> list[T]: ...

    def __getitem__(self, i: int | slice) -> T | list[T]:
        return self.items[i]

    def __iter__(self) -> Iterator[T]:
        return iter(self.items)


class ColumnRequests(MadeWhenAsked[Any]):
    """Requests that are still columns of a table; each becomes a request if it is asked for."""

    @abstractmethod
    def has(self, name: str) -> bool:
        """Whether they have a field of this name."""

    @abstractmethod
    def column(self, name: str) -> NDArray[Any]:
        """The array of a field; see ``request_column``."""

    @abstractmethod
    def values(self, name: str) -> list[Any]:
        """The values of a field; of an enum the value of the member."""


def request_column(requests: Sequence[Any], name: str) -> NDArray[Any]:
    """One field of all requests of a batch as a numpy array, which is the caller's own.

    Where the rows come from a Parquet file and the backend sets ``takes_columns``, this reads the
    file's column, and no request is made. The array is the same from any kind of file:

    * numbers: ``float64`` or ``int64``, one for each row. None in a field of floats is NaN.
    * lists of numbers: rows × length, and so on for lists of lists. If they aren't equally long, an
      object array with one array for each row.
    * true and false: ``bool``.
    * anything else, such as texts and ids: an object array. A member of an enum becomes its value.

    Args:
        requests: What ``batch_predict`` was given.
        name: The field.

    Raises:
        AttributeError: The requests have no such field.
    """
    if isinstance(requests, ColumnRequests):
        return requests.column(name)
    return array_of(
        _values(requests, name), choices_of(type(requests[0]), name) if requests else ()
    )


def _values(requests: Sequence[Any], name: str) -> list[Any]:
    if isinstance(requests, ColumnRequests):
        return requests.values(name)
    return of_members([getattr(request, name) for request in requests])


def of_members(values: list[Any]) -> list[Any]:
    """Values with those of members in place of an enum's members."""
    if not any(issubclass(kind, Enum) for kind in {*map(type, values)}):
        return values
    return [value.value if isinstance(value, Enum) else value for value in values]


def choices_of(model: Any, name: str) -> Sequence[Any]:
    """The types that values of a field may have; none where it isn't a field."""
    fields = getattr(model, "model_fields", {})
    return _choices([fields[name].annotation]) if name in fields else ()


def _choices(types: Sequence[Any]) -> list[Any]:
    """Types with those in unions in place of these."""
    found = []
    for type_ in types:
        origin, inner = get_origin(type_), get_args(type_)
        if origin is Annotated:
            found += _choices(inner[:1])
        elif origin in (Union, UnionType):
            found += _choices(inner)
        else:
            found.append(type_)
    return found


def array_of(values: Sequence[Any], choices: Sequence[Any] = ()) -> NDArray[Any]:
    """Values as an array; see ``request_column``.

    Args:
        values: The values.
        choices: The types that they may have. They tell what kind of array it is where no value does.
    """
    import numpy as np

    kinds = {*map(type, values)}
    if kinds <= {NoneType}:
        scalars = {c for c in choices if get_origin(c) is not list and c is not NoneType}
        if scalars == {float} or (scalars == {int} and not kinds):
            return np.array(values, np.float64 if float in scalars else np.int64)
    if float in kinds and kinds <= {float, NoneType}:
        return np.array(values, np.float64)
    if kinds == {bool}:
        return np.array(values, np.bool_)
    if kinds == {int}:
        try:
            return np.array(values, np.int64)
        except OverflowError:
            pass
    if kinds == {list}:
        widths = [*map(len, values)]
        items = _choices([i for c in choices if get_origin(c) is list for i in get_args(c)])
        inner = array_of([*chain.from_iterable(values)], items)
        if inner.dtype == object:
            values = [array_of(v, items) for v in values]
        elif len({*widths}) == 1:
            return inner.reshape(len(values), widths[0], *inner.shape[1:])
        else:
            values = np.split(inner, np.cumsum(widths)[:-1])
    array = np.empty(len(values), object)
    for i, value in enumerate(values):
        array[i] = value
    return array


class ResponseColumns(MadeWhenAsked[BaseModel]):
    """The responses to a batch, given as columns. ``batch_predict`` and ``respond`` may return it.

    It is a sequence of responses. In a Parquet sink its arrays become columns as they are, and no
    response is made. The output is the same as that of a list of responses.

    ``request_id``, ``model_type`` and ``model_name`` are those of the requests, if the response
    has such fields.

    Example::

        def batch_predict(self, requests):
            history = request_column(requests, "history")
            return ResponseColumns(
                TimeSeriesResponse,
                requests,
                {"mean": self.model(history)},
                copied=["horizon", "frequency"],
            )

    Args:
        response: The class of the responses.
        requests: What ``batch_predict`` or ``respond`` was given.
        columns: By field, an array or a list with one value for each request. Anything else is the
            value of every response.
        copied: Fields of the requests that the responses have under the same name.
        deviations: For each request, in which ways its answer deviates from what was asked; see
            ``BaseResponse.deviates``. By default no answer does.

    Raises:
        ResponseMismatchError: A column hasn't as many values as there are requests.
        ValueError: The response has no such field.
    """

    def __init__(
        self,
        response: type[BaseModel],
        requests: Sequence[Any],
        columns: Mapping[str, Any],
        *,
        copied: Sequence[str] = (),
        deviations: Sequence[Sequence[Deviation]] = (),
    ) -> None:
        self.response = response
        self.requests = requests
        fields = response.model_fields
        own = [n for n in _IDENTITY if n in fields and n not in columns and _has(requests, n)]
        self.copied = tuple(n for n in (*own, *copied) if n not in columns)
        self.columns = dict(columns)
        for name in (*self.columns, *copied):
            if name not in fields and response.model_config.get("extra") != "allow":
                raise ValueError(
                    f"ResponseColumns: {response.__name__} has no field {name!r}; "
                    f"its fields are {', '.join(fields)}"
                )
        for name, values in self.columns.items():
            if not self.is_constant(name) and len(values) != len(requests):
                raise ResponseMismatchError(
                    f"ResponseColumns: column {name!r} has {len(values)} values for {len(requests)} "
                    "requests; it must have one for each, in the same order"
                )
        if any(deviations):
            self.columns["metadata"] = self._marked(deviations)

    def _marked(self, deviations: Sequence[Sequence[Deviation]]) -> list[dict[str, Any]]:
        """The column of metadata, with the marks of answers that deviate."""
        given = "metadata" in self.columns
        own = self.values("metadata") if given else repeat({}, len(self))
        metadata = [copy.deepcopy(one) for one in own]
        for one, kinds in zip(metadata, deviations, strict=True):
            if kinds:
                note_deviations(one, kinds)
        return metadata

    def is_constant(self, name: str) -> bool:
        """Whether a column is one value that all responses have."""
        held = self.columns[name]
        return not isinstance(held, (list, tuple)) and getattr(held, "ndim", 0) == 0

    def values(self, name: str) -> list[Any]:
        """The values of a field that is given or copied, as Python has them."""
        if name not in self.columns:
            return _values(self.requests, name)
        held = self.columns[name]
        plain = held.tolist() if hasattr(held, "tolist") else held
        return [*repeat(plain, len(self.requests))] if self.is_constant(name) else [*plain]

    def __len__(self) -> int:
        return len(self.requests)

    def _make(self) -> list[BaseModel]:
        names = (*self.copied, *self.columns)
        columns = [self.values(name) for name in names]
        rows = zip(*columns, strict=True) if names else repeat((), len(self))
        taken = [_taken_as(self.response, name) for name in names]
        return [self.response(**dict(zip(taken, row, strict=True))) for row in rows]


def _taken_as(response: type[BaseModel], name: str) -> str:
    """The name by which a class takes a field."""
    field, config = response.model_fields.get(name), response.model_config
    by_name = config.get("populate_by_name") or config.get("validate_by_name")
    alias = None if field is None or by_name else field.validation_alias
    return alias if isinstance(alias, str) else name


def _has(requests: Sequence[Any], name: str) -> bool:
    if isinstance(requests, ColumnRequests):
        return requests.has(name)
    return bool(requests) and hasattr(requests[0], name)
