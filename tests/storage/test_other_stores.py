"""Locks on Google Cloud Storage and Azure: each write names the version that it replaces."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path

import pytest

from sheaf_dagster import BatchRunner, BatchSpec, SinkBusyError, SinkError, SpecError
from sheaf_dagster.storage import HeldSink, Location, Sink, lease, store_at
from sheaf_dagster.storage.retry import is_transient
from tests.faults import Faults, FaultyProxy
from tests.other_stores import STORES, Emulator, needs_emulators
from tests.storage.locks import foreign, taken_together, told
from tests.storage.parts import filled
from tests.toys import doubler

pytestmark = needs_emulators

LOCK_WRITES = r"(PUT .*sheaf.*lock|POST .*/upload/)"


@pytest.fixture(params=STORES)
def emulator(request) -> Emulator:
    return request.getfixturevalue(f"{request.param}_server")


@pytest.fixture
def bucket(emulator) -> str:
    return emulator.bucket()


@pytest.fixture
def proxy(emulator):
    proxy = FaultyProxy(emulator.endpoint)
    yield proxy
    proxy.stop()


@pytest.fixture
def sink(emulator, bucket) -> Sink:
    return Sink(Location.of(f"{bucket}/out.jsonl", emulator.options(emulator.endpoint)))


@pytest.fixture
def through(emulator, bucket, proxy) -> Sink:
    """The sink as a job sees it whose requests pass through the proxy."""
    return Sink(Location.of(f"{bucket}/out.jsonl", emulator.options(proxy.endpoint)))


@pytest.fixture(autouse=True)
def short_times(monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 3600)
    monkeypatch.setattr(lease, "STALE_SECONDS", 0.6)
    monkeypatch.setattr(lease, "WATCH_SECONDS", 0.1)
    monkeypatch.setattr(lease._process, "silent", {})


def names(sink: Sink) -> list[str]:
    return sorted(f.name for f in store_at(sink.location.parent).list_files(depth=3)) + sorted(
        f.name for f in store_at(sink.aside).list_files(depth=3)
    )


def test_an_object_is_changed_by_who_knows_its_version(emulator, bucket):
    at = Location.of(f"{bucket}/a folder/ä b #1.lock", emulator.options(emulator.endpoint))
    marker = store_at(at).marker()

    assert marker.exact
    assert marker.read() is None
    first = marker.create(b"1")
    assert marker.create(b"other") is None
    second = marker.replace(b"2", first)
    assert marker.replace(b"other", first) is None
    found = marker.read()
    assert (found.content, found.version) == (b"2", second)
    marker.remove(second)
    assert marker.read() is None
    assert marker.replace(b"3", second) is None
    marker.remove(second)


def test_a_deletion_names_its_version(emulator, sink, through, proxy):
    seen = []
    proxy.faults = Faults(change=lambda request, body: seen.append(request) or body)
    held = through.hold()
    proxy.faults.meanwhile = lambda: foreign(sink)
    proxy.faults.kinds, proxy.faults.picks, proxy.faults.times = ("raced",), ("DELETE .*lock",), 1

    held.release()

    if emulator.protocol == "gs":  # its emulator compares on writes alone
        assert any("DELETE" in r and "ifGenerationMatch=" in r for r in seen)
    else:
        assert told(sink)["lease"] == "theirs"


def test_a_lock_that_is_taken_over_in_the_moment_of_a_write_stays_the_new_owners(
    sink, through, proxy
):
    held, parts = filled(through, [b"a\n"])
    proxy.faults = Faults(
        kinds=("raced",), picks=(LOCK_WRITES,), times=1, meanwhile=lambda: foreign(sink)
    )

    with pytest.raises(SinkBusyError, match="taken over by another job"):
        held.commit(parts)

    held.discard()
    held.release()
    assert told(sink)["lease"] == "theirs"
    assert store_at(sink.location).state() is None
    assert any("part-" in name for name in names(sink))


@pytest.mark.parametrize("moment", ["made", "proven"])
def test_a_write_of_the_lock_whose_answer_was_lost_is_no_loss(sink, through, proxy, moment):
    faults = Faults(kinds=("lost answer",), picks=(LOCK_WRITES,), times=1)
    if moment == "made":
        proxy.faults = faults
    held, parts = filled(through, [b"a\n"])
    proxy.faults = faults

    held.commit(parts)

    assert faults.hit.total() == 1
    assert store_at(sink.location).read() == b"a\n"
    assert names(sink) == ["out.jsonl"]


def test_of_jobs_that_take_a_stale_lock_together_one_has_it(sink):
    foreign(sink)

    held, refused = taken_together([Sink(sink.location) for _ in range(6)])

    assert (len(held), len(refused)) == (1, 5)
    held[0].release()
    assert names(sink) == []


def test_a_holder_renews_its_lock(sink, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.05)
    with sink.hold():
        while told(sink)["beat"] < 2:
            time.sleep(0.01)


def test_a_job_is_cut_off_and_run_again(emulator, bucket, write_rows, monkeypatch):
    options = emulator.options(emulator.endpoint)
    source = Location.of(f"{bucket}/in.jsonl", options)
    store_at(source).write(Path(write_rows(list(range(64)))).read_bytes())
    spec = BatchSpec(
        source=source.uri,
        sink=f"{bucket}/out.jsonl.gz",
        batch_size=4,
        compute="local",
        storage_options=options,
    )

    def cut_off(*_: object) -> None:
        raise OSError("power")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="power"):
        patched.setattr(HeldSink, "commit", cut_off)
        BatchRunner(doubler(), on_progress=None).run(spec)
    result = BatchRunner(doubler(), on_progress=None).run(spec)

    assert result.resumed_rows == 64
    rows = gzip.decompress(store_at(Location.of(result.sink, options)).read()).splitlines()
    assert [json.loads(row)["value"] for row in rows] == [2 * i for i in range(64)]
    assert names(Sink(Location.of(spec.sink, options))) == ["in.jsonl", "out.jsonl.gz"]


def test_a_bucket_that_is_not_there_is_named(emulator):
    sink = Sink(
        Location.of(f"{emulator.protocol}://nowhere/out.jsonl", emulator.options(emulator.endpoint))
    )
    with pytest.raises(SinkError, match=r"://nowhere/out.jsonl can't be written"):
        sink.hold()


@pytest.mark.parametrize(("status", "passes"), [(503, True), (429, True), (403, False)])
def test_what_the_stores_clients_raise_is_known_for_passing_or_not(status, passes):
    from azure.core.exceptions import HttpResponseError
    from gcsfs.retry import HttpError

    azures = HttpResponseError("says the store")
    azures.status_code = status

    assert [is_transient(e) for e in (azures, HttpError({"code": status}))] == [passes, passes]


@pytest.mark.parametrize("protocol", ["az", "abfs", "abfss"])
def test_a_name_that_adlfs_would_change_is_refused(protocol):
    with pytest.raises(SpecError, match="adlfs reads what follows a question mark as a query"):
        Sink(Location.of(f"{protocol}://container/a?x=1.jsonl", {"account_name": "a"})).hold()
