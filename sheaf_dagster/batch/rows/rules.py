"""What the rows of a job must match."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from pydantic import BaseModel

from sheaf_dagster.batch.rows.fast import IDENTITY, FastCodec, fast_codec
from sheaf_dagster.batch.rows.unique import key_field, unique_key

__all__ = ["RowRules"]


@dataclass(frozen=True)
class RowRules:
    """What the rows of a job must match, and what is to be told of them."""

    model_type: str
    request: type[BaseModel]
    response: type[BaseModel] = BaseModel
    redact: bool = False
    """Leave values out of violations."""
    strict: bool = False
    """Refuse rows with fields that the contract doesn't know, or with an earlier row's id."""
    keep: tuple[str, ...] = ()
    """Fields that go into the answers; the contract need not know them."""
    columns: bytes = b""
    """Of a sink that is a table, serialised, where the types of kept fields are to be told."""
    digests: bool = False
    """Tell the digests of contents when rows are validated."""
    table: bool = False
    """The rows are a table's, and come in its columns (``TableRows``)."""

    @property
    def key_is_unique(self) -> bool:
        """Whether a row with the key of an earlier one is invalid."""
        return self.strict or unique_key(self.request) is not None

    @property
    def codec(self) -> FastCodec | None:
        """A short cut for ``validate``, where it can miss neither a type nor a key."""
        sees_all = self.is_of_one_type and key_field(self.request) in (None, IDENTITY)
        return fast_codec(self.request, self.keep) if sees_all else None

    @property
    def is_of_one_type(self) -> bool:
        """Whether a row that the contract takes is of the model's type."""
        field = self.request.model_fields.get("model_type")
        return field is None or [*map(str, get_args(field.annotation))] == [self.model_type]
