"""A sink appears whole or not at all."""

from __future__ import annotations

import gzip
import os

import pytest

from sheaf_dagster import SinkBusyError, SinkError
from sheaf_dagster.storage import Location, Sink


def filled(sink: Sink, pieces: list[bytes], fingerprint: str = "f" * 64):
    sink.prepare()
    sink.open_run(fingerprint, resume=True)
    store = sink.parts(fingerprint)
    parts = [
        store.write(i, p, rows=p.count(b"\n"), error_rows=0, non_finite=0)
        for i, p in enumerate(pieces)
    ]
    return store, parts


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz", "out.jsonl.zst"])
@pytest.mark.parametrize("pieces", [[], [b"a\n"], [b"a\nb\n", b"c\n", b"d\n"]])
def test_parts_are_joined_in_order_and_nothing_else_stays(tmp_path, name, pieces):
    sink = Sink(Location.of(str(tmp_path / "deep" / name)))

    sink.commit(*filled(sink, pieces))

    data = (tmp_path / "deep" / name).read_bytes()
    if name.endswith(".gz"):
        data = gzip.decompress(data)
    elif name.endswith(".zst"):
        import zstandard

        data = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True).read()
    assert data == b"".join(pieces)
    assert os.listdir(tmp_path / "deep") == [name]


def test_sinks_on_an_object_store_are_written_at_once():
    sink = Sink(Location.of("memory://bucket/out.jsonl"))
    store, parts = filled(sink, [b"a\n", b"b\n"])
    assert sink.location.state() is None

    sink.commit(store, parts)

    assert sink.location.read() == b"a\nb\n"
    assert not sink.location.fs.glob("/bucket/**/part-*")


def test_parts_of_the_same_job_are_found_again_and_torn_ones_are_not(tmp_path):
    sink = Sink(Location.of(str(tmp_path / "out.jsonl")))
    store, parts = filled(sink, [b"a\n", b"b\n", b"c\n"])
    with open(store.location(parts[1]).uri, "wb") as f:
        f.write(b"b")
    sink.release()

    again = Sink(Location.of(str(tmp_path / "out.jsonl")))
    again.prepare()
    found = again.open_run("f" * 64, resume=True)

    assert set(found) == {0, 2}
    assert again.open_run("0" * 64, resume=True) == {}
    again.discard()


def test_a_second_job_on_the_same_sink_is_refused_while_the_first_runs(tmp_path):
    first, second = (Sink(Location.of(str(tmp_path / "out.jsonl"))) for _ in range(2))
    first.prepare()
    with pytest.raises(SinkBusyError, match="written by another job"):
        second.prepare()
    second.discard()
    second.release()
    with pytest.raises(SinkBusyError):
        Sink(first.location).prepare()
    first.release()
    second.prepare()
    second.release()
    assert os.listdir(tmp_path) == []


def test_an_existing_sink_survives_a_failed_commit(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text("old\n")
    sink = Sink(Location.of(str(path)))
    store, parts = filled(sink, [b"a\n"])
    os.unlink(store.location(parts[0]).uri)

    with pytest.raises(SinkError, match="an existing file there is untouched"):
        sink.commit(store, parts)

    assert path.read_text() == "old\n"
    sink.release()


def test_a_directory_is_no_sink(tmp_path):
    with pytest.raises(SinkError, match="is a directory"):
        Sink(Location.of(str(tmp_path))).prepare()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SinkError, match="file"):
        Sink(Location.of(str(tmp_path / "file" / "out.jsonl"))).prepare()
