"""Joining parts into one object of S3, seen whole or not at all.

A multipart upload is completed at once, and pieces of 5 MiB and more are copied inside the store:
their bytes don't pass through this process. Smaller ones are fetched and put together first, since
S3 takes no smaller piece but the last.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from sheaf_dagster.errors import SinkBusyError, SinkError
from sheaf_dagster.storage.failures import describe
from sheaf_dagster.storage.options import scrub
from sheaf_dagster.storage.stores.base import Join, StoredPart
from sheaf_dagster.storage.stores.remote import ONE_PUT_BYTES, RemoteStore, fetch_all
from sheaf_dagster.storage.stores.s3_uploads import abort_uploads

__all__ = ["Extent", "S3Join", "plan_pieces"]

log = logging.getLogger(__name__)

MIN_PIECE = 5 * 2**20
"""Smallest piece of a multipart upload but the last one (S3's rule)."""

MAX_COPY = 5 * 2**30
"""Largest piece that S3 copies in one request."""

MAX_PIECES = 8000
"""Below S3's 10,000, with room for the rest of parts that are cut in two."""

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


class S3Join(Join):
    """An object of S3, known again by the mark that the commit leaves on it.

    The answer to the request that commits may be lost on its way. Then the object itself says
    whether it was carried out.
    """

    def __init__(self, target: RemoteStore) -> None:
        self._target = target
        self._bucket, self._key, _ = target.fs.split_path(target.path)
        self._mark = ""

    def commit(self, parts: Sequence[StoredPart], empty: bytes, prove: Callable[[], None]) -> int:
        """Writes the parts, in order, as one object: in one request where all of it is small."""
        self._mark = uuid.uuid4().hex
        size = sum(p.size for p in parts) if parts else len(empty)
        data = None
        if size <= ONE_PUT_BYTES and all(p.size < MIN_PIECE for p in parts):
            data = fetch_all(parts) or empty
        try:
            if data is not None:
                prove()
                self._call("put_object", Body=data, Metadata={_MARK: self._mark})
            else:
                self._upload(parts, prove)
        except SinkBusyError:
            raise
        except Exception as e:
            if not self._carried_out(e, size):
                raise
            log.info("%s: committed, though the answer was lost", self._target.uri)
        return size

    def _call(self, method: str, **arguments: Any) -> dict[str, Any]:
        call: Callable[[], dict[str, Any]] = lambda: self._target.fs.call_s3(  # noqa: E731
            method, Bucket=self._bucket, Key=self._key, **arguments
        )
        return self._target.request(method, call)

    def _upload(self, parts: Sequence[StoredPart], prove: Callable[[], None]) -> None:
        abort_uploads(self._target, prove, exact=True)  # of runs that were killed here
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
            prove()
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
            abort_uploads(self._target, prove, exact=True)

    def _piece(
        self, upload: str, number: int, piece: list[Extent], parts: Sequence[StoredPart]
    ) -> str:
        where = {"UploadId": upload, "PartNumber": number}
        if len(piece) == 1 and piece[0].size >= MIN_PIECE:
            (extent,) = piece
            bucket, key, _ = self._target.fs.split_path(parts[extent.part].store.path)
            copied = self._call(
                "upload_part_copy",
                CopySource={"Bucket": bucket, "Key": key},
                CopySourceRange=f"bytes={extent.start}-{extent.end - 1}",
                **where,
            )
            return str(copied["CopyPartResult"]["ETag"])
        data = b"".join(_bytes_of(e, parts[e.part]) for e in piece)
        return str(self._call("upload_part", Body=data, **where)["ETag"])

    def _carried_out(self, error: Exception, size: int) -> bool:
        try:
            found = self._call("head_object")
        except FileNotFoundError:
            return False
        except Exception as e:
            what = scrub(describe(error), self._target.location.options)
            raise SinkError(
                f"{self._target.uri}: the commit failed ({what}), and the store could not be asked "
                "whether it was carried out after all; the sink is either unchanged or complete "
                "and new. "
                "Run again once the store answers"
            ) from self._target.location.cause(e)
        mine = found.get("Metadata", {}).get(_MARK) == self._mark
        return mine and int(found.get("ContentLength", -1)) == size


def _bytes_of(extent: Extent, part: StoredPart) -> bytes:
    if extent.size == part.size:
        return part.read()  # and compare it with its checksum
    return part.store.read_range(extent.start, extent.end)
