"""Jobs that take a sink the moment that another gives it free, and jobs that have lost theirs."""

from __future__ import annotations

import json
import os
import threading

import pytest

from sheaf_dagster import SinkBusyError
from sheaf_dagster.storage import Location, Sink
from tests.storage.parts import filled


@pytest.mark.parametrize("fingerprint", [c * 64 for c in "01234567"])
def test_a_sink_is_not_given_free_before_its_parts_are_gone(fingerprint, tmp_path, monkeypatch):
    sink = Sink(Location.of(str(tmp_path / "out.jsonl")))
    store, parts = filled(sink, [b"a\n", b"b\n"], fingerprint)
    refused = []
    unlink = os.unlink

    def take_over_and_unlink(path, **where):
        if "part-" in str(path):
            with pytest.raises(SinkBusyError) as caught:
                Sink(sink.location).prepare()
            refused.append(caught.value)
        unlink(path, **where)

    monkeypatch.setattr(os, "unlink", take_over_and_unlink)
    sink.commit(store, parts)

    assert len(refused) == 2
    assert os.listdir(tmp_path) == ["out.jsonl"]


def test_taking_and_giving_free_all_the_time_ends_in_no_error(tmp_path):
    errors: list[BaseException] = []
    taken = []

    def take_turns() -> None:
        for _ in range(300):
            sink = Sink(Location.of(str(tmp_path / "out.jsonl")))
            try:
                sink.prepare()
                taken.append(1)
                sink.discard()
                sink.release()
            except SinkBusyError:
                continue
            except BaseException as e:
                errors.append(e)
                return

    threads = [threading.Thread(target=take_turns) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    assert len(taken) > 1
    assert os.listdir(tmp_path) == []


@pytest.mark.s3
def test_a_job_that_lost_its_sink_leaves_the_new_holders_files_alone(s3):
    sink = Sink(Location.of(s3.uri("out.jsonl"), s3.options()))
    store, parts = filled(sink, [b"a\n"])
    lock = sink.aside.child("lock")
    theirs = {"lease": "theirs", "process": "p", "host": "elsewhere", "pid": 1, "beat": 0}
    lock.write(json.dumps(theirs).encode())
    sink.spool().child("source-0000.jsonl").write(b"{}\n")
    before = s3.names()

    with pytest.raises(SinkBusyError, match="taken over by another job"):
        sink.commit(store, parts)
    sink.discard()
    sink.release()

    assert s3.names() == before


def late(sink: Sink, fingerprint: str) -> str:
    """A part that a worker writes after the job has discarded all; its name."""
    part = sink.parts(fingerprint).write(7, b"a\n", rows=1, error_rows=0, non_finite=0)
    return sink.parts(fingerprint).location(part).path.split("/", 1)[1]


@pytest.mark.s3
def test_parts_that_come_late_are_swept_up(s3):
    sink = Sink(Location.of(s3.uri("out.jsonl"), s3.options()))
    filled(sink, [b"a\n"], "a" * 64)
    sink.discard()
    sink.release()
    ours, theirs = late(sink, "a" * 64), late(sink, "b" * 64)
    before = s3.names()

    sink.sweep()

    assert before == [ours, theirs]
    assert s3.names() == [theirs], "another job's, which may be resumed"


@pytest.mark.s3
def test_parts_that_come_late_are_left_to_the_job_that_has_the_sink(s3):
    sink, next_one = (Sink(Location.of(s3.uri("out.jsonl"), s3.options())) for _ in range(2))
    filled(sink, [b"a\n"])
    sink.discard()
    sink.release()
    next_one.prepare()
    part = late(sink, "f" * 64)

    sink.sweep()
    left = s3.names()
    next_one.open_run("f" * 64, resume=False)

    assert part in left
    assert part not in s3.names()
    next_one.discard()
    next_one.release()
    assert s3.names() == []
