"""Jobs that take a sink the moment that another gives it free, and jobs that have lost theirs."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from sheaf_dagster import SinkBusyError, SinkError
from sheaf_dagster.storage import Location, Sink, lease, store_at
from sheaf_dagster.storage.stores.s3_join import MIN_PIECE, S3Join
from sheaf_dagster.storage.stores.s3_marker import S3Marker
from tests.faults import Faults, FaultyProxy
from tests.object_store import changes_requests
from tests.storage.conftest import Place
from tests.storage.parts import filled


@pytest.mark.parametrize("fingerprint", [c * 64 for c in "01234567"])
def test_a_sink_is_not_given_free_before_its_parts_are_gone(fingerprint, tmp_path, monkeypatch):
    sink = Sink(Location.of(str(tmp_path / "out.jsonl")))
    held, parts = filled(sink, [b"a\n", b"b\n"], fingerprint)
    refused = []
    unlink = os.unlink

    def take_over_and_unlink(path, **where):
        if "part-" in str(path):
            with pytest.raises(SinkBusyError) as caught:
                sink.hold()
            refused.append(caught.value)
        unlink(path, **where)

    monkeypatch.setattr(os, "unlink", take_over_and_unlink)
    held.commit(parts)

    assert len(refused) == 2
    assert os.listdir(tmp_path) == ["out.jsonl"]


def test_taking_and_giving_free_all_the_time_ends_in_no_error(tmp_path):
    errors: list[BaseException] = []
    taken = []

    def take_turns() -> None:
        for _ in range(300):
            sink = Sink(Location.of(str(tmp_path / "out.jsonl")))
            try:
                with sink.hold() as held:
                    taken.append(1)
                    held.discard()
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


def take_away(sink: Sink) -> None:
    """Another machine has taken the sink over."""
    theirs = {"lease": "theirs", "process": "p", "host": "elsewhere", "pid": 1, "beat": 0}
    store_at(sink.aside.child("lock")).write(json.dumps(theirs).encode())


@pytest.mark.s3
@pytest.mark.parametrize("heard", [False, True], ids=["unheard", "heard"])
def test_a_job_that_lost_its_sink_leaves_the_new_holders_files_alone(s3, heard):
    sink = Sink(Location.of(s3.uri("out.jsonl"), s3.options()))
    held, parts = filled(sink, [b"a\n"])
    store_at(held.spool().child("source-0000.jsonl")).write(b"{}\n")
    s3.client.create_multipart_upload(Bucket=s3.bucket, Key="out.jsonl")
    s3.client.create_multipart_upload(Bucket=s3.bucket, Key=".out.jsonl.sheaf/run-1/part")
    take_away(sink)
    before, uploads = s3.names(), s3.uploads()
    if heard:
        with pytest.raises(SinkBusyError, match="taken over by another job"):
            held.remove(sink.aside)

    for destroy in (
        lambda: held.commit(parts),
        lambda: held.remove(sink.aside),
        lambda: held.open_run("f" * 64, resume=False),
        lambda: held.open_run("0" * 64, resume=True),
    ):
        with pytest.raises(SinkBusyError, match="taken over by another job"):
            destroy()
    held.discard()
    held.release()
    sink.sweep("f" * 64)

    assert not held.held
    assert s3.names() == before
    assert s3.uploads() == uploads
    assert json.loads(store_at(sink.aside.child("lock")).read())["lease"] == "theirs"


@pytest.fixture(
    params=[
        "memory",
        "mounted",
        pytest.param("refused", marks=pytest.mark.s3),
        pytest.param("ignored", marks=[pytest.mark.s3, changes_requests]),
    ]
)
def without_conditions(request, tmp_path, monkeypatch) -> Iterator[Place]:
    """A folder of a store that compares nothing: of other protocols, and of S3s that can't."""
    if request.param in ("memory", "mounted"):
        yield Place(f"{request.param}://{tmp_path}")
        return
    monkeypatch.setattr(S3Marker, "_heeds", {})
    s3 = request.getfixturevalue("s3")
    proxy = FaultyProxy(s3.endpoint)
    proxy.faults = Faults(conditions=request.param)
    yield Place(s3.uri("some/folder"), s3.options(proxy.endpoint))
    proxy.stop()


