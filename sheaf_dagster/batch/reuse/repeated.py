"""Giving rows the answers of equal rows of the same source, once those are there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from tempfile import TemporaryFile

import numpy as np
from numpy.typing import NDArray

from sheaf_dagster.batch.kept import REPEATED, UNFILLED, lines_of, write_lines
from sheaf_dagster.batch.messages import FileWork
from sheaf_dagster.batch.rows.answered import answers_for
from sheaf_dagster.batch.rows.answers import ErrorLine
from sheaf_dagster.batch.rows.invalid import lines_in
from sheaf_dagster.batch.rows.keep import without_fields
from sheaf_dagster.batch.rows.occurrences import occurrence_in
from sheaf_dagster.batch.rows.own_id import with_own_id
from sheaf_dagster.batch.rows.read_back import FailedLines, counted
from sheaf_dagster.batch.rows.requests import RowContract
from sheaf_dagster.batch.rows.row import Row
from sheaf_dagster.batch.worker.keeping import contract_of
from sheaf_dagster.storage import Chunk, Part, lines_in_chunk, store_at

__all__ = ["filled_parts", "lines_in_part"]


def filled_parts(
    contract: RowContract, work: FileWork, chunks: Sequence[Chunk], parts: Mapping[int, Part]
) -> dict[int, Part]:
    """Makes the parts anew in which rows wait for the answers of equal ones; returns those.

    Each part that is needed is read once, however many rows have its answers.

    Args:
        contract: Of the rows.
        work: The file.
        chunks: All of its chunks.
        parts: All of its parts.
    """
    unfilled = [c for c in chunks if parts[c.index].counts.get(UNFILLED)]
    if not unfilled:
        return {}
    assert work.kept is not None
    gaps = {c.index: work.kept.repeated(c.index) for c in unfilled}
    wanted = np.unique(np.concatenate([rows[rows >= 0] for rows in gaps.values()]))
    with TemporaryFile() as file:
        offsets = np.zeros(len(wanted) + 1, dtype=np.int64)
        for chunk in chunks:
            first, end = np.searchsorted(wanted, (chunk.first_row, chunk.first_row + chunk.rows))
            if first == end:
                continue
            lines = lines_in_part(work, parts[chunk.index])
            for n in range(first, end):
                line = lines[wanted[n] - chunk.first_row]
                file.write(line)
                offsets[n + 1] = offsets[n] + len(line)

        def answer_of(row: int) -> bytes:
            n = int(np.searchsorted(wanted, row))
            file.seek(offsets[n])
            return file.read(offsets[n + 1] - offsets[n])

        return {
            chunk.index: _filled(
                contract, work, chunk, parts[chunk.index], gaps[chunk.index], answer_of
            )
            for chunk in unfilled
        }


def _filled(
    contract: RowContract,
    work: FileWork,
    chunk: Chunk,
    part: Part,
    firsts: NDArray[np.int64],
    answer_of: Callable[[int], bytes],
) -> Part:
    contract = contract_of(contract, work, chunk)
    failed = FailedLines(contract.request, contract.response)
    data = store_at(work.texts[chunk.file]).read_range(chunk.start, chunk.end)
    numbered = list(lines_in_chunk(chunk, data))
    invalid = lines_in(chunk.invalid, chunk.first_line)
    occurrence_of = occurrence_in(chunk.repeats, chunk.first_row)
    rows = contract.parse_all(numbered, chunk.first_row, invalid, occurrence_of)
    lines = lines_in_part(work, part)
    counts, non_finite, error_rows = Counter(part.counts), part.non_finite, part.error_rows
    for n in np.flatnonzero(firsts >= 0).tolist():
        row, answer = rows[n], answer_of(int(firsts[n]))
        own = with_own_id(answer, row.request, contract.request, contract.response)
        lines[n] = answer if own is None else own
        if failed.is_failed(lines[n]):
            error_rows += 1
            continue
        more, bad = counted([lines[n]], contract.response)
        counts.update(more)
        counts[REPEATED] += 1
        non_finite += bad
    del counts[UNFILLED]
    is_answer = np.array([not failed.is_failed(line) for line in lines], dtype=bool)
    content = _content(work, rows, lines, is_answer)
    write_lines(
        work.store.folder, chunk.index, lines_of(work.store.format.answers(content), is_answer)
    )
    filled = work.store.write(
        chunk.index,
        content,
        rows=part.rows,
        error_rows=error_rows,
        non_finite=non_finite,
        model=part.model,
        counts=counts,
    )
    store_at(work.store.location(part)).remove()
    return filled


def _content(
    work: FileWork, rows: Sequence[Row], lines: Sequence[bytes], is_answer: NDArray[np.bool_]
) -> bytes:
    """A part's content, of its lines."""
    made = answers_for(work.store.format, len(lines), work.keep)
    # Fields of equal rows are equal; some may be an error row's own.
    if failed := np.flatnonzero(~is_answer).tolist():
        made.add(failed, [ErrorLine(lines[n]) for n in failed])
    if answered := np.flatnonzero(is_answer).tolist():
        own, fields = [lines[n] for n in answered], None
        if work.keep:
            fields = [rows[n].fields for n in answered]
            own = [*map(without_fields, own, repeat(work.keep), fields)]
        made.add(answered, own, fields)
    return made.content()


def lines_in_part(work: FileWork, part: Part) -> list[bytes]:
    """The lines of a part, without newlines."""
    return list(work.store.lines(part))
