"""The ledger of a job: which worker holds which chunk, and what has become of each.

A chunk::

                 take                     report
    pending ──────────────▶ held ─────────────────────▶ done
       ▲                     │ │
       │ its worker hung in  │ │ its worker died, was lost with its node,
       │ another chunk       │ │ or hung in this one
       └─────────────────────┘ ▼
                            suspect ──take──▶ held alone ──report──▶ done
                               ▲                  │
                               └──── the same ────┤ too often
                                                  ▼
                                              given up: its file fails

Chunks of a file that has failed or was called off leave from wherever they are.

A seat is where a worker works: one for each that may run at a time, and for tasks, which give
theirs back, a few one after the other. Ray starts a worker that died again, in the same seat::

             enter                   leave, death, loss of its node
    empty ──────────▶ at work ───────────────────────────────────────▶ empty
                         │ hung                                          ▲
                         └──────────▶ ending, given nothing more ────────┘ (or the next enters)

Each entry begins a new turn: what an earlier turn still asks for or says counts no more. Nothing
here waits or knows of Ray: ``Coordinator`` does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import ceil
from typing import Final

from sheaf_dagster.batch.messages import ChunkReport, ErrorMessage, FileWork, Hangs
from sheaf_dagster.batch.ray.records import (
    ChunkWork,
    NodeDrains,
    OpenChunk,
    OpenFile,
    Seat,
    ValidationWork,
)
from sheaf_dagster.errors import BatchTimeoutError, SheafError
from sheaf_dagster.storage import Chunk

__all__ = ["LATER", "Later", "Ledger", "share_size"]

_SHARE_SECONDS = 0.25
"""About how much work a worker takes at a time: far more than the millisecond that asking
costs, and little enough that all workers end together. Two chunks at least, so that one can
be fetched from a store while the other is used."""


class Later:
    """There is nothing to do yet."""


LATER: Final = Later()


def share_size(pending: int, slots: int, chunk_seconds: float | None) -> int:
    """How many of the pending chunks a worker takes: a share at most, and a short while's work."""
    share = ceil(pending / (2 * slots))
    wanted = max(2, int(_SHARE_SECONDS / chunk_seconds)) if chunk_seconds else 1
    return max(1, min(wanted, share))


