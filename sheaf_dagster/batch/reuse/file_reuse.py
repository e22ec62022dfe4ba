"""One file's reuse of answers, from its rows' digests to the index of its output."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from tempfile import TemporaryFile
from typing import IO

import numpy as np

from sheaf_dagster.batch.keeping import Keeper
from sheaf_dagster.batch.kept import LINES, LOST, Lines, lines_of, read_lines_of
from sheaf_dagster.batch.messages import FileWork
from sheaf_dagster.batch.reuse.digests import RowDigests
from sheaf_dagster.batch.reuse.index import IndexWriter, index_of
from sheaf_dagster.batch.reuse.previous import ReusedAnswers, made_by, reused_output
from sheaf_dagster.batch.reuse.repeated import filled_parts, lines_in_part
from sheaf_dagster.batch.rows.findings import ChunkFindings
from sheaf_dagster.batch.rows.read_back import FailedLines
from sheaf_dagster.batch.rows.unique import unique_key
from sheaf_dagster.batch.spec import BatchSpec
from sheaf_dagster.batch.worker.loading import ModelContext
from sheaf_dagster.errors import SinkError
from sheaf_dagster.storage import Chunk, Location, Part

__all__ = ["FileReuse"]

log = logging.getLogger(__name__)


class FileReuse:
    """What a file run does where ``reuse`` is on: ``taken_from``, ``keeper``, ``filled``, ``indexed``.

    Args:
        context: The model.
        spec: The file.
        output: The earlier output.
    """

    def __init__(self, context: ModelContext, spec: BatchSpec, output: Location) -> None:
        self._context = context
        self._output = output
        self._made_by = made_by(context, spec)
        self._sink = Location.of(spec.sink, spec.storage_options)
        self._strict = spec.strict
        self._named = spec.reuse_from is not None
        self._digests = RowDigests()
        self._lines_made: IO[bytes] = TemporaryFile()
        self._places: dict[int, tuple[int, int]] = {}

    @classmethod
    def of(cls, context: ModelContext, spec: BatchSpec) -> FileReuse | None:
        """That of a file, if it reuses anything."""
        output = reused_output(spec)
        return None if output is None else cls(context, spec, output)

    def taken_from(self, findings: Iterable[ChunkFindings]) -> Iterator[ChunkFindings]:
        """Findings of the rows, of which the digests are taken."""
        return self._digests.taken_from(findings)

    def keeper(self, *, all_valid: bool) -> Keeper:
        """What decides which answers are reused.

        Args:
            all_valid: Every row is valid. Of rows that share a key all but the first are invalid,
                and so may be the one whose answer an equal row would wait for.
        """
        may_share = not self._strict and unique_key(self._context.rows.request) is None
        repeats = all_valid or may_share
        return ReusedAnswers(
            self._output, self._digests, self._made_by, repeats=repeats, named=self._named
        )

    def note(self, chunk: int, lines: Lines) -> None:
        """Notes what the index needs to know of a part that the driver makes, on its disk."""
        start = self._lines_made.seek(0, os.SEEK_END)
        self._places[chunk] = start, self._lines_made.write(lines.tobytes())

    def filled(
        self, work: FileWork, chunks: Sequence[Chunk], parts: Mapping[int, Part]
    ) -> dict[int, Part]:
        """The parts of which rows have waited for the answers of equal rows."""
        return filled_parts(self._context.rows, work, chunks, parts)

    def tell_lost(self, parts: Mapping[int, Part]) -> None:
        """Says how many answers weren't where the index has them, if any."""
        if lost := sum(part.counts.get(LOST, 0) for part in parts.values()):
            log.warning(
                "%s: %s answers aren't where the index says, so their rows were run. Either the "
                "output changed after its index was written or while this job read it, or the "
                "store failed to return it. The index is rebuilt",
                self._output.uri,
                f"{lost:,}",
            )

    @contextmanager
    def indexed(
        self, work: FileWork, chunks: Sequence[Chunk], parts: Mapping[int, Part]
    ) -> Iterator[None]:
        """Makes the index of an output that is committed meanwhile, and then puts it beside that."""
        with IndexWriter(self._made_by) as index:
            for chunk in chunks:
                index.add(self._digests.of(chunk), self._lines(work, parts[chunk.index]))
            index.finish()
            self.close()
            yield
            place = index_of(self._sink)
            try:
                index.write(place)
            except Exception as e:  # the output stands
                why = place.error(SinkError, f"its index {place.uri} can't be written", e)
                log.warning(
                    "%s is committed, but the next run will reuse nothing: %s", self._sink.uri, why
                )

    def close(self) -> None:
        """Gives back what is on this machine's disk."""
        self._digests.close()
        self._lines_made.close()

    def _lines(self, work: FileWork, part: Part) -> Lines:
        lines = self._noted(part.chunk)
        if lines is None:
            lines = read_lines_of(work.store.folder, part.chunk)
        if len(lines) == part.rows:
            return lines
        # A power loss may have taken it: it is written without waiting for the disk.
        contract = self._context.rows
        failed = FailedLines(contract.request, contract.response)
        format = work.store.format
        found = format.answers(format.content(work.store.stored(part).read()))
        whole = lines_in_part(work, part)
        answers = np.array([not failed.is_failed(line) for line in whole], dtype=bool)
        return lines_of(found, answers)

    def _noted(self, chunk: int) -> Lines | None:
        if chunk not in self._places:
            return None
        start, size = self._places[chunk]
        self._lines_made.seek(start)
        return np.frombuffer(self._lines_made.read(size), dtype=LINES)
