"""What a rerun trusts of the parts that an ended run left."""

from __future__ import annotations

import logging
import math
import os
import random
from pathlib import Path

import pytest

from sheaf_dagster import BatchRunner, BatchSpec, SinkError
from sheaf_dagster.batch.worker import making
from sheaf_dagster.batch.worker.notes import PartNotes
from sheaf_dagster.storage import HeldSink, Location, Part, PartStore, Sink, store_at
from tests.conftest import read_rows
from tests.storage.parts import filled, written
from tests.toys import doubler

DAMAGES = {
    "zeros": lambda data: bytes(len(data)),
    "a block of zeros": lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
    "a bit": lambda data: bytes([data[0] ^ 1]) + data[1:],
    "two bytes exchanged": lambda data: data[1::-1] + data[2:],
    "another part's": lambda data: random.Random(len(data)).randbytes(len(data)),
}


@pytest.mark.parametrize(
    ("name", "damage"),
    [*(("out.jsonl", d) for d in DAMAGES), ("out.jsonl.gz", "a bit"), ("out.jsonl.zst", "zeros")],
)
def test_a_part_with_damaged_bytes_of_the_right_size_is_not_trusted(place, name, damage, caplog):
    sink = Sink(place.at(name))
    held, parts = filled(sink, [b'{"row": 0}\n', b'{"row": 1}\n', b'{"row": 2}\n'])
    location = held.store.location(parts[1])
    store_at(location).write(DAMAGES[damage](store_at(location).read()))
    held.release()

    with sink.hold() as again, caplog.at_level(logging.WARNING):
        found = again.open_run("f" * 64, resume=True)

        assert found == {0: parts[0], 2: parts[2]}
        assert f"{location.name} is damaged" in caplog.text
        redone = written(again, 1, b'{"row": 1}\n')
        assert redone == parts[1]
        again.commit([found[0], redone, found[2]])
    assert place.names() == [name]


@pytest.mark.parametrize("size", [0, 1, 8 * 2**20 - 1, 8 * 2**20, 17 * 2**20])
def test_whole_parts_of_any_size_are_trusted(place, size):
    sink = Sink(place.at("out.jsonl"))
    held, parts = filled(sink, [b"a" * size + b"\n"])
    held.release()
    with sink.hold() as again:
        assert again.open_run("f" * 64, resume=True) == {0: parts[0]}
        again.discard()


def test_a_part_whose_name_has_no_checksum_is_not_trusted(place):
    sink = Sink(place.at("out.jsonl"))
    held, (part,) = filled(sink, [b"a\n"])
    for name in (part.name.replace(f"-k{part.checksum}", ""), Part(1, 1, 0, 0, 2).name):
        store_at(held.store.folder.child(name)).write(b"a\n")
    held.release()
    with sink.hold() as again:
        assert again.open_run("f" * 64, resume=True) == {0: part}


@pytest.mark.parametrize(
    "place", ["memory", "mounted", pytest.param("s3", marks=pytest.mark.s3)], indirect=True
)
def test_a_part_that_is_damaged_before_it_is_joined_is_named_and_the_sink_untouched(place):
    place.put("out.jsonl", b"old\n")
    held, parts = filled(Sink(place.at("out.jsonl")), [b"aaaa\n", b"bbbb\n"])
    store_at(held.store.location(parts[1])).write(b"\0" * 5)

    with pytest.raises(SinkError, match=r"part-00000001.* was damaged since it was written"):
        held.commit(parts)

    assert store_at(place.at("out.jsonl")).read() == b"old\n"
    held.release()


@pytest.fixture
def synced(monkeypatch) -> list[str]:
    """What was put on the disk, by its path then."""
    found = []
    fsync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda fd: (found.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd))
    )
    return found


def test_the_bytes_of_parts_and_the_name_of_the_sink_are_on_the_disk_before_they_are_reported(
    tmp_path, synced
):
    held, parts = filled(Sink(Location.of(str(tmp_path / "out.jsonl"))), [b"a\n", b"b\n"])

    held.commit(parts)

    *files, folder = synced
    begins = [part.name for part in parts] + ["joined-"]
    assert [Path(f).name[: len(b)] for f, b in zip(files, begins, strict=True)] == begins
    assert folder == str(tmp_path)


@pytest.mark.parametrize(("least", "waits"), [(0.0, True), (math.inf, False)])
def test_a_job_waits_for_the_disk_where_a_part_took_long(
    tmp_path, write_rows, synced, monkeypatch, least, waits
):
    monkeypatch.setattr(making, "_WORTH_SECONDS", least)
    sink = tmp_path / "out" / "out.jsonl"
    spec = BatchSpec(source=write_rows([1, 2]), sink=str(sink), batch_size=1, compute="local")

    BatchRunner(doubler(), on_progress=None).run(spec)

    assert any(Path(p).name.startswith("part-") for p in synced) == waits
    assert Path(synced[-1]) == tmp_path / "out"


def test_the_name_of_a_note_is_on_the_disk_too_since_it_may_have_been_paid_for(tmp_path, synced):
    PartNotes(Location.of(str(tmp_path))).write("batch", b"{}")

    assert [Path(p).name[:10] for p in synced] == ["note-batch", tmp_path.name[:10]]


def test_a_part_whose_name_was_lost_with_the_power_is_computed_anew(tmp_path):
    sink = Sink(Location.of(str(tmp_path / "out.jsonl")))
    held, parts = filled(sink, [b"a\n", b"b\n", b"c\n"])
    held.release()
    store_at(held.store.location(parts[1])).remove()

    with sink.hold() as again:
        done = again.open_run("f" * 64, resume=True)
        assert done == {0: parts[0], 2: parts[2]}
        again.commit([done[0], written(again, 1, b"b\n"), done[2]])

    assert store_at(sink.location).read() == b"a\nb\nc\n"


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_job_computes_damaged_parts_anew_and_no_others(tmp_path, write_rows, suffix, monkeypatch):
    spec = BatchSpec(
        source=write_rows(list(range(64))),
        sink=str(tmp_path / f"out.jsonl{suffix}"),
        batch_size=4,
        compute="local",
    )
    runner = BatchRunner(doubler(), on_progress=None)
    whole = runner.run(spec)
    expected = Path(spec.sink).read_bytes()
    os.unlink(spec.sink)

    # A run that was cut off after its last part, and a disk that lost the bytes of three of them.
    def cut_off(*_: object) -> None:
        raise OSError("power")

    monkeypatch.setattr(HeldSink, "commit", cut_off)
    with pytest.raises(OSError, match="power"):
        runner.run(spec)
    monkeypatch.undo()
    parts = sorted(tmp_path.rglob("part-*"))
    assert len(parts) == whole.chunks == 16
    for path in parts[2:9:3]:
        path.write_bytes(bytes(path.stat().st_size))

    again = BatchRunner(doubler(), on_progress=None).run(spec)

    assert again.resumed_rows == (16 - 3) * 4
    assert Path(spec.sink).read_bytes() == expected
    if not suffix:
        assert [r["value"] for r in read_rows(spec.sink)] == [2 * i for i in range(64)]


def test_parts_travel_to_workers_and_back_with_their_checksums(tmp_path):
    store = PartStore(Location.of(str(tmp_path)))
    part = store.write(
        3, b"a\nb\n", rows=2, error_rows=1, non_finite=0, model="ab", counts={"f": 1}
    )
    assert Part.from_name(part.name) == part
    assert store.existing() == {3: part}
