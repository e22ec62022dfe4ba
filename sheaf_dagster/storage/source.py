"""The files that a job reads, scanned once."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import IO, Any, cast

from sheaf_dagster.errors import SourceChangedError, SourceError, SourceNotFoundError
from sheaf_dagster.storage.chunks import Chunk, FileScan, scan_stream
from sheaf_dagster.storage.failures import describe
from sheaf_dagster.storage.formats import (
    AS_THEY_ARE,
    FieldMap,
    TableFile,
    is_plain,
    is_table,
    open_text,
)
from sheaf_dagster.storage.kept_types import KeptTypes
from sheaf_dagster.storage.location import Location, sink_errors
from sheaf_dagster.storage.source_files import NamedFile, files_of
from sheaf_dagster.storage.stores import FileState, store_at
from sheaf_dagster.storage.table_rows import TableScan, copied_rows, stays_table

__all__ = ["ScannedSource", "SourceFile", "digest_of", "scan_source", "source_digest"]

_BLOCK_BYTES = 4 * 2**20


@dataclass(frozen=True)
class SourceFile:
    """One scanned file."""

    stored: Location
    text: Location
    """Where ranges of its text, or of its table, can be read: the file itself, or a copy."""
    state: FileState
    digest: str
    fields: FieldMap = AS_THEY_ARE
    """Which of its columns is which field of the text's rows."""


@dataclass(frozen=True)
class ScannedSource:
    """All that the driver needs to know of a job's source; its rows aren't part of it."""

    files: tuple[SourceFile, ...]
    chunks: tuple[Chunk, ...]
    rows: int
    digest: str
    stored_bytes: int

    def check_unchanged(self) -> None:
        """Compares the files with what was scanned, by size and version.

        Raises:
            SourceChangedError: One was written to, replaced or deleted since.
        """
        for file in self.files:
            now = store_at(file.stored).state()
            if now != file.state:
                raise SourceChangedError(
                    f"{file.stored.uri} {'was deleted' if now is None else 'changed'} while the "
                    "job ran; nothing was written to the sink. Run again once its writer has "
                    "finished"
                )


def scan_source(
    sources: Sequence[Location | NamedFile],
    batch_size: int,
    *,
    fields: FieldMap = AS_THEY_ARE,
    row_limit: int | None = None,
    spool: Location | None = None,
    stop: threading.Event | None = None,
    types: KeptTypes = MappingProxyType({}),
) -> ScannedSource:
    """Finds a job's chunks and the digest of its source in one pass over the files.

    Several files are read as one, in the given order; chunks and batches don't span files.

    Args:
        sources: The files and folders, in order.
        batch_size: Rows of a batch.
        fields: Which of their columns is which field.
        row_limit: Rows that count, over all files.
        spool: Folder for copies of the text of files that aren't plain (``is_plain``); needed
            where there are any.
        stop: Ends the scan early.
        types: Of fields, what their values must go into.

    Raises:
        SourceError: A file is missing, unreadable, damaged or a directory, or has a value that doesn't
            go into the type of its field.
        InterruptedError: ``stop`` was set.
    """
    files: list[SourceFile] = []
    chunks: list[Chunk] = []
    rows = 0
    named = files_of(sources)
    columns = {fields.columns.get(name, name): type for name, type in types.items()}
    for i, file in enumerate(named):
        location, own = file.location, fields.beside(file.folders)
        left = None if row_limit is None else row_limit - rows
        state = store_at(location).require_state()
        text, scan = _scan_file(location, own, columns, batch_size, left, spool, i, stop)
        if store_at(location).state() != state:
            raise SourceChangedError(
                f"{location.uri} changed while it was read; run again once its writer has finished"
            )
        chunks += scan.chunks(batch_size, file=i, first_index=len(chunks), first_row=rows)
        rows += scan.rows
        files.append(SourceFile(location, text, state, scan.digest, own))
    return ScannedSource(
        files=tuple(files),
        chunks=tuple(chunks),
        rows=rows,
        digest=_joint_digest(
            [_with_folders(f.digest, n) for f, n in zip(files, named, strict=True)]
        ),
        stored_bytes=sum(f.state.size for f in files),
    )


