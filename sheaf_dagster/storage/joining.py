"""Joining parts into one object of a remote store, seen whole or not at all.

On S3 a multipart upload is completed at once, and pieces of 5 MiB and more are copied inside
the store: their bytes don't pass through this process. Smaller ones are fetched and put
together first, since S3 takes no smaller piece but the last.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from sheaf_dagster.errors import SheafError, SinkBusyError, SinkError
from sheaf_dagster.storage.location import Location, describe
from sheaf_dagster.storage.options import scrub
from sheaf_dagster.storage.parts import StoredPart

__all__ = ["Extent", "abort_uploads", "join", "plan_pieces"]

log = logging.getLogger(__name__)

MIN_PIECE = 5 * 2**20
"""Smallest piece of a multipart upload but the last one (S3's rule)."""

MAX_COPY = 5 * 2**30
"""Largest piece that S3 copies in one request."""

MAX_PIECES = 8000
"""Below S3's 10,000, with room for the rest of parts that are cut in two."""

ONE_PUT_BYTES = 32 * 2**20
"""Outputs up to this size, of parts too small to be copied, are written in one request."""

_AT_A_TIME = 8
_MARK = "sheaf-commit"
"""User metadata of a committed object: which commit made it."""


@dataclass(frozen=True)
class Extent:
    """A byte range of a part."""

    part: int
    start: int
    end: int

    @property
    def size(self) -> int:
        """Its bytes."""
        return self.end - self.start


def plan_pieces(sizes: Sequence[int]) -> list[list[Extent]]:
    """Cuts joined parts into the pieces of a multipart upload.

    A piece of one extent can be copied inside the store; one of several is fetched and sent.
    Every piece but the last has at least 5 MiB. Parts that are too small are filled up from
    the start of the next one, so that the rest of a large part can still be copied.

    Args:
        sizes: Bytes of the parts, in order.
    """
    least = max(MIN_PIECE, -(-sum(sizes) // MAX_PIECES))
    pieces: list[list[Extent]] = []
    held: list[Extent] = []
    for part, size in enumerate(sizes):
        start = 0
        if held:
            missing = least - sum(e.size for e in held)
            # What is left of this part must be worth a piece of its own.
            start = missing if size >= missing + least else size
            held.append(Extent(part, 0, start))
            if sum(e.size for e in held) >= least:
                pieces.append(held)
                held = []
        if size - start >= least:
            pieces += [[e] for e in _copies(part, start, size)]
        elif size > start:
            held.append(Extent(part, start, size))
    if held:
        pieces.append(held)
    return pieces


def _copies(part: int, start: int, end: int) -> Iterable[Extent]:
    n = -(-(end - start) // MAX_COPY)
    cuts = [start + (end - start) * i // n for i in range(n + 1)]
    return (Extent(part, a, b) for a, b in pairwise(cuts))


def join(
    target: Location,
    parts: Sequence[StoredPart],
    empty: bytes,
    aside: Location,
    prove: Callable[[], None],
) -> None:
    """Writes the parts, in order, as one object that appears when it is whole.

    Args:
        target: The object.
        parts: What to join.
        empty: What to write where there are no parts.
        aside: Folder in which a store that has folders puts the file together first.
        prove: Raises where the target may no longer be written; asked last before it shows.
    """
    total = sum(p.size for p in parts)
    small = total <= ONE_PUT_BYTES
    if target.is_s3:
        small = small and all(p.size < MIN_PIECE for p in parts)
        _S3Commit(target, total if parts else len(empty), prove).run(
            parts, None if not small else _fetch_all(parts) or empty
        )
    elif target.has_folders:  # sftp, hdfs, smb …: files show while they are written
        whole = aside.child("joined.tmp")
        _stream(whole, parts, empty, prove)
        target.fs.mv(whole.path, target.path)
    elif small:
        data = _fetch_all(parts) or empty
        prove()
        target.write(data)
    else:
        _stream(target, parts, b"", prove)


def _fetch_all(parts: Sequence[StoredPart]) -> bytes:
    with ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="sheaf-join") as pool:
        return b"".join(pool.map(StoredPart.read, parts))


def _bytes_of(extent: Extent, part: StoredPart) -> bytes:
    if extent.size == part.size:
        return part.read()  # and compare it with its checksum
    return part.location.read_range(extent.start, extent.end)


def _stream(
    target: Location,
    parts: Sequence[StoredPart],
    empty: bytes,
    prove: Callable[[], None],
) -> None:
    # Object stores show the object when the upload is completed, at close.
    file = target.fs.open(target.path, "wb", block_size=ONE_PUT_BYTES)
    try:
        if not parts:
            file.write(empty)
        for part in parts:
            file.write(part.read())
        prove()
        file.close()
    except BaseException:
        # Left open, or closed by the garbage collector, it could still be completed.
        discard = getattr(file, "discard", None) or getattr(file, "abort", None)
        with suppress(Exception):
            if discard is not None:
                discard()
        with suppress(Exception):
            file.closed = True
        raise


class _S3Commit:
    """One commit to S3, known again by the mark that it leaves on the object.

    The answer to the request that commits may be lost on its way. Then the object itself says
    whether it was carried out.
    """

    def __init__(self, target: Location, size: int, prove: Callable[[], None]) -> None:
        self._target = target
        self._size = size
        self._prove = prove
        self._bucket, self._key, _ = target.fs.split_path(target.path)
        self._mark = uuid.uuid4().hex

    def run(self, parts: Sequence[StoredPart], data: bytes | None) -> None:
        try:
            if data is not None:
                self._prove()
                self._call("put_object", Body=data, Metadata={_MARK: self._mark})
            else:
                self._upload(parts)
        except SinkBusyError:
            raise
        except Exception as e:
            if not self._carried_out(e):
                raise
            log.info("%s: committed, though the answer was lost", self._target.uri)

    def _call(self, method: str, **arguments: Any) -> dict[str, Any]:
        fs = self._target.fs
        call: Callable[[], dict[str, Any]] = lambda: fs.call_s3(  # noqa: E731
            method, Bucket=self._bucket, Key=self._key, **arguments
        )
        return self._target.remote(method, call)

    def _upload(self, parts: Sequence[StoredPart]) -> None:
        abort_uploads(self._target, self._prove, exact=True)  # of runs that were killed here
        pieces = plan_pieces([p.size for p in parts])
        upload = self._call("create_multipart_upload", Metadata={_MARK: self._mark})["UploadId"]
        try:
            with ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="sheaf-join") as pool:
                try:
                    etags = list(
                        pool.map(
                            lambda p: self._piece(upload, p[0], p[1], parts),
                            enumerate(pieces, 1),
                        )
                    )
                except BaseException:
                    pool.shutdown(wait=True, cancel_futures=True)
                    raise
            self._prove()
            done = [{"PartNumber": n, "ETag": etag} for n, etag in enumerate(etags, 1)]
            self._call(
                "complete_multipart_upload", UploadId=upload, MultipartUpload={"Parts": done}
            )
        except BaseException:
            with suppress(Exception):
                self._call("abort_multipart_upload", UploadId=upload)
            raise
        finally:
            # Begun by requests whose answer was lost.
            abort_uploads(self._target, self._prove, exact=True)

    def _piece(
        self, upload: str, number: int, piece: list[Extent], parts: Sequence[StoredPart]
    ) -> str:
        where = {"UploadId": upload, "PartNumber": number}
        if len(piece) == 1 and piece[0].size >= MIN_PIECE:
            (extent,) = piece
            source = parts[extent.part].location
            bucket, key, _ = source.fs.split_path(source.path)
            copied = self._call(
                "upload_part_copy",
                CopySource={"Bucket": bucket, "Key": key},
                CopySourceRange=f"bytes={extent.start}-{extent.end - 1}",
                **where,
            )
            return str(copied["CopyPartResult"]["ETag"])
        data = b"".join(_bytes_of(e, parts[e.part]) for e in piece)
        return str(self._call("upload_part", Body=data, **where)["ETag"])

    def _carried_out(self, error: Exception) -> bool:
        try:
            found = self._call("head_object")
        except FileNotFoundError:
            return False
        except Exception as e:
            what = scrub(describe(error), self._target.options)
            raise SinkError(
                f"{self._target.uri}: the commit failed ({what}), and the store could not be asked "
                "whether it was carried out after all; the sink is as it was, or whole and new. "
                "Run again once the store answers"
            ) from self._target.cause(e)
        mine = found.get("Metadata", {}).get(_MARK) == self._mark
        return mine and int(found.get("ContentLength", -1)) == self._size


def abort_uploads(location: Location, prove: Callable[[], None], *, exact: bool = False) -> None:
    """Aborts multipart uploads that were begun and never completed, where S3 lets us look.

    They are invisible but cost storage.

    Args:
        location: The object, or the folder below which to look.
        prove: Raises where another job may have begun them; asked before they are aborted.
        exact: Only this object.
    """
    if not location.is_s3:
        return
    fs = location.fs
    bucket, key, _ = fs.split_path(location.path)
    prefix = key if exact else key.rstrip("/") + "/"
    try:
        for page in _pages_of_uploads(location, bucket, prefix):
            found = [u for u in page if not exact or u["Key"] == key]
            if found:
                prove()
            for upload in found:
                location.remote("abort", lambda u=upload: _abort(fs, bucket, u))  # type: ignore[misc]
    except (OSError, SheafError) as e:
        # Without the permission to list them a lifecycle rule of the bucket does it; and whoever
        # holds the sink now does it, too.
        log.debug("%s: unfinished uploads left: %s", location.uri, describe(e))


def _pages_of_uploads(
    location: Location, bucket: str, prefix: str
) -> Iterator[list[dict[str, Any]]]:
    where = {"Bucket": bucket, "Prefix": prefix}
    while True:
        call = partial(location.fs.call_s3, "list_multipart_uploads", **where)
        page = location.remote("list_multipart_uploads", call)
        yield page.get("Uploads") or []
        if not page.get("IsTruncated"):
            return
        where |= {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}


def _abort(fs: Any, bucket: str, upload: dict[str, Any]) -> None:
    with suppress(FileNotFoundError):
        fs.call_s3(
            "abort_multipart_upload", Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"]
        )