@pytest.mark.parametrize("destroys", ["commit", "removal", "discard", "release"])
def test_where_a_store_compares_nothing_the_lock_is_looked_at_anew_before_each_step_that_destroys(
    without_conditions, monkeypatch, destroys
):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 3600)  # no renewal tells the job of its loss
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.01)
    sink = Sink(without_conditions.at("out.jsonl"))
    without_conditions.put("out.jsonl", b"before\n")
    held, parts = filled(sink, [b"a\n"])
    take_away(sink)
    before = without_conditions.names()

    assert held.held, "it has heard nothing"
    if destroys in ("commit", "removal"):
        with pytest.raises(SinkBusyError, match="taken over by another job"):
            held.commit(parts) if destroys == "commit" else held.remove(sink.aside)
    else:
        held.discard() if destroys == "discard" else held.release()

    assert not held.held
    assert set(before) <= set(without_conditions.names())
    assert store_at(sink.location).read() == b"before\n"
    assert json.loads(store_at(sink.aside.child("lock")).read())["lease"] == "theirs"


@pytest.mark.s3
def test_a_job_that_loses_its_sink_while_it_joins_does_not_commit(s3, monkeypatch):
    sink = Sink(Location.of(s3.uri("out.jsonl"), s3.options()))
    held, parts = filled(sink, [b"a" * MIN_PIECE + b"\n", b"b\n"])
    call = S3Join._call

    def lose(self, method, **arguments):
        if method == "upload_part":
            take_away(sink)
        return call(self, method, **arguments)

    monkeypatch.setattr(S3Join, "_call", lose)
    with pytest.raises(SinkBusyError, match="taken over by another job"):
        held.commit(parts)

    assert "out.jsonl" not in s3.names()


def test_a_job_whose_folder_was_removed_under_it_leaves_the_next_ones_alone(tmp_path):
    sink = Sink(Location.of(str(tmp_path / "out.jsonl")))
    held, parts = filled(sink, [b"a\n"])
    shutil.rmtree(sink.aside.uri)
    next_one, theirs = filled(sink, [b"b\n"])

    for destroy in (
        lambda: held.commit(theirs),
        lambda: held.remove(sink.aside),
        lambda: held.open_run("f" * 64, resume=False),
    ):
        with pytest.raises(SinkBusyError, match="was removed while this job was writing"):
            destroy()
    held.discard()
    held.release()

    assert next_one.held
    next_one.commit(theirs)
    assert (tmp_path / "out.jsonl").read_bytes() == b"b\n"


def test_a_job_whose_folder_was_removed_joins_nothing_into_the_next_ones_output(tmp_path):
    sink = Sink(Location.of(str(tmp_path / "out.jsonl")))
    held, _ = filled(sink, [b"a\n", b"b\n"])
    shutil.rmtree(sink.aside.uri)
    next_one, theirs = filled(sink, [b"a\n", b"b\n"])
    next_one.join_ahead(theirs[:1])

    with suppress(SinkError):
        held.join_ahead([])  # begins a file of its own

    next_one.commit(theirs)
    assert (tmp_path / "out.jsonl").read_bytes() == b"a\nb\n"
    held.release()
    assert os.listdir(tmp_path) == ["out.jsonl"]


def late(sink: Sink, fingerprint: str) -> str:
    """A part that a worker writes after the job has discarded all; its name."""
    part = sink.parts(fingerprint).write(7, b"a\n", rows=1, error_rows=0, non_finite=0)
    return store_at(sink.parts(fingerprint).location(part)).path.split("/", 1)[1]


@pytest.mark.s3
def test_parts_that_come_late_are_swept_up(s3):
    sink = Sink(Location.of(s3.uri("out.jsonl"), s3.options()))
    held, _ = filled(sink, [b"a\n"], "a" * 64)
    held.discard()
    ours, theirs = late(sink, "a" * 64), late(sink, "b" * 64)
    before = s3.names()

    sink.sweep("a" * 64)

    assert before == [ours, theirs]
    assert s3.names() == [theirs], "another job's, which may be resumed"


@pytest.mark.s3
def test_parts_that_come_late_are_left_to_the_job_that_has_the_sink(s3):
    sink = Sink(Location.of(s3.uri("out.jsonl"), s3.options()))
    held, _ = filled(sink, [b"a\n"])
    held.discard()
    next_one = sink.hold()
    part = late(sink, "f" * 64)

    sink.sweep("f" * 64)
    left = s3.names()
    next_one.open_run("f" * 64, resume=False)

    assert part in left
    assert part not in s3.names()
    next_one.discard()
    assert s3.names() == []
