"""Refusing what is not one answer for each row, in the rows' order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from sheaf_dagster.batch.rows.answer_columns import AnswerColumns
from sheaf_dagster.batch.rows.in_columns import ColumnRows
from sheaf_dagster.batch.rows.row import Row, named_lines
from sheaf_dagster.contracts import row_identity
from sheaf_dagster.errors import ResponseMismatchError

__all__ = ["check_responses", "checked_outputs"]


def checked_outputs(
    where: str, name: str, method: str, rows: Sequence[Row], outputs: Any
) -> list[Any]:
    """What ``infer`` returned, as a list: of an array its rows.

    Args:
        where: Names the source in messages.
        name: The backend's class.
        method: What was called of it.
        rows: What it was called for.
        outputs: What it returned.

    Raises:
        ResponseMismatchError: It is not one for each row.
    """
    try:
        found = list(outputs)
    except TypeError:
        raise ResponseMismatchError(
            f"{where}, {named_lines(where, rows)}: {name}.{method} returned {type(outputs).__name__}; it must "
            "return one output for each prepared row"
        ) from None
    if len(found) != len(rows):
        raise ResponseMismatchError(
            f"{where}, {named_lines(where, rows)}: {name}.{method} returned {len(found)} outputs for {len(rows)} "
            "prepared rows; it must return one for each, in the same order"
        )
    return found


def check_responses(
    where: str, name: str, method: str, rows: Sequence[Row], responses: Any, *, redact: bool
) -> None:
    """Refuses responses that don't answer the rows one by one.

    Args:
        where: Names the source in messages.
        name: The backend's class.
        method: What was called of it.
        rows: What it was called for.
        responses: What it returned.
        redact: Leave ids out of messages.

    Raises:
        ResponseMismatchError: Their number, order or type is wrong.
    """
    if not isinstance(responses, (list, tuple, AnswerColumns)):
        raise ResponseMismatchError(
            f"{where}, {named_lines(where, rows)}: {name}.{method} returned {type(responses).__name__}; it must "
            "return a list with one response for each request, or ResponseColumns"
        )
    if len(responses) != len(rows):
        raise ResponseMismatchError(
            f"{where}, {named_lines(where, rows)}: {name}.{method} returned {len(responses)} responses for "
            f"{len(rows)} requests; it must return one for each, in the same order"
        )
    if isinstance(responses, AnswerColumns) and _copies_ids(responses, rows):
        return
    kind: type | None = None
    for row, response in zip(rows, responses, strict=True):
        # Once for each type: pydantic's isinstance takes longer than all the rest here.
        if type(response) is kind:
            pass
        elif isinstance(response, BaseModel):
            kind = type(response)
        else:
            raise ResponseMismatchError(
                f"{where}, {named_lines(where, [row])}: {name} returned {type(response).__name__} instead "
                "of a response (a pydantic model)"
            )
        request = row.request
        own = getattr(request, "request_id", None)
        if own is not None and getattr(response, "request_id", None) is own:
            continue  # copied, as it should be; comparing UUIDs takes longer
        asked, answered = row_identity(request), row_identity(response)
        if None not in (asked, answered) and answered != asked:
            what = f"request {answered} instead of {asked}"
            raise ResponseMismatchError(
                f"{where}, {named_lines(where, [row])}: {name} answered "
                f"{'another request' if redact else what}; {method} must keep the order and copy "
                "each id"
            )


def _copies_ids(responses: AnswerColumns, rows: Sequence[Row]) -> bool:
    """Whether responses have their ids from the rows' own requests, in their order."""
    if not responses.have_own_ids:
        return False
    if isinstance(rows, ColumnRows):
        return responses.requests is rows.requests
    return all(a is row.request for a, row in zip(responses.requests, rows, strict=True))
