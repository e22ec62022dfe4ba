"""The coordinator, with workers that die, hang and come back in any order: no chunk is lost."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sheaf_dagster.batch.messages import ChunkReport, FileJob
from sheaf_dagster.batch.ray.control import JobControl
from sheaf_dagster.storage import Chunk, Location, Part, PartStore


@dataclass
class Worker:
    """One that holds a ticket and, perhaps, waits for an answer to ``next``."""

    control: JobControl
    ticket: int
    turn: int = 0
    held: list[tuple[int, Chunk]] = field(default_factory=list)
    asked: asyncio.Task | None = None
    ended: bool = False
    left: list[asyncio.Task] = field(default_factory=list)

    async def start(self) -> None:
        """In place of one that died: what that had asked for stays asked."""
        if self.asked is not None:
            self.left.append(self.asked)
        self.asked, self.held, self.ended = None, [], False
        self.turn = await self.control.enter(self.ticket, f"node-{self.ticket}")

    async def ask(self) -> None:
        if self.ended:
            return
        if self.asked is None:
            self.asked = asyncio.create_task(self.control.next(self.ticket, self.turn))
        await settle()
        if self.asked.done():
            answer, self.asked = self.asked.result(), None
            if answer is None:
                self.ended = True
            else:
                self.held += answer[0]

    async def report(self) -> None:
        if self.held:
            job, chunk = self.held.pop(0)
            part = Part(chunk.index, chunk.rows, 0, 0, 1)
            made = ChunkReport(job, chunk.index, chunk.first_row, f"w{self.ticket}", part=part)
            await self.control.report(self.ticket, made.to_dict())
            await settle()

    async def hang(self) -> None:
        """Says so and dies."""
        if self.held:
            job, chunk = self.held[0]
            rows = frozenset([chunk.first_row])
            await self.control.hung(self.ticket, self.turn, job, chunk.index, rows, "hung")
            await settle()
        await self.start()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def story(
    slots: int, chunks: int, events: list[tuple[int, int]], record: bool, idle: float | None
) -> list[Any]:
    control = JobControl(slots, "toy", idle)
    job = FileJob(
        0, (), ("in.jsonl",), PartStore(Location("/x")), 4, "record" if record else "fail", None
    )
    await control.add(job, [Chunk(i, 0, 0, 1, 4 * i, 4, 4 * i + 1) for i in range(chunks)])
    await control.close()
    workers = [Worker(control, i) for i in range(slots)]
    for worker in workers:
        await worker.start()
    for number, what in events:
        worker = workers[number % slots]
        if what < 4:
            await worker.ask()
        elif what < 8:
            await worker.report()
        elif what == 8:
            await worker.start()
        else:
            await worker.hang()
    for _ in range(20 * chunks + 20):  # from here on nothing goes wrong
        for worker in workers:
            await worker.report()
            await worker.ask()
        if all(w.ended and not w.held for w in workers):
            break
    assert all(w.ended for w in workers), "a worker waits for ever"
    await settle()
    assert all(task.done() for w in workers for task in w.left)
    return control._reports


AT_ONCE = 1e-9
"""Seconds after which a worker leaves that waits for what others hold."""

EVENTS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=80)


@settings(max_examples=150)
@given(
    st.integers(1, 4), st.integers(1, 12), EVENTS, st.booleans(), st.sampled_from([None, AT_ONCE])
)
def test_every_chunk_is_reported_once_or_the_job_fails(slots, chunks, events, record, idle):
    reports = asyncio.run(story(slots, chunks, events, record, idle))

    failures = [r for r in reports if r["failure"]]
    if failures:
        assert len(failures) == 1
        assert {what for _, what in events} & {8, 9}, "nothing failed, but the job did"
    else:
        assert sorted(r["chunk"] for r in reports) == list(range(chunks))


@pytest.mark.parametrize("idle", [None, AT_ONCE])
def test_a_worker_that_waits_for_what_others_hold_leaves_at_the_end_of_a_job_of_tasks(idle):
    async def story():
        control = JobControl(2, "toy", idle)
        job = FileJob(0, (), ("in.jsonl",), PartStore(Location("/x")), 4, "fail", None)
        await control.add(job, [Chunk(0, 0, 0, 1, 0, 4, 1)])
        busy, waiting = Worker(control, 0), Worker(control, 1)
        await busy.start()
        await waiting.start()
        await busy.ask()
        await waiting.ask()
        early = waiting.ended  # a file may still come
        await control.close()
        await waiting.ask()
        late = waiting.ended
        await busy.report()
        await waiting.ask()
        return early, late, waiting.ended

    assert asyncio.run(story()) == (False, idle is not None, True)


async def loading(slots: int, *steps: tuple[str, str]) -> list[dict]:
    """A job whose actors begin and end loads, and lose nodes, in this order."""
    control = JobControl(slots, "toy")
    job = FileJob(0, (), ("in.jsonl",), PartStore(Location("/x")), 4, "fail", None)
    await control.add(job, [Chunk(0, 0, 0, 1, 0, 4, 1)])
    for what, node in steps:
        if what == "lost":
            await control.lost({node})
        elif what == "begin":
            await control.begin_load(node)
        else:
            await control.end_load(node)
    await control.workers()
    return [r["failure"] for r in control._reports]


def test_a_model_that_kills_whoever_loads_it_fails_the_job():
    held_out = asyncio.run(loading(2, *[("begin", "a"), ("begin", "b")] * 2, ("begin", "a")))
    failures = asyncio.run(loading(2, *[("begin", "a"), ("begin", "b")] * 3))

    assert not held_out, "two are loading and three have died"
    (failure,) = failures
    assert "killed 4 actors while they loaded the model" in failure["message"]


def test_loads_that_a_lost_node_cut_short_are_not_the_models_fault():
    eight = [("begin", "a")] * 8
    elsewhere = [("begin", "b")] * 8
    late = [("begin", "a"), ("end", "a")] * 3 + [("begin", "a")] * 12

    lost = asyncio.run(loading(8, *eight, ("lost", "a"), *elsewhere, ("lost", "b"), *late))
    heard_after_the_restart = asyncio.run(loading(8, *eight, *elsewhere, ("lost", "a")))
    ended = asyncio.run(loading(8, *eight, *[("end", "a")] * 9, *elsewhere))
    killed = asyncio.run(loading(8, *eight, ("lost", "a"), *elsewhere, *[("begin", "b")] * 4))

    assert not lost and not heard_after_the_restart and not ended
    assert len(killed) == 1


def test_a_ticket_is_worked_at_until_its_worker_leaves_hangs_or_is_lost():
    async def story():
        control = JobControl(4, "toy", AT_ONCE)
        job = FileJob(0, (), ("in.jsonl",), PartStore(Location("/x")), 4, "record", None)
        await control.add(job, [Chunk(i, 0, 0, 1, 4 * i, 4, 4 * i + 1) for i in range(9)])
        loop = asyncio.get_running_loop()
        lives = [loop.create_future() for _ in range(4)]
        for i, life in enumerate(lives):
            turn = await control.enter(i, f"node-{i}", [life])
            await control.next(i, turn)
        counts = [(await control.workers()).at_work]
        for end in (
            control.leave(0, 1),
            control.hung(1, 1, 0, min(control._open[1])[1], frozenset([1]), "hung"),
            control.lost({"node-2"}),
            fail(lives[3]),
            control.enter(3, "node-3", [loop.create_future()]),
            control.leave(3, 1),  # heard late, from the one that died
        ):
            await end
            counts.append((await control.workers()).at_work)
        return counts, (await control.workers()).has_work

    async def fail(life: asyncio.Future) -> None:
        life.set_exception(OSError("its process is gone"))
        await settle()

    counts, has_work = asyncio.run(story())

    assert counts == [4, 3, 2, 1, 0, 1, 1]
    assert has_work


class Held:
    """One chunk and a worker that takes it again and again."""

    def __init__(self) -> None:
        self.control = JobControl(1, "toy")
        self.turn = 0

    async def begin(self) -> None:
        job = FileJob(0, (), ("in.jsonl",), PartStore(Location("/x")), 4, "fail", None)
        await self.control.add(job, [Chunk(0, 0, 0, 1, 0, 4, 1)])
        await self.take("first")

    async def take(self, node: str) -> None:
        self.turn = await self.control.enter(0, node)
        await asyncio.wait_for(self.control.next(0, self.turn), 1)

    def failures(self) -> list[str]:
        return [r["failure"]["message"] for r in self.control._reports if r["failure"]]


@pytest.mark.parametrize("missed_first", [True, False])
def test_a_chunk_is_not_given_up_for_the_nodes_that_it_lost(missed_first):
    async def story():
        held = Held()
        await held.begin()
        node = "first"
        for number in range(6):
            gone, node = node, f"node {number}"
            if missed_first:
                await held.control.lost({gone})
                await held.take(node)
            else:  # Ray starts the worker anew before the driver has looked at the nodes
                await held.take(node)
                await held.control.lost({gone})
        spared = held.failures()
        for _ in range(4):
            await held.control.enter(0, node)  # it died
            if not held.failures():
                await held.take(node)
        return spared, held.failures()

    spared, given_up = asyncio.run(story())

    assert spared == []
    (message,) = given_up
    assert "the 4 rows from line 1: their worker process died 4 times" in message


def test_a_chunk_that_takes_every_node_down_is_given_up_in_the_end():
    async def story():
        held = Held()
        await held.begin()
        node, losses = "first", 0
        while not held.failures() and losses < 50:
            await held.control.lost({node})
            losses += 1
            node = f"node {losses}"
            if not held.failures():
                await held.take(node)
        return losses, held.failures()

    losses, (message,) = asyncio.run(story())

    assert losses == 21
    assert "the node of their worker was lost 21 times" in message
