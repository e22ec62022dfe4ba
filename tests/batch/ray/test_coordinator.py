"""The coordinator lets its callers wait, and wakes them when there is something for them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from sheaf_dagster.batch.messages import ChunkReport, FileWork
from sheaf_dagster.batch.ray.coordinator import Coordinator
from sheaf_dagster.batch.ray.records import ValidationWork
from sheaf_dagster.storage import Chunk, Location, Part, PartStore

T = TypeVar("T")

FILE = FileWork(0, (), ("in.jsonl",), PartStore(Location("/nowhere")), 4, "fail", None)
CHUNKS = [Chunk(i, 0, 0, 1, 4 * i, 4, 4 * i + 1) for i in range(2)]


def report(index: int) -> ChunkReport:
    return ChunkReport(0, index, 4 * index, "w", part=Part(index, 4, 0, 0, 1))


async def heard(answer: Awaitable[T]) -> T:
    return await asyncio.wait_for(answer, 300)


async def settle(*tasks: asyncio.Task) -> list[bool]:
    """Which of the tasks have an answer once nothing more happens."""
    for _ in range(20):
        await asyncio.sleep(0)
    return [task.done() for task in tasks]


def test_workers_wait_for_the_first_file_and_then_for_what_others_hold():
    async def story():
        coordinator = Coordinator(2, "toy")
        gate = asyncio.create_task(coordinator.gate())
        before = await settle(gate)
        await coordinator.add(FILE, CHUNKS[:1])
        opened = await heard(gate)
        first, second = [await coordinator.enter(seat, "node") for seat in range(2)]
        (work,) = await heard(coordinator.take(0, first))
        waiting = asyncio.create_task(coordinator.take(1, second))
        await coordinator.close()
        held = await settle(waiting)
        taken = asyncio.create_task(coordinator.take_reports())
        unheard = await settle(taken)
        await coordinator.report(0, report(0))
        return before, opened, work[1], held, unheard, await heard(waiting), await heard(taken)

    assert asyncio.run(story()) == ([False], True, CHUNKS[0], [False], [False], None, [report(0)])


def test_a_worker_that_idles_at_the_end_of_a_job_of_tasks_leaves():
    async def story():
        coordinator = Coordinator(2, "toy", idle_seconds=1e-9)
        await coordinator.add(FILE, CHUNKS[:1])
        first, second = [await coordinator.enter(seat, "node") for seat in range(2)]
        await coordinator.take(0, first)
        await coordinator.close()
        return await heard(coordinator.take(1, second))

    assert asyncio.run(story()) is None


def test_a_call_that_a_dead_worker_left_behind_ends():
    async def story():
        coordinator = Coordinator(1, "toy")
        await coordinator.add(FILE, CHUNKS)
        turn = await coordinator.enter(0, "node")
        await coordinator.take(0, turn)
        await coordinator.take(0, turn)
        left = asyncio.create_task(coordinator.take(0, turn))
        await settle(left)
        again = await coordinator.enter(0, "node")
        ((_, chunk),) = await heard(coordinator.take(0, again))
        return await heard(left), chunk

    assert asyncio.run(story()) == (None, CHUNKS[0])


def test_a_worker_whose_process_is_gone_has_no_place():
    async def story():
        coordinator = Coordinator(1, "toy")
        await coordinator.add(FILE, CHUNKS)
        life = asyncio.get_running_loop().create_future()
        await coordinator.enter(0, "node", [life])
        before = await coordinator.look(set())
        life.set_exception(OSError("its process is gone"))
        await settle()
        return before, await coordinator.look(set())

    before, after = asyncio.run(story())

    assert (before.at_work, after.at_work) == (1, 0)
    assert before.has_work and after.has_work


def test_reports_end_when_the_last_worker_has_left_and_not_before_they_are_all_taken():
    async def story():
        coordinator = Coordinator(1, "toy")
        await coordinator.add(FILE, CHUNKS)
        turn = await coordinator.enter(0, "node")
        await coordinator.take(0, turn)
        waiting = asyncio.create_task(coordinator.take_reports())
        await settle(waiting)
        await coordinator.report(0, report(0))
        await coordinator.all_left()
        return await heard(waiting), await heard(coordinator.take_reports())

    assert asyncio.run(story()) == ([report(0)], [])


def test_what_is_to_be_validated_is_answered_or_withdrawn():
    async def story():
        coordinator = Coordinator(1, "toy")
        answers = [
            asyncio.create_task(coordinator.validate(ValidationWork(i, "chunks"))) for i in range(2)
        ]
        await settle()
        work = await heard(coordinator.gate())
        await coordinator.validated(work.number, "findings")
        await coordinator.withdraw([0, 1])
        return [await heard(answer) for answer in answers], len(coordinator._validated)

    assert asyncio.run(story()) == (["findings", None], 0)


def test_a_model_that_kills_its_actors_fails_the_files():
    async def story():
        coordinator = Coordinator(1, "toy")
        await coordinator.add(FILE, CHUNKS)
        for _ in range(6):
            await coordinator.begin_load("node")
        await coordinator.look({"node"})
        spared = coordinator.ledger.has_reports
        for _ in range(6):
            await coordinator.begin_load("another")
        await coordinator.look(set())
        return spared, await heard(coordinator.take_reports())

    spared, (failed,) = asyncio.run(story())

    assert not spared
    assert "killed 4 actors while they loaded the model" in failed.failure.message
