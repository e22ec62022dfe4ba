"""Rows of a chunk that no model is asked about: those that keep answers, and invalid ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby, islice, repeat
from typing import Any

import orjson

from sheaf_dagster.batch.kept import Lines, Table
from sheaf_dagster.batch.messages import FileWork
from sheaf_dagster.batch.rows.ids import is_answered_by
from sheaf_dagster.batch.rows.inside import given_fields
from sheaf_dagster.batch.rows.invalid import lines_in
from sheaf_dagster.batch.rows.occurrences import occurrence_in
from sheaf_dagster.batch.rows.own_id import have_own_ids, with_own_id
from sheaf_dagster.batch.rows.read_back import record_of
from sheaf_dagster.batch.rows.requests import RowContract
from sheaf_dagster.batch.rows.row import Row, named_lines
from sheaf_dagster.batch.worker.making import ChunkInMaking
from sheaf_dagster.contracts import row_identity
from sheaf_dagster.errors import PreviousOutputError
from sheaf_dagster.storage import Chunk, Part, lines_in_chunk, store_at
from sheaf_dagster.storage.formats import is_table

__all__ = ["contract_of", "part_without_model", "rows_to_run"]

_AT_A_TIME = 1024


def contract_of(contract: RowContract, work: FileWork, chunk: Chunk) -> RowContract:
    """The contract of a chunk's rows."""
    contract = contract.of_chunk(chunk)
    if not (work.keep or work.strict):
        return contract
    return replace(contract, keep=work.keep, strict=work.strict)


def rows_to_run(
    contract: RowContract,
    making: ChunkInMaking,
    lines: Iterator[tuple[int, bytes]],
    table: Table | None = None,
) -> list[Row]:
    """The rows of a chunk that the model is to answer; the lines of the others are put in place.

    Args:
        contract: Reads the rows.
        making: The chunk.
        lines: Line numbers and lines of all its rows.
        table: Its table of kept answers, where that wasn't written.

    Raises:
        PreviousOutputError: A kept answer isn't known to be that of its row.
    """
    kept, chunk = making.work.kept, making.chunk
    found: Iterable[bytes | int | None] = repeat(None, chunk.rows)
    if kept is not None:
        found, lost = kept.lines(chunk, table)
        making.count_lost(lost)
    invalid = lines_in(chunk.invalid, chunk.first_line)
    occurrence_of = occurrence_in(chunk.repeats, chunk.first_row)
    checked = kept is not None and kept.checked
    fields = making.work.fields if is_table(making.work.names[chunk.file]) else None

    def has_answer(row: tuple[tuple[int, bytes], bytes | int | None]) -> bool:
        return checked and type(row[1]) is bytes and row[0][0] not in invalid

    to_run: list[Row] = []
    position = chunk.first_row
    for known, group in groupby(zip(lines, found, strict=False), has_answer):
        while some := list(islice(group, _AT_A_TIME)):
            numbered = [line for line, _ in some]
            answers: list[Any] = [answer for _, answer in some]
            if known and _are_as_they_were(contract, numbered, answers):
                first = position - chunk.first_row
                making.keep(range(first, first + len(some)), answers, contract.response)
                position += len(some)
                continue
            if known:
                rows = contract.named(numbered, position, occurrence_of)
            else:
                rows = contract.parse_all(numbered, position, invalid, occurrence_of)
            keeping, own_answers = [], []
            for row, (number, line), answer in zip(rows, numbered, answers, strict=True):
                if number in invalid:
                    making.reject(row, contract.why_invalid(number, line, fields))
                elif isinstance(answer, int):
                    making.repeat(row)
                elif answer is None or kept is None:
                    to_run.append(row)
                else:
                    if not checked:
                        _require_answer_of(making.where, row, line, answer, proven=kept.proven)
                    own = with_own_id(answer, row.request, contract.request, contract.response)
                    if own is None:
                        to_run += contract.parse([(number, line)], row.position, occurrence_of)
                    else:
                        keeping.append(row)
                        own_answers.append(own)
            at = [row.position - chunk.first_row for row in keeping]
            making.keep(at, own_answers, contract.response, making.fields_of(keeping))
            position += len(some)
    return to_run


def _are_as_they_were(
    contract: RowContract, lines: Sequence[tuple[int, bytes]], answers: Sequence[bytes]
) -> bool:
    """Whether answers need no look at their rows."""
    if contract.keep:
        return False
    return have_own_ids([line for _, line in lines], answers, contract.request, contract.response)


def part_without_model(
    contract: RowContract, work: FileWork, chunk: Chunk, table: Table | None
) -> tuple[Part, Lines | None] | None:
    """Makes the part of a chunk of which no row is to be run.

    Args:
        contract: Of the rows.
        work: The file.
        chunk: The chunk.
        table: Its table of kept answers, where that wasn't written.

    Returns:
        What ``ChunkInMaking.written`` does; None where there is such a row.

    Raises:
        PreviousOutputError: A kept answer isn't known to be that of its row.
    """
    making = ChunkInMaking(work, chunk)
    data = store_at(work.texts[chunk.file]).read_range(chunk.start, chunk.end)
    making.require_validated(data)
    lines = lines_in_chunk(chunk, data)
    rows_to_run(contract_of(contract, work, chunk), making, lines, table)
    return making.written("") if making.complete else None


def _require_answer_of(where: str, row: Row, line: bytes, answer: bytes, *, proven: bool) -> None:
    request = row.request
    asked = row_identity(request)
    found = None if asked is None else _identity_in(answer, asked)
    if not is_answered_by(request, row.position, line, found):
        raise PreviousOutputError(
            f"{where}, {named_lines(where, [row])}: the last output has another row's answer in its "
            "place, so rows were added, removed, moved or changed since; run the whole file"
        )
    # An id that was derived shows that the row's content is the same.
    derived = asked is not None and "request_id" not in given_fields(request)
    if not (proven or derived):
        raise PreviousOutputError(
            f"{where}, {named_lines(where, [row])}: the source has changed since the last output. "
            "This row may have changed too, because its id isn't derived from its content. Run the "
            "whole file"
        )


def _identity_in(answer: bytes, asked: Any) -> str | None:
    text = orjson.dumps(str(asked))
    if any(name + text in answer for name in (b'"request_id":', b'"custom_id":')):
        return str(asked)
    found = row_identity(record_of(answer))
    return None if found is None else str(found)