class _UntilStopped:
    """A stream of text that raises once a job is called off."""

    def __init__(self, stream: Any, stop: threading.Event | None) -> None:
        self._stream = stream
        self._stop = stop

    def readinto(self, buffer: memoryview, /) -> int | None:
        _require_going_on(self._stop)
        return cast("int | None", self._stream.readinto(buffer))


def _require_going_on(stop: threading.Event | None) -> None:
    if stop is not None and stop.is_set():
        raise InterruptedError("the job was stopped")


def _scan_file(
    location: Location,
    fields: FieldMap,
    types: KeptTypes,
    batch_size: int,
    row_limit: int | None,
    spool: Location | None,
    i: int,
    stop: threading.Event | None,
) -> tuple[Location, FileScan | TableScan]:
    # A limit of no rows left still hashes the file; one row at least keeps the scanner simple.
    limit = None if row_limit is None else max(row_limit, 0)
    try:
        if is_plain(location.uri, fields):
            with open_text(location) as plain:
                stream = _UntilStopped(plain, stop)
                return location, scan_stream(stream, batch_size, row_limit=limit)
        if spool is None:
            raise SourceError(f"{location.uri}: no place to unpack it was given")
        table = _table(location, fields, types)
        text = spool.child(f"source-{i:04d}.{'jsonl' if table is None else 'arrows'}")
        with sink_errors(text):
            store_at(text).make_parents()
            target = store_at(text).create()
        if table is not None:
            with target:
                return text, _copied(location, table, fields, batch_size, limit, target, stop)
        digest = hashlib.sha256()
        opened = open_text(location, fields=fields, digest=digest, spool=target, types=types)
        with target, opened as unpacked:
            stream = _UntilStopped(unpacked, stop)
            return text, scan_stream(stream, batch_size, row_limit=limit, digest=digest)
    except SourceError as e:
        if location.uri in str(e):
            raise
        raise type(e)(f"{location.uri}, {e}") from e
    except FileNotFoundError:
        raise SourceNotFoundError(f"{location.uri} does not exist") from None
    except InterruptedError:
        raise
    except OSError as e:
        raise SourceError(f"{location.uri} can't be read: {describe(e)}") from e


def _table(location: Location, fields: FieldMap, types: KeptTypes) -> TableFile | None:
    """A file whose rows stay in its columns until they become requests; None where they don't."""
    if not is_table(location.uri):
        return None
    table = TableFile(store_at(location), fields.beside(fields.implied), types)
    return table if stays_table(table.schema) else None


def _copied(
    location: Location,
    table: TableFile,
    fields: FieldMap,
    batch_size: int,
    limit: int | None,
    target: IO[bytes],
    stop: threading.Event | None,
) -> TableScan:
    digest = _digest(location, stop)
    rows = table.rows if limit is None else min(limit, table.rows)

    def batches() -> Iterator[Any]:
        for batch in table.batches():
            _require_going_on(stop)
            yield batch

    fields = fields.beside(fields.implied)
    return copied_rows(batches(), rows, batch_size, fields, target, digest)


def _digest(location: Location, stop: threading.Event | None = None) -> str:
    digest = hashlib.sha256()
    with store_at(location).open() as f:
        while block := f.read(_BLOCK_BYTES):
            _require_going_on(stop)
            digest.update(block)
    return f"sha256:{digest.hexdigest()}"


def source_digest(
    source: str | Sequence[str], storage_options: dict[str, Any] | None = None
) -> str:
    """``sha256:<hex>`` of a source's stored bytes, the same that a job's result carries.

    Of several files it is the hash of their digests, in order.
    """
    uris = [source] if isinstance(source, str) else source
    return digest_of(files_of([Location.of(uri, storage_options) for uri in uris]))


def digest_of(files: Sequence[NamedFile]) -> str:
    """The ``source_digest`` of some files."""
    return _joint_digest([_with_folders(_digest(file.location), file) for file in files])


def _with_folders(digest: str, file: NamedFile) -> str:
    """A file's digest, and of what its folders say: both are what its rows are."""
    if not file.folders:
        return digest
    said = json.dumps(file.folders, sort_keys=True)
    return f"sha256:{hashlib.sha256(f'{digest}{said}'.encode()).hexdigest()}"


def _joint_digest(digests: Sequence[str]) -> str:
    if len(digests) == 1:
        return digests[0]
    return f"sha256:{hashlib.sha256('|'.join(digests).encode()).hexdigest()}"
