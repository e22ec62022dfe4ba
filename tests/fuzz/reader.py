"""A fuzz target: any bytes, through all that reads a source.

``make fuzz`` runs it under atheris for a minute; the suite runs it over the corpus of bad files
and over what hypothesis makes up. What must hold of any bytes: the chunks hold every row once,
and a file is found valid, or refused by one of our errors.
"""

from __future__ import annotations

import hashlib
import io

from pydantic import BaseModel, ValidationError

from sheaf_dagster.batch.rows.fast import fast_codec
from sheaf_dagster.batch.rows.general import GeneralCodec
from sheaf_dagster.batch.rows.requests import RowContract
from sheaf_dagster.contracts import contract_for
from sheaf_dagster.errors import SourceError
from sheaf_dagster.storage import split_rows
from sheaf_dagster.storage.chunks import LineScanner, scan_stream
from sheaf_dagster.storage.compression import codec_of, unpacked
from tests import toys  # noqa: F401  (registers the contract)

BOM = b"\xef\xbb\xbf"


def rows_of(text: bytes) -> list[tuple[int, bytes]]:
    """What the rows of a file are, as simply as it can be said."""
    lines = enumerate(text.removeprefix(BOM).split(b"\n"), 1)
    return [(n, line) for n, line in lines if line.strip(b" \t\r")]


def read_any(data: bytes) -> None:
    """One run: the first bytes choose how, the rest is the file."""
    if len(data) < 3:
        return
    how, batch_size, cut, stored = data[0], data[1] % 9 + 1, data[2] + 1, data[3:]
    suffix = ("", "", ".gz", ".zst")[how % 4]
    text = stored if not suffix else _unpacked(stored, suffix)
    if text is not None:
        _check_text(text, batch_size, cut)


def _unpacked(stored: bytes, suffix: str) -> bytes | None:
    spool, digest = io.BytesIO(), hashlib.sha256()
    codec = codec_of("x" + suffix)
    assert codec is not None
    stream = unpacked(io.BytesIO(stored), codec, name="x", digest=digest, spool=spool)
    try:
        scan_stream(stream, 4, digest=digest)
    except SourceError:
        return None
    return spool.getvalue()


def _check_text(text: bytes, batch_size: int, cut: int) -> None:
    scan = scan_stream(io.BytesIO(text), batch_size)
    scanner = LineScanner(batch_size)
    for start in range(0, len(text), cut):
        scanner.feed(text[start : start + cut])
    scanner.finish()
    assert (scanner.rows, scanner.marks) == (scan.rows, list(scan.marks))

    chunks = scan.chunks(batch_size)
    contract = RowContract.of(contract_for("number"))
    found, invalid, valid = [], 0, []
    for chunk in chunks:
        data = text[chunk.start : chunk.end]
        lines = split_rows(data, chunk.first_line)
        found += lines
        check = contract.validate(data, chunk.first_line)
        assert check.rows == chunk.rows == len(lines)
        invalid += check.invalid_rows
        if not check.invalid_rows:
            valid += contract.parse(lines, chunk.first_row)
        _check_short_cuts(contract.request, lines)
        for violation in check.violations:
            assert str(violation).isprintable()
            assert len(str(violation)) < 1000
    assert found == rows_of(text)
    assert invalid or [r.position for r in valid] == list(range(scan.rows))


def _check_short_cuts(request: type[BaseModel], lines: list[tuple[int, bytes]]) -> None:
    fast = fast_codec(request)
    for _, line in lines:
        taken = fast.fields(line)
        try:
            by_pydantic = GeneralCodec(request).read(line)
        except (ValidationError, RecursionError):
            assert taken is None, line
            continue
        read = fast.read(line)
        if read is not None:
            # A missing request_id is another one each time.
            given = read.__pydantic_fields_set__
            assert given == by_pydantic.__pydantic_fields_set__
            assert [repr(getattr(read, name)) for name in given] == [
                repr(getattr(by_pydantic, name)) for name in given
            ]
