"""Cutting files into chunks: rules that hold for any file."""

from __future__ import annotations

import gzip
import hashlib
import io
import random

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from sheaf_dagster import SourceChangedError, SourceError, SourceNotFoundError
from sheaf_dagster.storage import Location, scan_source, source_digest, split_rows, store_at
from sheaf_dagster.storage.chunks import LineScanner, scan_stream

LINES = st.lists(
    st.sampled_from(
        [
            b"{}",
            b"",
            b" ",
            b"\t\r",
            b"\r",
            b'{"a": "\xe2\x80\xa8"}',
            b'{"x": 1}\r',
            b"  {}",
            b"\x00",
        ]
    ),
    max_size=60,
)


def rows_of(text: bytes) -> list[tuple[int, bytes]]:
    """The rule, as simply as it can be said."""
    text = text.removeprefix(b"\xef\xbb\xbf")
    lines = enumerate(text.split(b"\n"), 1)
    return [(n, line) for n, line in lines if line.strip(b" \t\r")]


@settings(max_examples=300)
@given(LINES, st.booleans(), st.booleans(), st.integers(1, 7), st.integers(1, 40))
def test_chunks_hold_every_row_once_and_whole_batches(lines, end, bom, batch_size, cut):
    text = (b"\xef\xbb\xbf" if bom else b"") + b"\n".join(lines) + (b"\n" if end else b"")

    scanner = LineScanner(batch_size)
    for start in range(0, len(text), cut):
        scanner.feed(text[start : start + cut])
    scanner.finish()
    whole = scan_stream(io.BytesIO(text), batch_size)
    chunks = whole.chunks(batch_size)

    assert (scanner.rows, scanner.marks) == (whole.rows, list(whole.marks))
    found = [row for c in chunks for row in split_rows(text[c.start : c.end], c.first_line)]
    assert found == rows_of(text)
    assert [c.first_row for c in chunks] == [
        sum(x.rows for x in chunks[:i]) for i in range(len(chunks))
    ]
    assert all(c.rows % batch_size == 0 for c in chunks[:-1])
    assert sum(c.rows for c in chunks) == whole.rows


def test_a_bom_that_comes_in_pieces_is_still_one():
    scanner = LineScanner(1)
    for byte in b"\xef\xbb\xbf{}\n":
        scanner.feed(bytes([byte]))
    scanner.finish()
    assert scanner.rows == 1


def test_many_rows_make_few_chunks_that_depend_on_the_file_alone():
    text = b"".join(b'{"v": %d}\n' % i for i in range(200_000))
    scan = scan_stream(io.BytesIO(text), 8)

    chunks = scan.chunks(8)

    assert 64 <= len(chunks) <= 256
    assert len({c.rows for c in chunks[:-1]}) == 1
    assert chunks == scan_stream(io.BytesIO(text), 8).chunks(8)


def test_a_row_limit_cuts_after_that_row():
    text = b"{}\n\n{}\n{}\n"
    scan = scan_stream(io.BytesIO(text), 2, row_limit=2)
    (chunk,) = scan.chunks(2)
    assert (scan.rows, text[chunk.start : chunk.end].count(b"{}")) == (2, 2)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_files_give_the_text_and_the_digest_of_what_is_stored(place, suffix):
    pack = gzip.compress if suffix == ".gz" else zstandard.ZstdCompressor().compress
    text = b"".join(b'{"v": %d}\n' % i for i in range(5000))
    stored = pack(text[:20_001]) + pack(text[20_001:])  # two members
    location = place.put(f"in.jsonl{suffix}", stored)

    source = scan_source([location], 32, spool=place.at("spool"))

    chunks = source.chunks
    text_store = store_at(source.files[0].text)
    got = b"".join(text_store.read_range(c.start, c.end) for c in chunks)
    assert got == text
    assert source.digest == source_digest(location.uri, place.options)
    assert source.digest == f"sha256:{hashlib.sha256(stored).hexdigest()}"


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_truncated_compressed_file_is_an_error(place, suffix):
    pack = gzip.compress if suffix == ".gz" else zstandard.ZstdCompressor().compress
    random.seed(1)
    text = b"".join(b'{"v": %d}\n' % random.getrandbits(60) for _ in range(5000))
    location = place.put(f"in.jsonl{suffix}", pack(text)[:-100])
    with pytest.raises(SourceError, match="damaged or cut short"):
        scan_source([location], 32, spool=place.at("spool"))


def test_a_file_of_many_blocks_is_read_whole_and_in_order(place, monkeypatch):
    monkeypatch.setattr("sheaf_dagster.storage.stores.range_reader._BLOCK_BYTES", 1000)
    text = b"".join(b'{"v": %d}\n' % i for i in range(1000))
    location = place.put("in.jsonl", text)

    source = scan_source([location], 7)

    assert (source.rows, source.files[0].state.size) == (1000, len(text))
    assert source.digest == f"sha256:{hashlib.sha256(text).hexdigest()}"
    assert b"".join(store_at(location).read_range(c.start, c.end) for c in source.chunks) == text
    assert scan_source([place.put("empty.jsonl", b"")], 7).rows == 0


def test_a_source_that_is_written_again_or_deleted_is_noticed(place):
    location = place.put("in.jsonl", b"{}\n{}\n")
    source = scan_source([location], 1)
    source.check_unchanged()

    place.put("in.jsonl", b"{}\n[]\n")
    with pytest.raises(SourceChangedError, match="changed while the job ran"):
        source.check_unchanged()

    store_at(location).remove()
    with pytest.raises(SourceChangedError, match="was deleted"):
        source.check_unchanged()


def test_a_range_beyond_the_end_is_an_error_and_never_a_short_answer(place):
    location = place.put("in.jsonl", b"{}\n")
    with pytest.raises(SourceError, match="in.jsonl"):
        store_at(location).read_range(1, 10)
    assert store_at(location).read_range(2, 2) == b""


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("sheaf_dagster.storage.compression.MAX_RATIO_FROM", 2**20)
    path = tmp_path / "bomb.jsonl.gz"
    path.write_bytes(gzip.compress(b"\n" * 2**26, 9))
    with pytest.raises(SourceError, match="bomb"):
        scan_source([Location.of(str(path))], 32, spool=Location.of(str(tmp_path / "s")))


def test_missing_files_and_directories_are_named(place):
    with pytest.raises(SourceNotFoundError, match="nothing.jsonl does not exist; write it first"):
        scan_source([place.at("nothing.jsonl")], 1)
    place.put("folder/in.txt", b"")
    with pytest.raises(SourceNotFoundError, match="is a folder, and no .parquet or .jsonl file"):
        scan_source([place.at("folder")], 1)