class Ledger:
    """State of one job: what is to do, who does it, what came of it.

    It holds the files that are under way and nothing of those that are through.

    Args:
        slots: Workers that the job has at most.
        backend: What it runs, for messages.

    Attributes:
        has_news: Whether a worker that was told ``LATER`` should ask again; whoever has passed
            that on sets it back.
    """

    def __init__(self, slots: int, backend: str) -> None:
        self.has_news = False
        self._slots = slots
        self._backend = backend
        self._files: dict[int, OpenFile] = {}
        self._pending: deque[OpenChunk] = deque()
        self._suspects: deque[OpenChunk] = deque()
        self._to_validate: deque[ValidationWork] = deque()
        self._seats: dict[int, Seat] = {}
        self._reports: list[ChunkReport] = []
        self._lost_nodes: set[str] = set()
        self._draining: frozenset[str] = frozenset()
        self._broken: ErrorMessage | None = None
        self._chunk_seconds: float | None = None
        self._begun = False
        self._closed = False

    # -- what the driver does --------------------------------------------------------------

    def add(self, work: FileWork, chunks: Sequence[Chunk]) -> None:
        """Adds a validated file's chunks; from the first file on workers may load the model."""
        if self._closed:
            return
        self._begun = self.has_news = True
        if self._broken is not None:
            self._fail(work.id, self._broken)
            return
        self._files[work.id] = OpenFile(work, len(chunks))
        self._pending.extend(OpenChunk(work.id, chunk) for chunk in chunks)

    def close(self) -> None:
        """No more files will come."""
        self._closed = self.has_news = True

    def call_off(self, file: int) -> None:
        """Forgets what is left of a file. Workers pass over what they hold of it."""
        self._files.pop(file, None)
        self._pending = deque(c for c in self._pending if c.file != file)
        self._suspects = deque(c for c in self._suspects if c.file != file)
        for seat in self._seats.values():
            for key in [k for k in seat.held if k[0] == file]:
                del seat.held[key]
        self.has_news = True

    def abort(self) -> None:
        """The driver gives up: nothing more is handed out."""
        for file in list(self._files):
            self.call_off(file)
        self._to_validate.clear()
        self._begun = False
        self.close()

    def offer(self, work: ValidationWork) -> None:
        """Has a worker that has nothing else to do validate some chunks."""
        self._to_validate.append(work)
        self.has_news = True

    def withdraw(self, numbers: Iterable[int]) -> None:
        """Nobody needs these validated any more."""
        unwanted = set(numbers)
        self._to_validate = deque(w for w in self._to_validate if w.number not in unwanted)

    def take_reports(self) -> list[ChunkReport]:
        """Reports that have come in since the last call."""
        reports, self._reports = self._reports, []
        return reports

    @property
    def has_reports(self) -> bool:
        """Whether there are any to take."""
        return bool(self._reports)

    def nodes_lost(self, nodes: set[str]) -> None:
        """Nodes are gone; hands out again what their workers held.

        Ray lets a lost actor or task wait until it has a new place: for ever, where no other
        node has room, because those who have it wait here for what the lost one held.
        """
        self._lost_nodes |= nodes
        for chunk in self._suspects:
            chunk.blame(nodes)
        for seat in self._seats.values():
            for chunk in seat.held.values():
                chunk.blame(nodes)
        for seat in self._seats.values():
            if seat.node in nodes:
                seat.turn += 1
                seat.at_work = False
                self._take_back(seat)
        self.has_news = True

    def nodes_drain(self, nodes: frozenset[str]) -> None:
        """These nodes are about to be taken away: their workers get nothing more."""
        self.has_news |= nodes != self._draining
        self._draining = nodes

    def fail_all(self, error: SheafError) -> None:
        """Fails every file, those that are still to come too."""
        self._broken = ErrorMessage.of(error)
        for file in list(self._files):
            self._fail(file, self._broken)

    @property
    def at_work(self) -> int:
        """Seats that a worker is in."""
        return sum(seat.at_work for seat in self._seats.values())

    @property
    def has_work(self) -> bool:
        """Whether a chunk is open."""
        return bool(self._files)

    # -- what the workers do ---------------------------------------------------------------

    def gate(self) -> bool | ValidationWork | Later:
        """Whether a worker should load its model; False where the job ended before its first file.

        Work that it may do meanwhile comes first.
        """
        if self._begun or self._closed:
            return self._begun
        return self._to_validate.popleft() if self._to_validate else LATER

    def enter(self, number: int, node: str) -> int:
        """A worker takes a seat; not the first one to do so if that one died.

        Returns:
            Its turn, by which it is known from here on.
        """
        seat = self._seats.setdefault(number, Seat())
        seat.turn += 1
        seat.at_work, seat.ending = True, False
        self._take_back(seat)
        seat.node = node
        self.has_news = True  # also what the dead worker still waits for
        return seat.turn

    def leave(self, number: int, turn: int) -> None:
        """A worker is gone from its seat: its time is over, nothing is left to do, or it died.

        What one that died held is taken back when the next one enters or its node is missed.
        """
        if turn == self._turn(number):
            self._seats[number].at_work = False

    def take(
        self, number: int, turn: int, *, idle: bool = False
    ) -> ChunkWork | ValidationWork | NodeDrains | Later | None:
        """What a worker is to do next; None where there will be nothing more for it.

        Args:
            number: Its seat.
            turn: Its turn.
            idle: Whether it has waited for as long as it should, where no more files will come,
                for what others hold.
        """
        if turn != self._turn(number):
            return None
        seat = self._seats[number]
        held = seat.held
        # Whoever holds a suspect holds nothing else.
        if seat.ending or any(chunk.suspect for chunk in held.values()):
            return LATER
        if self.has_work and seat.node in self._draining:
            return NodeDrains()
        if self._suspects and not held:
            return self._hand_out(seat, [self._suspects.popleft()])
        if self._pending:
            n = share_size(len(self._pending), self._slots, self._chunk_seconds)
            return self._hand_out(seat, [self._pending.popleft() for _ in range(n)])
        if self._closed and not self._suspects and not self._any_held():
            return None  # not before: what another worker holds may come back
        if self._to_validate and not held:
            return self._to_validate.popleft()
        return None if idle and self._closed and not held else LATER

    def report(self, number: int, report: ChunkReport) -> None:
        """A worker is done with a chunk, well or not."""
        key = (report.file, report.chunk)
        seat = self._seats.get(number)
        chunk = seat.held.pop(key, None) if seat is not None else None
        if chunk is None:
            return  # called off meanwhile, or from a worker given up for dead
        seconds = report.ended - report.started
        old = self._chunk_seconds
        self._chunk_seconds = seconds if old is None else 0.7 * old + 0.3 * seconds
        self._reports.append(report)
        if report.failure is not None:
            self.call_off(report.file)
        else:
            self._done(report.file)
        last = self._closed and not self._any_held()
        if last or self._suspects or chunk.suspect:
            self.has_news = True

    def hung(
        self, number: int, turn: int, file: int, index: int, rows: frozenset[int], message: str
    ) -> None:
        """A batch ran out of time; its worker ends itself as soon as it has said so.

        What else the worker held is not to blame. The chunk fails, or is tried again by another
        worker, which then knows of the rows that hung.
        """
        if turn != self._turn(number):
            return  # heard after its successor began, whose work this must not take away
        seat = self._seats[number]
        held, seat.held = seat.held, {}
        seat.ending, seat.at_work = True, False
        self.has_news = True
        chunk = held.pop((file, index), None)
        for innocent in held.values():
            (self._suspects if innocent.suspect else self._pending).appendleft(innocent)
        if chunk is None:
            return
        known = self._files[file]
        if known.work.on_error == "fail":
            self._fail(file, ErrorMessage.of(BatchTimeoutError(message)), chunk.chunk)
            return
        hangs = known.work.hangs.get(index, Hangs()).after(rows)
        known.work = replace(known.work, hangs={**known.work.hangs, index: hangs})
        self._suspect(chunk)

    # -- inside ----------------------------------------------------------------------------

    def _turn(self, number: int) -> int:
        seat = self._seats.get(number)
        return seat.turn if seat is not None else 0

    def _hand_out(self, seat: Seat, chunks: list[OpenChunk]) -> ChunkWork:
        seat.held.update({c.key: c for c in chunks})
        return [(self._files[c.file].work, c.chunk) for c in chunks]

    def _take_back(self, seat: Seat) -> None:
        """Takes back what the worker of a seat held when it died."""
        held, seat.held = seat.held, {}
        for chunk in held.values():
            if seat.node in self._lost_nodes:
                chunk.losses += 1
            else:
                chunk.deaths.append(seat.node)
            if len(held) == 1 and chunk.given_up:
                where = self._files[chunk.file].work.names[chunk.chunk.file]
                crash = chunk.crash(where, self._backend)
                self._fail(chunk.file, ErrorMessage.of(crash), chunk.chunk)
            else:
                self._suspect(chunk)

    def _suspect(self, chunk: OpenChunk) -> None:
        chunk.suspect = True
        self._suspects.append(chunk)

    def _done(self, file: int) -> None:
        known = self._files[file]
        known.open -= 1
        if not known.open:
            del self._files[file]

    def _any_held(self) -> bool:
        return any(seat.held for seat in self._seats.values())

    def _fail(self, file: int, failure: ErrorMessage, chunk: Chunk | None = None) -> None:
        self.call_off(file)
        index, row = (chunk.index, chunk.first_row) if chunk else (0, 0)
        self._reports.append(ChunkReport(file, index, row, "", failure=failure))
