"""Rows of a table that stay columns until somebody asks for one of them.

A backend with ``takes_columns`` asks for arrays (``request_column``). Whatever else happens to its rows,
such as looking for the one that fails, needs rows: then those of the whole block are made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sheaf_dagster.backends.columns import (
    ColumnRequests,
    MadeWhenAsked,
    array_of,
    choices_of,
    of_members,
)
from sheaf_dagster.batch.rows.column_types import numbers_in
from sheaf_dagster.batch.rows.columnar import HeldColumns
from sheaf_dagster.batch.rows.row import Row

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ColumnRows", "TableBlock", "requests_of"]


def requests_of(rows: Sequence[Row]) -> Sequence[Any]:
    """The requests of some rows, in columns where the rows are."""
    return rows.requests if isinstance(rows, ColumnRows) else [row.request for row in rows]


class TableBlock(MadeWhenAsked[Row]):
    """Some rows of a table, out of which batches are cut.

    Attributes:
        held: Their columns.
        first_position: Position of the first in the source.
        fields: What each row has to be in its answer, where any have; see ``rows.keep``.

    Args:
        make: Makes the rows.
    """

    def __init__(
        self,
        held: HeldColumns,
        first_position: int,
        fields: list[bytes],
        make: Callable[[], list[Row]],
    ) -> None:
        self.held = held
        self.first_position = first_position
        self.fields = fields
        self._make_rows = make
        self._values: dict[str, list[Any]] = {}

    def __len__(self) -> int:
        return self.held.rows

    def _make(self) -> list[Row]:
        return self._make_rows()

    def values(self, name: str) -> list[Any]:
        """The values of a field, of an enum those of its members."""
        if name not in self._values:
            values = self.held.values(name)
            if values is None:
                values = [getattr(row.request, name) for row in self]
            self._values[name] = of_members(values)
        return self._values[name]


class ColumnRows(MadeWhenAsked[Row]):
    """A batch of rows out of a block, from one to before another."""

    def __init__(self, block: TableBlock, start: int, stop: int) -> None:
        self.block = block
        self.start = start
        self.stop = stop
        self.requests = _Requests(self)

    @property
    def first_position(self) -> int:
        """Position of the first row in the source."""
        return self.block.first_position + self.start

    @property
    def fields(self) -> list[bytes]:
        """What each row has to be in its answer; see ``rows.keep``."""
        return self.block.fields[self.start : self.stop]

    def __len__(self) -> int:
        return self.stop - self.start

    def _make(self) -> list[Row]:
        return self.block[self.start : self.stop]


class _Requests(ColumnRequests):
    """Their requests."""

    def __init__(self, rows: ColumnRows) -> None:
        self._rows = rows

    def has(self, name: str) -> bool:
        return self._rows.block.held.has(name)

    def column(self, name: str) -> NDArray[Any]:
        rows = self._rows
        lists = rows.block.held.vectors(name)
        if lists is not None:
            some = lists.slice(rows.start, len(rows))
            numbers: Any = numbers_in(some)
            lengths = np.from_dlpack(some.value_lengths())
            if len(numbers) and (lengths == lengths[0]).all():
                flat = np.from_dlpack(numbers).astype(np.float64)
                return flat.reshape(len(rows), lengths[0])
        return array_of(self.values(name), choices_of(rows.block.held.model, name))

    def values(self, name: str) -> list[Any]:
        rows = self._rows
        return rows.block.values(name)[rows.start : rows.stop]

    def __len__(self) -> int:
        return len(self._rows)

    def _make(self) -> list[Any]:
        return [row.request for row in self._rows]
