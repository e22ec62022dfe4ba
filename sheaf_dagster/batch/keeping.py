"""Rows of a file that no model is asked about: they keep earlier answers, or are invalid; in the driver."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np

from sheaf_dagster.batch.kept import UNFILLED, KeptAnswers, Lines, Table, has_repeats
from sheaf_dagster.batch.messages import FileWork
from sheaf_dagster.batch.rows.invalid import lines_in
from sheaf_dagster.batch.rows.requests import RowContract
from sheaf_dagster.batch.worker.keeping import part_without_model
from sheaf_dagster.errors import SourceError
from sheaf_dagster.storage import Chunk, HeldSink, Location, Part, text_of

__all__ = [
    "Keeper",
    "chunks_to_keep",
    "kept_answers",
    "made_without_model",
    "without_valid_rows",
]

log = logging.getLogger(__name__)

_PARTS_AT_A_TIME = 4
"""Parts that the driver makes itself: a remote store takes its time for each."""


class Keeper(Protocol):
    """Decides which rows of a file keep the answers that an earlier output has.

    Attributes:
        output: The earlier output; None: there is none of use.
        identity: What the decision rests on; with another one it is another job, which doesn't
            resume what this one has done.
        proven: Whether the rows that keep their answers are known to be those that were answered.
        checked: Whether tables have checks of the answers; see ``KeptAnswers``.
    """

    output: Location | None
    identity: str
    proven: bool
    checked: bool

    def check_unchanged(self) -> None:
        """Makes sure that the earlier output is what it was when the job began.

        Raises:
            PreviousOutputError: It is not.
        """

    def tables(
        self, chunks: Sequence[Chunk], text: Location | None, stop: threading.Event | None
    ) -> Iterator[Table]:
        """The table of each chunk, in order.

        Args:
            chunks: All chunks of the source.
            text: Where the text of the earlier output can be read by ranges, if there is one.
            stop: Ends it early.

        Raises:
            PreviousOutputError: The earlier output doesn't fit the source.
            InterruptedError: ``stop`` was set.
        """


def kept_answers(keeper: Keeper, held: HeldSink) -> KeptAnswers:
    """What a file's workers need to know of the answers that it keeps.

    Args:
        keeper: Decides.
        held: The sink, of which the run is open.
    """
    text = _text_of(keeper, held)
    return KeptAnswers(text, held.store.folder, keeper.proven, keeper.checked)


def chunks_to_keep(
    keeper: Keeper,
    kept: KeptAnswers,
    chunks: Sequence[Chunk],
    done: Container[int],
    stop: threading.Event | None,
) -> Iterator[tuple[Chunk, Table | None]]:
    """The chunks that may need no model, with their tables unless those were written.

    Args:
        keeper: Decides.
        kept: What ``kept_answers`` gave.
        chunks: All chunks of the source.
        done: Those whose parts are there.
        stop: Ends it early.
    """
    tables = keeper.tables(chunks, kept.answers, stop)
    # Whether an output that is taken line by line fits the source is known once all tables are there.
    at_once = keeper.checked
    held_back: list[Chunk] = []
    for chunk, table in zip(chunks, tables, strict=True):
        if chunk.index in done:
            continue
        invalid = len(lines_in(chunk.invalid, chunk.first_line))
        is_whole = np.count_nonzero(table["length"]) + invalid >= chunk.rows
        if not (is_whole and at_once) or has_repeats(table):  # repeats are looked up again later
            kept.write(chunk.index, table)
        if is_whole and at_once:
            yield chunk, table
        elif is_whole:
            held_back.append(chunk)
    yield from ((chunk, None) for chunk in held_back)


def _text_of(keeper: Keeper, held: HeldSink) -> Location | None:
    """Where the text of the earlier output can be read; None where there is none of use."""
    if keeper.output is None:
        return None
    try:
        return text_of(keeper.output, held.spool)
    except SourceError as e:
        if not keeper.checked:
            raise
        log.warning("Answers can't be reused, so all rows are run: %s", e)
        return None


def without_valid_rows(chunks: Sequence[Chunk], done: Container[int]) -> list[Chunk]:
    """The chunks whose rows are all invalid, but for those whose parts are there."""
    found = [c for c in chunks if c.invalid and c.index not in done]
    return [c for c in found if len(lines_in(c.invalid, c.first_line)) >= c.rows]


def made_without_model(
    contract: RowContract,
    work: FileWork,
    chunks: Iterable[tuple[Chunk, Table | None]],
    stop: threading.Event | None,
    note: Callable[[int, Lines], None] | None = None,
) -> list[Part]:
    """Makes the parts of chunks of which no row is to be run; what has such a row has no part.

    Args:
        contract: Of the rows.
        work: The file.
        chunks: Those that may need no model, each with its table of kept answers, if it has one.
        stop: Ends it early.
        note: Takes what an index needs to know of a part's lines; rows that are yet to have the
            answers of equal ones make that anew.

    Raises:
        PreviousOutputError: A kept answer doesn't fit its row.
        InterruptedError: ``stop`` was set.
    """
    parts: list[Part] = []
    waiting: deque[tuple[Chunk, Table | None, Future[tuple[Part, Lines | None] | None]]] = deque()

    def take() -> None:
        chunk, table, future = waiting.popleft()
        made = future.result()
        if made is not None:
            part, lines = made
            parts.append(part)
            if note is not None and lines is not None and not part.counts.get(UNFILLED):
                note(chunk.index, lines)
        elif table is not None and work.kept is not None:
            work.kept.write(chunk.index, table)

    with ThreadPoolExecutor(_PARTS_AT_A_TIME, thread_name_prefix="sheaf-keep") as pool:
        for chunk, table in chunks:
            if stop is not None and stop.is_set():
                raise InterruptedError("the job was stopped")
            future = pool.submit(part_without_model, contract, work, chunk, table)
            waiting.append((chunk, table, future))
            if len(waiting) > 2 * _PARTS_AT_A_TIME:
                take()
        while waiting:
            take()
    return parts
