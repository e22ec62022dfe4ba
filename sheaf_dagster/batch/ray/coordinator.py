"""A job's one coordinator on the cluster: its ledger and its roster, for all to ask.

It is a Ray actor that uses no CPU. Workers, whoever started them, pull chunks from it and hand
their reports to it, so it knows what a worker held when it died: attempts are counted here (Ray
itself starts whatever died again, for ever), and no report is lost or heard twice because a call
was repeated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from sheaf_dagster.batch.messages import ChunkReport, FileWork
from sheaf_dagster.batch.ray.ledger import Later, Ledger
from sheaf_dagster.batch.ray.records import ChunkWork, NodeDrains, ValidationWork
from sheaf_dagster.batch.ray.roster import Presence, Roster
from sheaf_dagster.storage import Chunk

__all__ = ["Coordinator"]


class Coordinator:
    """What decides nothing and lets its callers wait; each method is a remote call.

    Only ``CoordinatorClient`` calls them, which says what they are for.

    Args:
        slots: Workers that the job has at most.
        backend: What it runs, for messages.
        idle_seconds: After so long a worker leaves that waits, when no more files will come, for
            what others hold. Its place may be the one that a worker which died needs to come
            back: Ray gives what the dead one left to whoever has waited for longest. None for a
            pool, where each worker comes back to a place of its own.
    """

    def __init__(self, slots: int, backend: str, idle_seconds: float | None = None) -> None:
        self.ledger = Ledger(slots, backend)
        self._roster = Roster(slots, backend)
        self._idle_seconds = idle_seconds
        self._validated: dict[int, asyncio.Future[Any]] = {}
        self._watches: set[asyncio.Task[None]] = set()
        self._all_left = False
        self._aborted = asyncio.Event()
        self._news = asyncio.Event()
        self._reported = asyncio.Event()

    # -- the driver ------------------------------------------------------------------------

    async def add(self, work: FileWork, chunks: Sequence[Chunk]) -> None:
        """Adds a validated file's chunks."""
        self.ledger.add(work, chunks)
        self._pass_on()

    async def close(self) -> None:
        """No more files will come."""
        self.ledger.close()
        self._pass_on()

    async def cancel(self, file: int) -> None:
        """Calls off what is left of a file."""
        self.ledger.call_off(file)
        self._pass_on()

    async def abort(self) -> None:
        """The driver gives up: what runs stops after its batch."""
        self.ledger.abort()
        self._aborted.set()
        self._all_left = True
        self._pass_on()

    async def all_left(self) -> None:
        """The last worker has left: what isn't reported by now never will be."""
        self._all_left = True
        self._pass_on()

    async def take_reports(self) -> list[ChunkReport]:
        """Waits for reports; none once all workers have left."""
        while not (self.ledger.has_reports or self._all_left):
            self._reported.clear()
            await self._reported.wait()
        return self.ledger.take_reports()

    async def look(self, lost_nodes: set[str], draining: frozenset[str] = frozenset()) -> Presence:
        """The driver's round. A lost node's loads are none of the model's doing, so nodes come first."""
        if lost_nodes:
            self._roster.nodes_lost(lost_nodes)
            self.ledger.nodes_lost(lost_nodes)
        self.ledger.nodes_drain(draining)
        if (error := self._roster.killed_by_their_model()) is not None:
            self.ledger.fail_all(error)
        self._pass_on()
        return Presence(self._roster.up, self.ledger.at_work, self.ledger.has_work)

    async def validate(self, work: ValidationWork) -> Any:
        """Waits for a worker's findings; None where there are none."""
        self._validated[work.number] = asyncio.get_running_loop().create_future()
        self.ledger.offer(work)
        self._pass_on()
        return await self._validated[work.number]

    async def withdraw(self, numbers: list[int]) -> None:
        """Nobody needs these validated any more."""
        self.ledger.withdraw(numbers)
        for number in numbers:
            await self.validated(number, None)

    # -- the workers -----------------------------------------------------------------------

    async def ready(self, worker: str, node: str) -> None:
        """A worker is up."""
        self._roster.ready(worker, node)

    async def begin_load(self, node: str) -> None:
        """An actor begins to load the model."""
        self._roster.begin_load(node)

    async def end_load(self, node: str) -> None:
        """An actor has loaded the model, or knows why it can't."""
        self._roster.end_load(node)

    async def gate(self) -> bool | ValidationWork:
        """Waits for the first valid file, or for something to validate meanwhile."""
        while isinstance(word := self.ledger.gate(), Later):
            await self._news.wait()
        return word

    async def validated(self, number: int, findings: Any) -> None:
        """A worker has validated what it was given."""
        future = self._validated.pop(number, None)
        if future is not None and not future.done():
            future.set_result(findings)

    async def aborted(self) -> None:
        """Waits until the driver gives up."""
        await self._aborted.wait()

    async def enter(self, seat: int, node: str, life: Sequence[Any] = ()) -> int:
        """A worker takes a seat; ``life`` fails as soon as its process is gone."""
        turn = self.ledger.enter(seat, node)
        for reference in life:
            watch = asyncio.create_task(self._outlive(seat, turn, reference))
            self._watches.add(watch)
            watch.add_done_callback(self._watches.discard)
        self._pass_on()
        return turn

    async def leave(self, seat: int, turn: int) -> None:
        """A worker leaves its seat."""
        self.ledger.leave(seat, turn)

    async def take(self, seat: int, turn: int) -> ChunkWork | ValidationWork | NodeDrains | None:
        """Waits for work."""
        # A worker that has died may have left a call here: its turn is over, and it gets None.
        idle = False
        while isinstance(work := self.ledger.take(seat, turn, idle=idle), Later):
            idle = await self._no_news()
        return work

    async def report(self, seat: int, report: ChunkReport) -> None:
        """A worker is done with a chunk."""
        self.ledger.report(seat, report)
        self._pass_on()

    async def hung(
        self, seat: int, turn: int, file: int, index: int, rows: frozenset[int], message: str
    ) -> None:
        """A batch ran out of time."""
        self.ledger.hung(seat, turn, file, index, rows, message)
        self._pass_on()

    # -- inside ----------------------------------------------------------------------------

    def _pass_on(self) -> None:
        """Wakes whoever waits for what has just happened."""
        if self.ledger.has_news:
            self.ledger.has_news = False
            news, self._news = self._news, asyncio.Event()
            news.set()
        if self.ledger.has_reports or self._all_left:
            self._reported.set()

    async def _no_news(self) -> bool:
        """Waits for news, or as long as a worker may idle; whether that passed without any."""
        try:
            await asyncio.wait_for(self._news.wait(), self._idle_seconds)
        except TimeoutError:
            return True
        return False

    async def _outlive(self, seat: int, turn: int, life: Any) -> None:
        """Sees a worker die: Ray starts it again when there is a place, which others may take."""
        try:
            await life
        except Exception:
            self.ledger.leave(seat, turn)
