"""Files of lines, streamed in and out, on every kind of storage."""

from __future__ import annotations

import tracemalloc

import pytest

from sheaf_dagster.errors import SinkBusyError, SourceError
from sheaf_dagster.storage import LineWriter, Location, read_blocks, read_lines, store_at

TEXTS = {
    "blank lines": (b"a\n\n  \nb\n", [(1, b"a"), (4, b"b")]),
    "no last newline": (b"a\nb", [(1, b"a"), (2, b"b")]),
    "byte order mark": (b"\xef\xbb\xbfa\nb\n", [(1, b"a"), (2, b"b")]),
    "nothing": (b"", []),
    "one line over several blocks": (b"x" * 10_000_000 + b"\ny\n", [(1, b"x" * 10_000_000), (2, b"y")]),
}  # fmt: skip


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("text", TEXTS)
def test_what_was_written_is_read_with_its_line_numbers(text, suffix, tmp_path):
    location = Location.of(str(tmp_path / f"file.jsonl{suffix}"))
    data, rows = TEXTS[text]

    with LineWriter(location) as writer:
        writer.write(data, rows=len(rows))

    assert list(read_lines(location)) == rows
    assert writer.size == store_at(location).state().size
    assert len(list(tmp_path.iterdir())) == 1


def test_a_writer_that_breaks_leaves_what_was_there(tmp_path):
    location = Location.of(str(tmp_path / "file.jsonl"))
    store_at(location).write(b"old\n")

    with pytest.raises(ZeroDivisionError), LineWriter(location) as writer:
        writer.write(b"new\n" * 10_000_000, rows=10_000_000)
        raise ZeroDivisionError

    assert store_at(location).read() == b"old\n"
    assert [p.name for p in tmp_path.iterdir()] == ["file.jsonl"]


def test_two_writers_of_a_file_exclude_each_other(tmp_path):
    location = Location.of(str(tmp_path / "file.jsonl"))

    with LineWriter(location) as writer:
        writer.write(b"first\n", rows=1)
        with pytest.raises(SinkBusyError), LineWriter(location):
            pass

    assert store_at(location).read() == b"first\n"


def test_neither_side_holds_the_file(tmp_path):
    location = Location.of(str(tmp_path / "file.jsonl"))
    block = (b"x" * 1023 + b"\n") * 1024

    tracemalloc.start()
    try:
        with LineWriter(location) as writer:
            for _ in range(200):
                writer.write(bytes(bytearray(block)), rows=1024)
        rows = sum(piece.count(b"\n") for piece in read_blocks(location))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert rows == 200 * 1024
    assert peak < 50 * 2**20


def test_a_damaged_file_is_named(tmp_path):
    location = Location.of(str(tmp_path / "file.jsonl.gz"))
    with LineWriter(location) as writer:
        writer.write(b"a\n" * 100_000, rows=100_000)
    store_at(location).write(store_at(location).read()[:-20])

    with pytest.raises(SourceError, match=r"file\.jsonl\.gz is damaged or cut short"):
        list(read_lines(location))
