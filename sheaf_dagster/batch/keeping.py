"""Rows of a file that no model is asked about: they keep earlier answers, or are invalid; in the driver."""

from __future__ import annotations

import logging
import threading
from collections.abc import Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np

from sheaf_dagster.batch.kept import KeptAnswers, Table
from sheaf_dagster.batch.messages import FileWork
from sheaf_dagster.batch.rows.invalid import lines_in
from sheaf_dagster.batch.rows.requests import RowContract
from sheaf_dagster.batch.worker.keeping import part_without_model
from sheaf_dagster.errors import SourceError
from sheaf_dagster.storage import Chunk, HeldSink, Location, Part, text_of

__all__ = ["Keeper", "keep_answers", "made_without_model", "without_valid_rows"]

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


def keep_answers(
    keeper: Keeper,
    held: HeldSink,
    chunks: Sequence[Chunk],
    done: Container[int],
    stop: threading.Event | None,
) -> tuple[KeptAnswers, list[Chunk]]:
    """Writes the tables of a file; returns what its workers need, and chunks that may need none.

    Args:
        keeper: Decides.
        held: The sink, of which the run is open.
        chunks: All chunks of the source.
        done: Those whose parts are there.
        stop: Ends it early.
    """
    text = _text_of(keeper, held)
    kept = KeptAnswers(text, held.store.folder, keeper.proven, keeper.checked)
    whole = []
    for chunk, table in zip(chunks, keeper.tables(chunks, text, stop), strict=True):
        if chunk.index in done:
            continue
        kept.write(chunk.index, table)
        invalid = len(lines_in(chunk.invalid, chunk.first_line))
        if np.count_nonzero(table["length"]) + invalid >= chunk.rows:
            whole.append(chunk)
    return kept, whole


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
    contract: RowContract, work: FileWork, chunks: Sequence[Chunk], stop: threading.Event | None
) -> list[Part]:
    """Makes the parts of chunks of which no row is to be run; what has such a row has no part.

    Args:
        contract: Of the rows.
        work: The file.
        chunks: Those that may need no model.
        stop: Ends it early.

    Raises:
        PreviousOutputError: A kept answer doesn't fit its row.
        InterruptedError: ``stop`` was set.
    """

    def make(chunk: Chunk) -> Part | None:
        if stop is not None and stop.is_set():
            raise InterruptedError("the job was stopped")
        return part_without_model(contract, work, chunk)

    with ThreadPoolExecutor(_PARTS_AT_A_TIME, thread_name_prefix="sheaf-keep") as pool:
        return [part for part in pool.map(make, chunks) if part is not None]
