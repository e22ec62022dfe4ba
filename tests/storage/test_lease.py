"""The lock of a remote sink: a running job is told from a killed one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from sheaf_dagster import SinkBusyError, SinkError
from sheaf_dagster.storage import Location, Sink, lease
from tests.conftest import ROOT
from tests.storage.parts import filled

pytestmark = pytest.mark.s3


@pytest.fixture(autouse=True)
def short_times(monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(lease, "STALE_SECONDS", 0.6)
    monkeypatch.setattr(lease, "WATCH_SECONDS", 0.1)
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.05)
    monkeypatch.setattr(lease, "_dead", set())


@pytest.fixture
def sink(s3):
    return Sink(Location.of(s3.uri("out.jsonl"), s3.options()))


def marker(sink: Sink) -> Location:
    return sink.aside.child("lock")


def foreign(sink: Sink, **fields) -> None:
    """Another machine's lock."""
    state = {"lease": "theirs", "process": "p", "host": "elsewhere", "pid": 1, "beat": 0}
    marker(sink).write(json.dumps({**state, **fields}).encode())


def test_a_lock_that_is_renewed_is_respected(sink):
    foreign(sink)
    stop = threading.Event()

    def renew():
        beat = 0
        while not stop.wait(0.05):
            beat += 1
            foreign(sink, beat=beat)

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(SinkBusyError, match="written by another job"):
            sink.prepare()
    finally:
        stop.set()
        thread.join()


def test_a_lock_that_stands_still_is_taken_over_and_its_process_known_as_dead(sink, s3):
    foreign(sink)
    sink.prepare()
    assert json.loads(marker(sink).read())["lease"] != "theirs"
    sink.release()
    assert s3.names() == []
    assert lease._dead == {"p"}


def test_a_killed_process_of_this_machine_is_not_waited_for(sink, monkeypatch):
    monkeypatch.setattr(lease, "STALE_SECONDS", 3600)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    foreign(sink, host=lease._host(), pid=ended.pid)

    sink.prepare()

    assert json.loads(marker(sink).read())["lease"] != "theirs"
    sink.release()


def test_a_holder_renews_its_lock(sink):
    sink.prepare()
    while json.loads(marker(sink).read())["beat"] < 2:
        pass
    sink.release()


def test_a_job_that_lost_its_sink_gives_way_before_it_commits(sink, s3):
    store, parts = filled(sink, [b"a\n"])
    foreign(sink)

    with pytest.raises(SinkBusyError, match="taken over by another job"):
        sink.commit(store, parts)

    sink.release()
    assert "out.jsonl" not in s3.names()
    assert json.loads(marker(sink).read())["lease"] == "theirs"


def test_a_lock_that_this_process_could_not_give_back_is_its_own_to_take(sink, monkeypatch):
    monkeypatch.setattr(lease, "STALE_SECONDS", 3600)
    sink.prepare()
    left = marker(sink).read()
    sink.release()
    marker(sink).write(left)

    again = Sink(sink.location)
    again.prepare()

    assert marker(sink).read() != left
    again.release()


OTHERS = """
import json, os, sys, time
from sheaf_dagster import SinkBusyError
from sheaf_dagster.storage import Location, Sink, lease
lease.BEAT_SECONDS, lease.STALE_SECONDS, lease.WATCH_SECONDS = 0.05, 60, 0.1
how, options, *uris = json.loads(sys.argv[1])

def take(uri):
    Sink(Location.of(uri, options)).prepare()
    print("taken", flush=True)

if how == "hold":
    for uri in uris:
        take(uri)
elif os.fork() == 0:
    take(uris[0])
else:
    while not Location.of(uris[0], options).parent.child(".out.jsonl.sheaf/lock").state():
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
        process.wait(timeout=30)
        process.stdout.close()


def test_a_process_that_was_stopped_for_a_while_keeps_the_locks_that_it_still_has(
    s3, sink, others, monkeypatch
):
    stopped = others("hold", "out.jsonl", "other.jsonl")
    assert [stopped.stdout.readline() for _ in range(2)] == ["taken\n"] * 2
    stopped.send_signal(signal.SIGSTOP)
    sink.prepare()  # after a while
    monkeypatch.setattr(lease, "STALE_SECONDS", 60)

    stopped.send_signal(signal.SIGCONT)
    other = Sink(Location.of(s3.uri("other.jsonl"), s3.options()))
    (dead,) = lease._dead
    while json.loads(marker(other).read())["process"] == dead:
        pass

    with pytest.raises(SinkBusyError, match="written by another job"):
        other.prepare()
    sink.release()


def test_processes_that_were_forked_know_one_anothers_locks(others):
    forked = others("fork", "out.jsonl")

    said = [forked.stdout.readline() for _ in range(2)]

    assert said == ["taken\n", "busy\n"]


def test_a_damaged_lock_goes_stale_like_any_other(sink):
    marker(sink).write(b"{")

    sink.prepare()

    assert json.loads(marker(sink).read())["pid"] == os.getpid()
    sink.release()


def test_a_store_that_refuses_says_so_before_anything_is_run(s3):
    options = {
        **s3.options(),
        "endpoint_url": "http://127.0.0.1:9",
        "config_kwargs": {"retries": {"max_attempts": 1}},
    }
    sink = Sink(Location.of(s3.uri("out.jsonl"), options))
    with pytest.raises(SinkError, match="out.jsonl can't be written: EndpointConnectionError"):
        sink.prepare()
