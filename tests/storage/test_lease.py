"""The lock of a remote sink: a running job is told from a killed one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from sheaf_dagster import SinkBusyError, SinkError
from sheaf_dagster.storage import Location, Sink, lease, store_at
from sheaf_dagster.storage.stores.s3_marker import S3Marker
from tests.conftest import ROOT
from tests.faults import Faults, FaultyProxy
from tests.object_store import changes_requests, needs_if_match
from tests.storage.locks import foreign, lock_of, taken_together, told
from tests.storage.parts import filled

pytestmark = pytest.mark.s3


@pytest.fixture(autouse=True)
def short_times(monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(lease, "STALE_SECONDS", 0.6)
    monkeypatch.setattr(lease, "WATCH_SECONDS", 0.1)
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.05)
    monkeypatch.setattr(lease._process, "silent", {})
    monkeypatch.setattr(S3Marker, "_heeds", {})


@pytest.fixture
def sink(s3):
    return Sink(Location.of(s3.uri("out.jsonl"), s3.options()))


@contextmanager
def beating(renew) -> Iterator[None]:
    """Another job that renews its lock."""
    stop = threading.Event()

    def run() -> None:
        beat = 0
        while not stop.wait(0.05):
            beat += 1
            renew(beat)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_a_lock_that_is_renewed_is_respected(sink, monkeypatch):
    monkeypatch.setattr(lease, "STALE_SECONDS", 20)  # that long no machine is too busy to renew it
    foreign(sink)

    with (
        beating(lambda beat: foreign(sink, beat=beat)),
        pytest.raises(SinkBusyError, match="written by another job"),
    ):
        sink.hold()


def test_a_lock_that_stands_still_is_taken_over_and_its_process_known_as_dead(s3, sink):
    other = Sink(Location.of(s3.uri("other.jsonl"), s3.options()))
    foreign(sink, at=100.0)
    foreign(other, at=100.0 + 2 * lease.BEAT_SECONDS)
    with sink.hold():
        assert told(sink)["lease"] != "theirs"

    lease.STALE_SECONDS = 3600
    other.hold().release()

    assert s3.names() == []


def test_a_process_that_has_lived_on_is_not_taken_for_dead(s3, sink):
    other = Sink(Location.of(s3.uri("other.jsonl"), s3.options()))
    foreign(sink, at=100.0)
    sink.hold().release()
    foreign(other, at=200.0)
    lease.STALE_SECONDS = 3600

    with (
        beating(lambda beat: foreign(other, at=200.0 + beat)),
        pytest.raises(SinkBusyError, match="written by another job"),
    ):
        other.hold()


def test_a_killed_process_of_this_machine_is_not_waited_for(sink, monkeypatch):
    monkeypatch.setattr(lease, "STALE_SECONDS", 3600)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    foreign(sink, host=lease._host(), pid=ended.pid)

    with sink.hold():
        assert told(sink)["lease"] != "theirs"


def test_a_holder_renews_its_lock(sink):
    with sink.hold():
        while told(sink)["beat"] < 2:
            time.sleep(0.01)


def test_a_job_that_lost_its_sink_gives_way_before_it_commits(sink, s3):
    held, parts = filled(sink, [b"a\n"])
    foreign(sink)

    with pytest.raises(SinkBusyError, match="taken over by another job"):
        held.commit(parts)

    held.release()
    assert "out.jsonl" not in s3.names()
    assert told(sink)["lease"] == "theirs"


def test_a_lock_that_this_process_could_not_give_back_is_its_own_to_take(sink, monkeypatch):
    monkeypatch.setattr(lease, "STALE_SECONDS", 3600)
    held = sink.hold()
    left = lock_of(sink).read()
    held.release()
    lock_of(sink).write(left)

    with sink.hold():
        assert lock_of(sink).read() != left


@pytest.fixture
def proxy(s3):
    proxy = FaultyProxy(s3.endpoint)
    yield proxy
    proxy.stop()


@pytest.fixture
def through(s3, proxy):
    """The sink as a job sees it whose requests pass through the proxy."""
    return Sink(Location.of(s3.uri("out.jsonl"), s3.options(proxy.endpoint)))


LOCK = r"/\.out\.jsonl\.sheaf/lock"


@needs_if_match
@pytest.mark.parametrize("act", ["renewal", "commit", "removal", "release"])
def test_a_lock_that_is_taken_over_in_the_moment_of_a_write_stays_the_new_owners(
    sink, through, proxy, act, monkeypatch
):
    if act != "renewal":
        monkeypatch.setattr(lease, "BEAT_SECONDS", 3600)
    held, parts = filled(through, [b"a\n"])
    proxy.faults = Faults(
        kinds=("raced",),
        picks=(f"(PUT|DELETE) .*{LOCK}",),
        times=1,
        meanwhile=lambda: foreign(sink),
    )

    if act == "renewal":
        while held.held:
            time.sleep(0.01)
    elif act == "release":
        held.release()
    else:
        with pytest.raises(SinkBusyError, match="taken over by another job"):
            held.commit(parts) if act == "commit" else held.remove(sink.aside)

    assert not held.held
    held.discard()
    held.release()
    assert told(sink)["lease"] == "theirs"
    assert [f for f in store_at(sink.aside).list_files(depth=2) if "part-" in f.name]


@needs_if_match
def test_a_lock_that_is_taken_over_between_the_last_write_and_the_deletion_is_not_deleted(
    sink, through, proxy
):
    held = through.hold()
    proxy.faults = Faults(
        kinds=("raced",), picks=(f"DELETE .*{LOCK}",), times=1, meanwhile=lambda: foreign(sink)
    )

    held.release()

    assert proxy.faults.seen["raced"] == 1
    assert told(sink)["lease"] == "theirs"


def test_a_renewal_whose_answer_was_lost_is_no_loss(sink, through, proxy):
    held, parts = filled(through, [b"a\n"])
    proxy.faults = Faults(kinds=("lost answer",), picks=(f"PUT .*{LOCK}",), times=3)
    while proxy.faults.hit.total() < 3:
        time.sleep(0.01)

    held.commit(parts)

    assert store_at(sink.location).read() == b"a\n"
    assert store_at(sink.aside).list_files(depth=2) == []


def test_a_lock_whose_making_was_not_heard_of_is_held(sink, through, proxy):
    proxy.faults = Faults(kinds=("lost answer",), picks=(f"PUT .*{LOCK}",), times=1)

    with through.hold() as held:
        held.open_run("f" * 64, resume=True)
        assert proxy.faults.hit.total() == 1
        assert held.held
    assert store_at(sink.aside).list_files(depth=2) == []


@needs_if_match
def test_a_deletion_whose_answer_was_lost_is_not_repeated_on_the_next_ones_lock(
    sink, through, proxy
):
    held = through.hold()
    proxy.faults = Faults(
        kinds=("lost answer",),
        picks=(f"DELETE .*{LOCK}",),
        times=1,
        meanwhile=lambda: foreign(sink),
    )

    held.release()

    assert proxy.faults.hit.total() == 1
    assert told(sink)["lease"] == "theirs"


@pytest.mark.long
def test_a_store_that_hangs_on_one_lock_keeps_none_of_the_others_from_being_renewed(
    s3, proxy, through
):
    others = [Sink(Location.of(s3.uri(f"{i}.jsonl"), s3.options(proxy.endpoint))) for i in range(3)]
    hangs = through.hold()
    held = [other.hold() for other in others]
    proxy.faults = Faults(kinds=("stall",), picks=(f"PUT .*{LOCK}",), stall_seconds=3600)
    while not proxy.faults.hit.total():
        time.sleep(0.01)

    before = [told(other)["beat"] for other in others]
    while any(told(other)["beat"] < b + 5 for other, b in zip(others, before)):
        time.sleep(0.01)

    assert proxy.faults.hit.total() > 0
    assert all(h.held for h in (hangs, *held))
    proxy.faults = Faults()
    for h in (hangs, *held):
        h.release()
    assert s3.names() == []


def test_a_renewal_that_hangs_is_given_up_and_the_next_one_passes(proxy, through, monkeypatch):
    with through.hold() as held:
        monkeypatch.setattr(lease, "BEAT_SECONDS", 0.5)
        proxy.faults = Faults(
            kinds=("stall",), picks=(f"PUT .*{LOCK}",), times=2, stall_seconds=3600
        )
        while proxy.faults.hit.total() < 2:
            time.sleep(0.01)
        beat = told(through)["beat"]
        while told(through)["beat"] <= beat:
            time.sleep(0.01)
        assert held.held


@pytest.mark.parametrize("first", ["free", "a killed job's"])
@pytest.mark.parametrize("conditions", [pytest.param("ignored", marks=changes_requests), "refused"])
def test_on_a_store_without_conditions_a_lock_is_looked_at_before_it_is_written(
    s3, sink, through, proxy, conditions, first
):
    proxy.faults = Faults(conditions=conditions)
    if first != "free":
        foreign(sink)
    held, parts = filled(through, [b"a\n"])
    assert not lock_of(through).marker().exact
    with pytest.raises(SinkBusyError, match="written by another job"):
        through.hold()
    while told(sink)["beat"] < 3:
        time.sleep(0.01)
    while held.held:  # a renewal that has looked already writes over theirs
        foreign(sink)
        time.sleep(0.01)
    with pytest.raises(SinkBusyError, match="taken over by another job"):
        held.commit(parts)
    held.release()
    assert told(sink)["lease"] == "theirs"

    with through.hold() as again:  # theirs has gone stale
        assert told(sink)["lease"] != "theirs"
        again.discard()
    assert s3.names() == []


@needs_if_match
def test_a_store_without_conditions_of_deletions_gets_a_plain_one(s3, through, proxy):
    proxy.faults = Faults(conditions="refused on DELETE")
    with through.hold():
        assert lock_of(through).marker().exact
    assert s3.names() == []


def test_of_jobs_that_take_a_stale_lock_together_one_has_it(s3, sink):
    foreign(sink)
    sinks = [Sink(Location.of(s3.uri("out.jsonl"), s3.options())) for _ in range(6)]

    held, refused = taken_together(sinks)

    assert (len(held), len(refused)) == (1, 5)
    held[0].release()
    assert s3.names() == []


OTHERS = """
import json, os, sys, time
from sheaf_dagster import SinkBusyError
from sheaf_dagster.storage import Location, Sink, lease, store_at
lease.BEAT_SECONDS, lease.STALE_SECONDS, lease.WATCH_SECONDS = 0.05, 60, 0.1
how, options, *uris = json.loads(sys.argv[1])

