"""Rows that break their contract and become error rows in their places (``on_invalid="record"``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson
from pydantic import BaseModel

from sheaf_dagster.batch.rows.violation import Violation
from sheaf_dagster.errors import InputValidationError
from sheaf_dagster.storage.formats import FieldMap

__all__ = ["InvalidRow", "invalid_row", "lines_in", "packed_lines", "why_invalid"]

_SHOWN = 3


class InvalidRow(NamedTuple):
    """What stands for the request of a row that is none, where its error row is made.

    Attributes:
        request_id: The row's own, if it says one, or one that is derived.
        model_type: What the row says of it, if it says something.
        model_name: Likewise.
        error_record: Makes the error row, where the contract gives those a form of their own.
    """

    request_id: Any = None
    model_type: str | None = None
    model_name: str | None = None
    custom_id: str | None = None
    error_record: Callable[[BaseException], dict[str, Any]] | None = None


def invalid_row(
    contract: type[BaseModel], line: bytes, occurrence: int, derived_id: Callable[[], Any]
) -> InvalidRow:
    """What stands for the request of a line that breaks its contract.

    Args:
        contract: The contract's request. By a class method ``invalid_record(row, occurrence, error)``
            it may give such rows' error rows a form of their own; the row is None where the line is
            no JSON.
        line: The line.
        occurrence: Rows before it in the source that have its content.
        derived_id: Gives the id of a row without one.
    """
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        row = None
    said: dict[str, Any] = {
        name: row[name]
        for name in ("request_id", "model_type", "model_name", "custom_id")
        if isinstance(row, dict) and isinstance(row.get(name), str)
    }
    if "request_id" in contract.model_fields:
        said.setdefault("request_id", derived_id())
    own_form = getattr(contract, "invalid_record", None)
    if callable(own_form):
        said["error_record"] = lambda error: own_form(row, occurrence, error)
    return InvalidRow(**said)


def why_invalid(
    violations: Sequence[Violation], fields: FieldMap | None = None
) -> InputValidationError:
    """The error of a row: its line, its fields, and what is wrong with them.

    Args:
        violations: Of one row.
        fields: Of a table: which column is which field.
    """
    from sheaf_dagster.batch.results import ValidationReport  # few workers meet such a row

    if fields is not None:
        for violation in violations:
            violation.column = fields.column_of(violation.field)
    row = violations[0].row
    shown = [str(v).removeprefix(f"{row}, ").removeprefix(f"{row}: ") for v in violations]
    more = f"; and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return InputValidationError(
        f"{row}, {'; '.join(shown[:_SHOWN])}{more}", ValidationReport(source="")
    )


def packed_lines(lines: Sequence[int], first_line: int) -> bytes:
    """Lines of a chunk as bits, so that a file of which all are invalid needs little memory."""
    if not lines:
        return b""
    bits = np.zeros(max(lines) - first_line + 1, dtype=bool)
    bits[np.asarray(lines) - first_line] = True
    return np.packbits(bits).tobytes()


def lines_in(packed: bytes, first_line: int) -> set[int]:
    """The lines that ``packed_lines`` was given."""
    bits = np.unpackbits(np.frombuffer(packed, dtype=np.uint8))
    return set((np.flatnonzero(bits) + first_line).tolist())
