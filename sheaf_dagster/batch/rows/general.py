"""The general codec: pydantic, which takes every row and whose word counts."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel

from sheaf_dagster.batch.rows.inside import json_reader, json_writer

__all__ = ["GeneralCodec"]


class GeneralCodec:
    """Reads and writes rows of one model as the model itself does (see ``RowCodec``).

    Attributes:
        read: The row of a line. Raises ``ValidationError`` or ``RecursionError``.
    """

    def __init__(self, model: type[BaseModel]) -> None:
        self._model = model
        self.read = json_reader(model)

    def write(self, rows: Sequence[BaseModel]) -> list[bytes]:
        """The lines of rows, without newlines."""
        to_json = json_writer(self._model)
        return [to_json(row) for row in rows]
