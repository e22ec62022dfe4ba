"""A sink appears whole or not at all, wherever it is."""

from __future__ import annotations

import gzip
import os

import pytest

from sheaf_dagster import SinkBusyError, SinkError
from sheaf_dagster.storage import Location, Sink, store_at
from tests.storage.parts import commit, filled, written


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz", "out.jsonl.zst"])
@pytest.mark.parametrize("pieces", [[], [b"a\n"], [b"a\nb\n", b"c\n", b"d\n"]])
def test_parts_are_joined_in_order_and_nothing_else_stays(place, name, pieces):
    sink = Sink(place.at(f"deep/{name}"))
    held, parts = filled(sink, pieces)
    assert store_at(sink.location).state() is None

    held.commit(parts)

    data = store_at(sink.location).read()
    if name.endswith(".gz"):
        data = gzip.decompress(data)
    elif name.endswith(".zst"):
        import zstandard

        data = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True).read()
    assert data == b"".join(pieces)
    assert place.names() == [f"deep/{name}"]


@pytest.mark.parametrize("name", ["a b", "50%", "[1]", "*", "ü?x=1#y", "a+b&c"])
def test_any_name_is_taken_as_it_is(place, name):
    if "?" in name and place.root.startswith("az:"):
        pytest.skip("adlfs would change it, so it is refused")
    for other in ("aa.jsonl", "1.jsonl"):
        filled(Sink(place.at(other)), [b"other\n"])
    before = place.names()
    sink = Sink(place.at(f"{name}.jsonl"))

    commit(sink, [b"a\n", b"b\n"])

    assert store_at(sink.location).read() == b"a\nb\n"
    assert set(place.names()) == {*before, f"{name}.jsonl"}


def test_parts_that_are_joined_ahead_are_the_beginning_of_the_output(place):
    sink = Sink(place.at("out.jsonl"))
    held, parts = filled(sink, [b"a\n", b"b\n", b"c\n", b"d\n"])

    held.join_ahead(parts[:1])
    held.join_ahead(parts[1:3])

    assert store_at(sink.location).state() is None
    held.commit(parts)
    assert store_at(sink.location).read() == b"a\nb\nc\nd\n"
    assert place.names() == ["out.jsonl"]


def test_a_part_that_was_joined_ahead_and_made_again_counts_as_it_was_made_last(place):
    sink = Sink(place.at("out.jsonl"))
    held, (first, last) = filled(sink, [b"a\n", b"b\n"])
    held.join_ahead([first])
    again = written(held, first.chunk, b"A, longer\n")

    held.commit([again, last])

    assert store_at(sink.location).read() == b"A, longer\nb\n"


def test_what_was_joined_ahead_is_not_taken_for_a_part_after_a_failure(place):
    sink = Sink(place.at("out.jsonl"))
    held, parts = filled(sink, [b"a\n", b"b\n"])
    held.join_ahead(parts[:1])
    held.release()

    with sink.hold() as again:
        found = again.open_run("f" * 64, resume=True)
        again.join_ahead([found[0]])
        again.commit([found[0], found[1]])

    assert store_at(sink.location).read() == b"a\nb\n"
    assert place.names() == ["out.jsonl"]


def test_parts_of_the_same_job_are_found_again_and_torn_ones_are_not(place):
    sink = Sink(place.at("out.jsonl"))
    held, parts = filled(sink, [b"a\n", b"b\n", b"c\n"])
    store_at(held.store.location(parts[1])).write(b"b")
    held.release()

    with sink.hold() as again:
        found = again.open_run("f" * 64, resume=True)

        assert set(found) == {0, 2}
        assert again.open_run("0" * 64, resume=True) == {}
        again.discard()
    assert place.names() == []


def test_parts_of_another_job_are_removed_and_so_are_ones_own_without_resume(place):
    sink = Sink(place.at("out.jsonl"))
    held, _ = filled(sink, [b"a\n", b"b\n"])
    assert len(held.open_run("f" * 64, resume=True)) == 2
    assert held.open_run("0" * 64, resume=True) == {}
    assert held.open_run("f" * 64, resume=True) == {}

    filled_again = [n for n in place.names() if "part-" in n]

    assert filled_again == []
    filled(Sink(place.at("other.jsonl")), [b"a\n"])
    assert held.open_run("f" * 64, resume=False) == {}
    held.release()


def test_a_second_job_on_the_same_sink_is_refused_while_the_first_runs(place):
    first, second = (Sink(place.at("out.jsonl")) for _ in range(2))
    held = first.hold()
    for sink in (first, second):
        with pytest.raises(SinkBusyError, match="written by another job"):
            sink.hold()
    held.release()
    second.hold().release()
    assert place.names() == []


def test_a_hold_ends_with_its_block_and_parts_stay_for_the_next_one(place):
    sink = Sink(place.at("out.jsonl"))
    with pytest.raises(KeyError), sink.hold() as held:
        held.open_run("f" * 64, resume=True)
        written(held, 0, b"a\n")
        store_at(held.spool().child("x")).make_parents()
        store_at(held.spool().child("source-0000.jsonl")).write(b"unpacked")
        raise KeyError

    assert not held.held
    left = {n.rsplit("/")[-1][:6] for n in place.names()}
    assert left - {"lock"} == {"part-0"}
    with sink.hold() as again:
        assert set(again.open_run("f" * 64, resume=True)) == {0}
        again.discard()
        assert not again.held
    assert place.names() == []


@pytest.mark.parametrize("end", ["commit", "discard", "release"])
def test_what_has_ended_a_hold_can_be_said_again_and_harms_nobody(place, end):
    sink = Sink(place.at("out.jsonl"))
    held, parts = filled(sink, [b"a\n"])
    held.commit(parts) if end == "commit" else getattr(held, end)()
    next_one, _ = filled(sink, [b"b\n"], "0" * 64)
    before = place.names()

    held.discard()
    held.release()
    for destroy in (
        lambda: held.remove(sink.aside),
        lambda: held.open_run("f" * 64, resume=False),
        lambda: held.commit(parts),
    ):
        with pytest.raises(SinkError):
            destroy()

    assert [n for n in place.names() if n in before] == before
    next_one.discard()


def test_an_existing_sink_survives_a_failed_commit(place):
    place.put("out.jsonl", b"old\n")
    sink = Sink(place.at("out.jsonl"))
    held, parts = filled(sink, [b"a\n"])
    store_at(held.store.location(parts[0])).remove()

    with pytest.raises(SinkError, match="an existing file there is untouched"):
        held.commit(parts)

    assert store_at(sink.location).read() == b"old\n"
    held.release()


def test_a_directory_is_no_sink(tmp_path):
    with pytest.raises(SinkError, match="is a directory"):
        Sink(Location.of(str(tmp_path))).hold()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SinkError, match="file"):
        Sink(Location.of(str(tmp_path / "file" / "out.jsonl"))).hold()


def test_nothing_stays_of_a_local_sink_but_itself(tmp_path):
    sink = Sink(Location.of(str(tmp_path / "out.jsonl")))
    commit(sink, [b"a\n"])
    assert os.listdir(tmp_path) == ["out.jsonl"]
