"""A look at a finished job's files: the first rows beside their answers."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import orjson
from pydantic import BaseModel

from sheaf_dagster.batch.model_spec import ModelSpec
from sheaf_dagster.batch.rows.ids import is_answered_by
from sheaf_dagster.batch.rows.occurrences import occurrence_in_lines
from sheaf_dagster.batch.rows.requests import RowContract
from sheaf_dagster.batch.spec import BatchSpec
from sheaf_dagster.contracts import contract_for, row_identity
from sheaf_dagster.storage import Location, files_of, is_columnar, read_lines
from sheaf_dagster.storage.formats import AS_THEY_ARE, FieldMap

__all__ = ["OutputSample", "sample_output"]

_HEAD_BYTES = 2 * 2**20


@dataclass(frozen=True)
class OutputSample:
    """The first rows of a source and its sink.

    Attributes:
        pairs: (request, response) as plain dictionaries; a request holds what its line says.
        sizes: Bytes of each answer.
        in_order: Whether each response answers the request of the same row.
        compared: Rows that were compared.
    """

    pairs: list[tuple[dict[str, Any], dict[str, Any]]]
    in_order: bool
    compared: int
    sizes: list[int] = field(default_factory=list)


def sample_output(model: ModelSpec, spec: BatchSpec, rows: int = 200) -> OutputSample:
    """Reads the first rows of both files again and compares their request ids."""
    first = files_of([Location.of(spec.sources[0], spec.storage_options)])[0]
    contract = RowContract.of(contract_for(model.model_type))
    contract = replace(contract, table=is_columnar(first.location))
    fields = contract.fields_of(spec).beside(first.folders)
    requests = _head(first.location, rows, fields)
    responses = _head(Location.of(spec.sink, spec.storage_options), len(requests))
    requests = requests[: len(responses)]
    invalid = set() if spec.on_invalid == "fail" else {number for number, _ in requests}
    occurrence_of = occurrence_in_lines(contract.request, lambda: (line for _, line in requests))
    parsed = contract.parse_all(requests, 0, invalid, occurrence_of)
    pairs, in_order = [], True
    for row, (_, asked_line), (_, line) in zip(parsed, requests, responses, strict=True):
        answer = orjson.loads(line)
        if not is_answered_by(row.request, row.position, asked_line, row_identity(answer)):
            in_order = False
        request: dict[str, Any] = {}
        if isinstance(row.request, BaseModel):  # else an invalid row, of which the line is shown
            request = row.request.model_dump(mode="json", exclude_unset=True)
        # What the contract doesn't know may still tell a person, or a plot, what a row is about.
        with suppress(orjson.JSONDecodeError, TypeError):  # NaN, which a contract may allow
            request = {**orjson.loads(asked_line), **request}
        pairs.append((request, answer))
    sizes = [len(line) for _, line in responses]
    return OutputSample(pairs, in_order, len(pairs), sizes)


def _head(location: Location, rows: int, fields: FieldMap = AS_THEY_ARE) -> list[tuple[int, bytes]]:
    """The first rows of a file, as far as they aren't too large to be shown."""
    head, size = [], 0
    for number, line in islice(read_lines(location, fields), rows):
        size += len(line)
        if size > _HEAD_BYTES:
            break
        head.append((number, line))
    return head