held = []

def take(uri):
    held.append(Sink(Location.of(uri, options)).hold())
    print("taken", flush=True)

if how == "hold":
    for uri in uris:
        take(uri)
elif os.fork() == 0:
    take(uris[0])
else:
    lock = Location.of(uris[0], options).parent.child(".out.jsonl.sheaf/lock")
    while not store_at(lock).state():
        time.sleep(0.05)
    if os.fork() == 0:
        try:
            take(uris[0])
        except SinkBusyError as e:
            print("busy", flush=True)
sys.stdin.read()  # all of them end with the test
"""


@pytest.fixture
def others(s3):
    """Starts processes that take sinks; they live until the test ends."""
    started = []

    def start(how: str, *names: str) -> subprocess.Popen:
        told = json.dumps([how, s3.options(), *map(s3.uri, names)])
        process = subprocess.Popen(
            [sys.executable, "-c", OTHERS, told],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.stdin.close()
        process.wait(timeout=300)
        process.stdout.close()


def test_a_process_that_was_stopped_for_a_while_keeps_the_locks_that_it_still_has(
    s3, sink, others, monkeypatch
):
    stopped = others("hold", "out.jsonl", "other.jsonl")
    assert [stopped.stdout.readline() for _ in range(2)] == ["taken\n"] * 2
    stopped.send_signal(signal.SIGSTOP)
    with sink.hold():  # after a while
        monkeypatch.setattr(lease, "STALE_SECONDS", 60)
        other = Sink(Location.of(s3.uri("other.jsonl"), s3.options()))
        before = told(other)["beat"]
        stopped.send_signal(signal.SIGCONT)
        while told(other)["beat"] < before + 2:  # one may have been on its way
            time.sleep(0.01)

        with pytest.raises(SinkBusyError, match="written by another job"):
            other.hold()


def test_processes_that_were_forked_know_one_anothers_locks(others):
    forked = others("fork", "out.jsonl")

    said = [forked.stdout.readline() for _ in range(2)]

    assert said == ["taken\n", "busy\n"]


def test_a_damaged_lock_goes_stale_like_any_other(sink):
    lock_of(sink).write(b"{")

    with sink.hold():
        assert told(sink)["pid"] == os.getpid()


def test_a_store_that_refuses_says_so_before_anything_is_run(s3):
    options = {
        **s3.options(),
        "endpoint_url": "http://127.0.0.1:9",
        "config_kwargs": {"retries": {"max_attempts": 1}},
    }
    sink = Sink(Location.of(s3.uri("out.jsonl"), options))
    with pytest.raises(SinkError, match="out.jsonl can't be written: EndpointConnectionError"):
        sink.hold()
