"""Responses in columns: known to be such of their contract without making one.

What ``ResponseColumns`` holds is an answer if its class takes it. For plain columns and classes of
plain types (``plain.py``) that is known a column at a time. Otherwise the responses are made.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from types import NoneType
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np
from pydantic import BaseModel

from sheaf_dagster.backends.columns import MadeWhenAsked, ResponseColumns
from sheaf_dagster.batch.rows.answers import non_finite_in
from sheaf_dagster.batch.rows.arrays import by_row
from sheaf_dagster.batch.rows.column_types import FieldType, NotSureError
from sheaf_dagster.batch.rows.fast import IDENTITY, writes_fields, written
from sheaf_dagster.batch.rows.plain import NotPlainError, PlainModel

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["AnswerColumns", "settled"]


class AnswerColumns(MadeWhenAsked[BaseModel]):
    """Responses that are known to be valid, in columns that nobody else has; all numbers are finite.

    Attributes:
        response: Their class.
        requests: What they answer.
        given: The fields that the backend gave or copied.
        fields: By field, the values; of lists of floats, or lists of such, an array.
        have_own_ids: Whether they have copied the ids of their requests.
    """

    def __init__(self, answers: ResponseColumns, fields: dict[str, Any]) -> None:
        self.response = answers.response
        self.requests = answers.requests
        self.given = frozenset((*answers.columns, *answers.copied))
        self.fields = fields
        self.have_own_ids = IDENTITY in answers.copied

    def __len__(self) -> int:
        return len(self.requests)

    def lines(self) -> list[bytes] | None:
        """What would be written of the responses, without making one; None where that isn't known."""
        return written(self._by_row(self.fields))

    def _make(self) -> list[BaseModel]:
        return [self.response(**row) for row in self._by_row(self.given)]

    def _by_row(self, names: Iterable[str]) -> Iterator[dict[str, Any]]:
        columns = {name: self.fields[name] for name in names}
        lists = {n: v if isinstance(v, list) else v.tolist() for n, v in columns.items()}
        return by_row(lists, len(self), holes=False)


def settled(answers: Any) -> Any:
    """What a backend returned; in place of ``ResponseColumns`` what is known to be valid.

    Raises:
        ValidationError: A response isn't valid.
    """
    if not isinstance(answers, ResponseColumns):
        return answers
    codec = _codec_of(answers.response)
    fields = None if codec is None else codec.fields(answers)
    return answers.items if fields is None else AnswerColumns(answers, fields)


class _ResponseCodec:
    """Says of columns whether they are responses of a class.

    Raises:
        NotPlainError: The class isn't made of plain types, or may write them in another form.
    """

    def __init__(self, response: type[BaseModel]) -> None:
        self._plain = PlainModel(response)
        passing = self._plain.passing()
        if passing is None or not writes_fields(response):
            raise NotPlainError
        left_out = [*self._plain.defaults.values(), *(make() for _, make in self._plain.factories)]
        if non_finite_in(left_out):  # which would be counted
            raise NotPlainError
        self._types = {name: FieldType(type_) for name, type_ in passing[0].items()}
        self._required = passing[1]

    def fields(self, answers: ResponseColumns) -> dict[str, Any] | None:
        """All fields of the responses, in their order; None: make them."""
        plain, number = self._plain, len(answers)
        given = {*answers.columns, *answers.copied}
        if not (self._required <= given <= plain.defaults.keys()):
            return None
        factories = dict(plain.factories)
        try:
            return {
                name: self._values(answers, name)
                if name in given
                else [factories[name]() if name in factories else default for _ in range(number)]
                for name, default in plain.defaults.items()
            }
        except NotSureError:
            return None

    def _values(self, answers: ResponseColumns, name: str) -> Any:
        type_ = self._types[name]
        vectors = _vectors(answers.columns.get(name))
        if vectors is not None and type_.takes(*vectors.shape[1:]):
            return vectors
        values = type_.converted(answers.values(name))
        # A class may refuse such numbers, which the types don't say.
        if not _NO_NUMBERS.issuperset(map(type, values)) and non_finite_in(values):
            raise NotSureError
        return values


@lru_cache(maxsize=64)
def _codec_of(response: type[BaseModel]) -> _ResponseCodec | None:
    try:
        return _ResponseCodec(response)
    except Exception:
        return None


def _vectors(held: Any) -> NDArray[np.floating] | None:
    """Lists of finite floats, or lists of such, for each row; None of anything else."""
    # An array of another class may say more than its numbers, such as which of them are missing.
    if type(held) is not np.ndarray or held.ndim < 2 or not held.size:
        return None
    # A copy: backends may use an array again.
    return held.copy() if held.dtype.str in _FLOATS and bool(np.isfinite(held).all()) else None


_NO_NUMBERS = frozenset({NoneType, bool, int, str, UUID})
_FLOATS = ("<f2", "<f4", "<f8")
