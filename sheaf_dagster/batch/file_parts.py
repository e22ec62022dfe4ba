"""The finished parts of one file: taken over from a killed run, counted, joined as they come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from sheaf_dagster.batch.kept import KEPT, REPEATED, UNFILLED
from sheaf_dagster.batch.spec import BatchSpec
from sheaf_dagster.batch.tolerance import most_error_rows, too_many_errors
from sheaf_dagster.errors import ModelChangedError
from sheaf_dagster.storage import Chunk, HeldSink, Part, ScannedSource

__all__ = ["FileParts"]

_JOIN_BYTES = 64 * 2**20
"""Parts of a killed run that are joined at a time, while workers wait to be heard."""


class FileParts(Mapping[int, Part]):
    """The finished parts of a file, by the index of their chunk; none until ``open``.

    Args:
        spec: The file.
    """

    def __init__(self, spec: BatchSpec) -> None:
        self._spec = spec
        self._parts: dict[int, Part] = {}
        self._models: set[str] = set()
        self._error_rows = 0
        self._joined = 0
        self._source: ScannedSource | None = None
        self._chunks: tuple[Chunk, ...] = ()
        self._held: HeldSink | None = None

    def __getitem__(self, chunk: int) -> Part:
        return self._parts[chunk]

    def __iter__(self) -> Iterator[int]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    @property
    def rows(self) -> int:
        """Rows answered so far."""
        return sum(p.rows for p in self._parts.values())

    @property
    def kept_rows(self) -> int:
        """Rows that keep an answer of an earlier output."""
        return sum(p.counts.get(KEPT, 0) for p in self._parts.values())

    @property
    def of_one_model(self) -> bool:
        """Whether no two parts are known to be of different weights."""
        return len(self._models) <= 1

    @property
    def complete(self) -> bool:
        """Whether every chunk's part is there."""
        return len(self._parts) == len(self._chunks)

    def open(
        self, fingerprint: str, source: ScannedSource, chunks: tuple[Chunk, ...], held: HeldSink
    ) -> int:
        """Opens the run of a held sink, and takes over what a killed run of the same job has left.

        Args:
            fingerprint: The job's.
            source: The file, as it was scanned.
            chunks: All of its chunks.
            held: The sink.

        Returns:
            The rows of these parts without those that keep, or wait for, the answer of another.
        """
        self._source, self._chunks, self._held = source, chunks, held
        found = held.open_run(fingerprint, resume=self._spec.resume)
        by_index = {c.index: c for c in chunks}
        self._parts = {
            i: p for i, p in found.items() if i in by_index and by_index[i].rows == p.rows
        }
        self._models = {p.model for p in self._parts.values() if not _without_model(p)}
        if len(self._models) > 1:  # that run was killed before it could refuse them
            held.open_run(fingerprint, resume=False)
            self._parts, self._models = {}, set()
        self._error_rows = sum(p.error_rows for p in self._parts.values())
        return sum(p.rows - _without_work(p) for p in self._parts.values())

    def add(self, part: Part, worker: str) -> None:
        """Takes in what a worker has made.

        Raises:
            ModelChangedError: Other weights have made it than the parts before.
            TooManyErrorsError: With it there are more error rows than there may be.
        """
        self._require_one_model(part, worker)
        self.put([part])
        self._join_ahead()

    def put(self, parts: Iterable[Part]) -> None:
        """Takes in finished parts; each takes the place of what its chunk had, if it had one.

        Raises:
            TooManyErrorsError: There are more error rows now than there may be.
        """
        for part in parts:
            if (earlier := self._parts.get(part.chunk)) is not None:
                self._error_rows -= earlier.error_rows
            self._parts[part.chunk] = part
            self._error_rows += part.error_rows
        assert self._source is not None and self._held is not None
        if self._error_rows > most_error_rows(self._spec, self._source.rows):
            store = self._held.store
            raise too_many_errors(self._spec, self._source, self._chunks, store, self._parts)

    def in_order(self) -> list[Part]:
        """All parts, in the order of their chunks."""
        return [self._parts[c.index] for c in self._chunks]

    def _require_one_model(self, part: Part, worker: str) -> None:
        """An output isn't put together from the answers of different weights."""
        if not _without_model(part):
            self._models.add(part.model)
        if self.of_one_model:
            return
        assert self._held is not None
        raise ModelChangedError(
            f"{self._held.sink.location.uri}: worker {worker} loaded other weights than those that "
            "made the parts of another worker or of an earlier run; none of these parts is used. Run "
            "again once the weights are in place, and give every machine the same ones"
        )

    def _join_ahead(self) -> None:
        """Joins what is whole from the beginning on, a little at a time."""
        ready: list[Part] = []
        size = 0
        for chunk in self._chunks[self._joined :]:
            part = self._parts.get(chunk.index)
            if part is None or part.counts.get(UNFILLED) or size >= _JOIN_BYTES:
                break
            ready.append(part)
            size += part.size
        self._joined += len(ready)
        if ready and self._joined < len(self._chunks):  # the last ones are the commit's
            assert self._held is not None
            self._held.join_ahead(ready)


def _without_model(part: Part) -> bool:
    """Whether no model had a hand in a part: it consists of kept answers and error rows."""
    return _without_work(part) + part.error_rows == part.rows


def _without_work(part: Part) -> int:
    """Rows of a part that have, or will have, the answers of others."""
    return sum(part.counts.get(letter, 0) for letter in (KEPT, UNFILLED, REPEATED))
