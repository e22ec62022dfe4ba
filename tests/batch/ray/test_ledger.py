"""The ledger, with workers that die, hang and come back in any order: no chunk is lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sized
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sheaf_dagster.batch.messages import ChunkReport, ErrorMessage, FileWork
from sheaf_dagster.batch.ray.ledger import LATER, Ledger
from sheaf_dagster.batch.ray.records import (
    MAX_ATTEMPTS,
    MAX_LOSSES,
    NodeDrains,
    ValidationWork,
)
from sheaf_dagster.errors import WorkerCrashError
from sheaf_dagster.storage import Chunk, Location, Part, PartStore


def file(number: int = 0, on_error: str = "fail") -> FileWork:
    store = PartStore(Location("/nowhere"))
    return FileWork(number, (), (f"{number}.jsonl",), store, 4, on_error, None)


def chunks(count: int) -> list[Chunk]:
    return [Chunk(i, 0, 0, 1, 4 * i, 4, 4 * i + 1) for i in range(count)]


@dataclass
class Worker:
    """One in a seat, with what it holds."""

    ledger: Ledger
    seat: int
    turn: int = 0
    held: list[tuple[FileWork, Chunk]] = field(default_factory=list)
    ended: bool = False

    def start(self, node: str = "") -> None:
        """In place of one that died."""
        self.held, self.ended = [], False
        self.turn = self.ledger.enter(self.seat, node or f"node-{self.seat}")

    def ask(self, *, idle: bool = False) -> None:
        if self.ended:
            return
        work = self.ledger.take(self.seat, self.turn, idle=idle)
        if work is None:
            self.ended = True
        elif work is not LATER:
            self.held += work

    def report(self, failure: str | None = None) -> None:
        if not self.held:
            return
        job, chunk = self.held.pop(0)
        part = None if failure else Part(chunk.index, chunk.rows, 0, 0, 1)
        said = ErrorMessage((), failure) if failure else None
        made = ChunkReport(job.id, chunk.index, chunk.first_row, "w", part=part, failure=said)
        self.ledger.report(self.seat, made)

    def hang(self) -> None:
        """Says so and dies."""
        if self.held:
            job, chunk = self.held[0]
            rows = frozenset([chunk.first_row])
            self.ledger.hung(self.seat, self.turn, job.id, chunk.index, rows, "hung")
        self.start()


def failures(ledger: Ledger) -> list[str]:
    return [r.failure.message for r in ledger.take_reports() if r.failure is not None]


def finish(ledger: Ledger, workers: list[Worker], rounds: int, *, idle: bool = False) -> None:
    """From here on nothing goes wrong."""
    for _ in range(rounds):
        for worker in workers:
            worker.report()
            worker.ask(idle=idle)
        if all(w.ended and not w.held for w in workers):
            return
    raise AssertionError("a worker waits for ever")


EVENTS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 11)), max_size=100)


@settings(max_examples=300)
@given(
    st.integers(1, 4),
    st.lists(st.integers(1, 8), min_size=1, max_size=3),
    EVENTS,
    st.booleans(),
    st.booleans(),
)
def test_every_chunk_is_reported_once_or_its_file_fails_once(slots, counts, events, record, idle):
    ledger = Ledger(slots, "toy")
    for number, count in enumerate(counts):
        ledger.add(file(number, "record" if record else "fail"), chunks(count))
    ledger.close()
    workers = [Worker(ledger, i) for i in range(slots)]
    for worker in workers:
        worker.start()
    for number, what in events:
        worker = workers[number % slots]
        if what < 4:
            worker.ask(idle=idle)
        elif what < 8:
            worker.report()
        elif what == 8:
            worker.start()
        elif what == 9:
            ledger.nodes_lost({f"node-{worker.seat}"})
            worker.start()
        elif what == 10:
            worker.report("the model failed")
        else:
            worker.hang()
    for worker in workers:
        worker.start()  # one that idled away may be the one that is needed
    finish(ledger, workers, 40 * sum(counts) + 40)

    reports = ledger.take_reports()
    for number, count in enumerate(counts):
        own = [r for r in reports if r.file == number]
        failed = [r for r in own if r.failure is not None]
        done = Counter(r.chunk for r in own if r.failure is None)
        assert max(done.values(), default=1) == 1
        if failed:
            assert len(failed) == 1
            assert {what for _, what in events} & {8, 9, 10, 11}, "nothing failed, but the job did"
            assert own[-1] is failed[0], "what comes after the failure is of no use"
        else:
            assert sorted(done) == list(range(count))
    assert not ledger.has_work
    assert sizes(ledger) == dict.fromkeys(sizes(ledger), 0)


def sizes(ledger: Ledger) -> dict[str, int]:
    """Of all that grows with files and chunks."""
    found = {
        name: len(value)
        for name, value in vars(ledger).items()
        if isinstance(value, Sized) and name not in ("_seats", "_backend", "_lost_nodes")
    }
    found["held"] = sum(len(seat.held) for seat in ledger._seats.values())
    return found


def test_twenty_thousand_files_leave_nothing_behind():
    ledger = Ledger(4, "toy")
    workers = [Worker(ledger, i) for i in range(4)]
    for worker in workers:
        worker.start()
    seen = []

    for number in range(20_000):
        ledger.add(file(number, "record"), chunks(1 + number % 3))
        for worker in workers:
            worker.ask()
            while worker.held:
                fault = number % 97
                if fault == 13 and worker.seat == 1:
                    worker.start()
                elif fault == 17:
                    worker.hang()
                else:
                    worker.report("failed" if fault == 19 else None)
        if number % 5 == 0:
            ledger.call_off(number)
        if number % 50 == 49:
            ledger.take_reports()
            seen.append(sizes(ledger))
    ledger.close()
    finish(ledger, workers, 1000)
    ledger.take_reports()

    half = len(seen) // 2
    for name in seen[0]:
        early, late = (max(s[name] for s in part) for part in (seen[:half], seen[half:]))
        assert late <= early + 2 <= 70, name
    assert sizes(ledger) == dict.fromkeys(sizes(ledger), 0)
    assert len(ledger._seats) == 4


def test_a_file_that_is_added_after_the_end_runs_no_more():
    ledger = Ledger(1, "toy")
    ledger.add(file(0), chunks(2))
    ledger.abort()
    ledger.add(file(1), chunks(2))
    worker = Worker(ledger, 0)
    worker.start()
    worker.ask()

    assert worker.ended
    assert not worker.held
    assert ledger.gate() is False


@pytest.mark.parametrize("idle", [True, False])
def test_a_worker_that_waits_for_what_others_hold_may_leave_at_the_end_of_a_job(idle):
    ledger = Ledger(2, "toy")
    ledger.add(file(), chunks(1))
    busy, waiting = Worker(ledger, 0), Worker(ledger, 1)
    for worker in (busy, waiting):
        worker.start()
        worker.ask(idle=idle)
    early = waiting.ended  # a file may still come
    ledger.close()
    waiting.ask(idle=idle)
    late = waiting.ended
    busy.report()
    waiting.ask()

    assert (early, late, waiting.ended) == (False, idle, True)


def test_news_are_what_a_worker_that_was_told_later_needs_to_hear():
    ledger = Ledger(2, "toy")
    told = []

    def news() -> bool:
        had, ledger.has_news = ledger.has_news, False
        return had

    first, second = Worker(ledger, 0), Worker(ledger, 1)
    for worker in (first, second):
        worker.start()
    news()
    ledger.add(file(), chunks(2))
    told.append(news())
    first.ask()
    second.ask()
    first.report()
    told.append(news())  # the other is at work, and a file may still come
    ledger.close()
    told.append(news())
    second.report()
    told.append(news())  # nothing is left

    assert told == [True, False, True, True]


def test_work_to_validate_is_for_those_who_have_nothing_else_to_do():
    ledger = Ledger(2, "toy")
    work = [ValidationWork(i, f"group {i}") for i in range(4)]
    for one in work:
        ledger.offer(one)
    ledger.withdraw([1])

    before_the_first_file = ledger.gate()
    ledger.add(file(), chunks(1))
    worker = Worker(ledger, 0)
    worker.start()
    first = ledger.take(0, worker.turn)
    while_it_holds_a_chunk = ledger.take(0, worker.turn)
    worker.held = list(first)
    worker.report()
    then = [ledger.take(0, worker.turn) for _ in range(2)]

    assert before_the_first_file == work[0]
    assert [chunk.index for _, chunk in first] == [0]
    assert while_it_holds_a_chunk is LATER
    assert then == [work[2], work[3]]
    assert ledger.gate() is True
    assert ledger.take(0, worker.turn) is LATER


def test_a_seat_is_worked_in_until_its_worker_leaves_hangs_or_is_lost():
    ledger = Ledger(4, "toy")
    ledger.add(file(0, "record"), chunks(9))
    workers = [Worker(ledger, i) for i in range(4)]
    for worker in workers:
        worker.start()
        worker.ask()
    counts = [ledger.at_work]

    ledger.leave(0, 1)
    counts.append(ledger.at_work)
    job, chunk = workers[1].held[0]
    ledger.hung(1, 1, job.id, chunk.index, frozenset([1]), "hung")
    counts.append(ledger.at_work)
    ledger.nodes_lost({"node-2"})
    counts.append(ledger.at_work)
    ledger.leave(3, 1)
    counts.append(ledger.at_work)
    workers[3].start()
    counts.append(ledger.at_work)
    ledger.leave(3, 1)  # heard late, from the one that died
    counts.append(ledger.at_work)

    assert counts == [4, 3, 2, 1, 0, 1, 1]
    assert ledger.has_work


def test_a_batch_that_hung_is_tried_again_with_what_is_known_and_its_neighbours_are_not_blamed():
    ledger = Ledger(1, "toy")
    ledger.add(file(0, "record"), chunks(8))
    worker = Worker(ledger, 0)
    worker.start()
    for _ in range(3):
        worker.ask()
    guilty, innocent = worker.held[0][1].index, [c.index for _, c in worker.held[1:]]
    worker.hang()
    worker.ask()
    ((job, again),) = worker.held

    assert len(innocent) >= 1
    assert again.index == guilty, "alone, and first"
    assert job.hangs[guilty].together == {again.first_row}
    worker.report()
    worker.ask()
    while len(worker.held) < 7:
        worker.ask()
    assert sorted(c.index for _, c in worker.held) == sorted({*range(8)} - {guilty})
    assert failures(ledger) == []


def test_what_a_dead_worker_says_of_its_batch_is_no_matter_of_its_successor():
    ledger = Ledger(1, "toy")
    ledger.add(file(0, "record"), chunks(1))
    worker = Worker(ledger, 0)
    worker.start()
    worker.ask()
    worker.start()
    worker.ask()
    ledger.hung(0, 1, 0, 0, frozenset(range(4)), "heard late")
    held = [c.index for _, c in worker.held]
    worker.report()

    assert held == [0]
    assert [r.failure for r in ledger.take_reports()] == [None]


def test_what_a_dead_worker_asks_for_is_given_no_chunk():
    ledger = Ledger(1, "toy")
    ledger.add(file(), chunks(2))
    dead = Worker(ledger, 0)
    dead.start()
    alive = Worker(ledger, 0)
    alive.start()
    dead.ask()
    alive.ask()

    assert (dead.ended, dead.held) == (True, [])
    assert len(alive.held) == 1


def test_a_batch_that_hung_fails_its_file_where_nothing_is_to_be_recorded():
    ledger = Ledger(1, "toy")
    ledger.add(file(0, "fail"), chunks(3))
    worker = Worker(ledger, 0)
    worker.start()
    worker.ask()
    worker.hang()

    assert failures(ledger) == ["hung"]
    assert not ledger.has_work


@pytest.mark.parametrize("missed_first", [True, False])
def test_a_chunk_is_not_given_up_for_the_nodes_that_it_lost(missed_first):
    ledger = Ledger(1, "toy")
    ledger.add(file(), chunks(1))
    worker = Worker(ledger, 0)
    worker.start("first")
    worker.ask()
    node = "first"
    for number in range(6):
        gone, node = node, f"node {number}"
        if missed_first:
            ledger.nodes_lost({gone})
            worker.start(node)
            worker.ask()
        else:  # Ray starts the worker anew before the driver has looked at the nodes
            worker.start(node)
            worker.ask()
            ledger.nodes_lost({gone})
    spared = failures(ledger)
    for _ in range(MAX_ATTEMPTS + 1):
        worker.start(node)  # it died
        worker.ask()

    assert spared == []
    (message,) = failures(ledger)
    assert "the 4 rows from line 1: their worker process died 4 times" in message


def test_a_chunk_that_takes_every_node_down_is_given_up_in_the_end():
    ledger = Ledger(1, "toy")
    ledger.add(file(), chunks(1))
    worker = Worker(ledger, 0)
    losses = 0
    while ledger.has_work and losses < 50:
        worker.start(f"node {losses}")
        worker.ask()
        ledger.nodes_lost({f"node {losses}"})
        losses += 1

    (message,) = failures(ledger)
    assert losses == MAX_LOSSES + 1
    assert "the node of their worker was lost 21 times" in message


def test_what_fails_every_file_fails_those_to_come_too():
    ledger = Ledger(1, "toy")
    ledger.add(file(0), chunks(3))
    ledger.fail_all(WorkerCrashError("the model kills whoever loads it"))
    ledger.add(file(1), chunks(3))

    reports = ledger.take_reports()
    assert [r.file for r in reports] == [0, 1]
    assert {type(r.failure.rebuilt()) for r in reports} == {WorkerCrashError}
    assert not ledger.has_work


def test_a_worker_on_a_node_that_is_drained_finishes_what_it_holds_and_gets_nothing_more():
    ledger = Ledger(2, "b")
    ledger.add(file(), chunks(6))
    ledger.close()
    going, staying = Worker(ledger, 0), Worker(ledger, 1)
    for worker in (going, staying):
        worker.start()
        worker.ask()
    held = list(going.held)
    ledger.has_news = False

    ledger.nodes_drain(frozenset(["node-0"]))
    assert ledger.has_news, "who waits must hear of it"
    assert isinstance(ledger.take(0, going.turn), NodeDrains)
    while going.held:
        going.report()
    ledger.leave(0, going.turn)
    going.start(node="node-2")  # where Ray has started it again
    finish(ledger, [going, staying], 10)

    assert held
    reports = ledger.take_reports()
    assert sorted(r.chunk for r in reports) == list(range(6)), "each once"
    assert not ledger.has_work
