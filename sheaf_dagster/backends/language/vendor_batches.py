"""A vendor's batch API: rows are uploaded as a file, and answered within a day at a lower price.

::

    row ──▶ group (until it is full, or no row has come for a moment)
              │ upload, note, create, note
              ▼
            batch at the vendor ──polls──▶ ended
              │ fetch
              ▼
    answered · refused · unanswered ──▶ a group again, while there are attempts left

What is written down before and after a batch is created lets the next run of a killed job find it: a
row that is in a batch is waited for, and not submitted again.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from sheaf_dagster.backends.common.notes import NOTES, Notes
from sheaf_dagster.backends.language.refusal import RefusedError
from sheaf_dagster.errors import BackendError, ServiceDownError

__all__ = ["BatchLimits", "VendorBatches"]

log = logging.getLogger(__name__)

_QUIET_SECONDS = 0.5
"""A group that no row has joined for so long is submitted: the reader has no more, or waits."""

_KEPT = 4
"""Batches whose answers are kept at hand."""

_ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
_PASSING = frozenset({408, 409, 425, 429})


@dataclass(frozen=True)
class BatchLimits:
    """What a vendor takes in one batch, and how it is asked.

    Attributes:
        rows: Rows of a batch, at most.
        bytes: Size of its file, at most.
        poll_s: Seconds between two looks at it.
        window: Time in which it is to be answered, as the vendor calls it.
        submissions: How often a row is submitted that comes back unanswered.
    """

    rows: int
    bytes: int
    poll_s: float
    window: str
    submissions: int


@dataclass
class _Batch:
    """A batch at the vendor.

    ``resumed`` says that an earlier run submitted it: what it left unanswered is submitted anew.
    """

    name: str
    id: str
    keys: list[str]
    resumed: bool = False


class _Group:
    """Rows that are going to be a batch, but for those that turn out to be in one already."""

    def __init__(self, url: str, notes: Notes | None) -> None:
        self.url = url
        self.notes = notes
        self.batches: asyncio.Future[dict[str, _Batch]] = asyncio.get_running_loop().create_future()
        self.lines: dict[str, bytes] = {}
        self.tried: dict[str, set[str]] = {}
        self.size = 0
        self.closed = False


class VendorBatches:
    """Submits rows in batches and waits for their answers; it belongs to one event loop.

    Args:
        client: An ``AsyncOpenAI``.
        limits: The vendor's.
    """

    def __init__(self, client: Any, limits: BatchLimits) -> None:
        self._client = client
        self._limits = limits
        self._groups: dict[tuple[str, str], _Group] = {}
        self._attaching: dict[str, asyncio.Task[_Batch]] = {}
        self._ended: OrderedDict[str, asyncio.Task[dict[str, bytes]]] = OrderedDict()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def answer(self, key: str, url: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The body of a row's response.

        Args:
            key: Names the row within its job, at each run alike.
            url: Where its body would be posted.
            body: What would be.

        Raises:
            RefusedError: The vendor refused the row, or left it unanswered each time.
            BackendError: The vendor refused the batch.
        """
        line = {"custom_id": key, "method": "POST", "url": url, "body": body}
        data = orjson.dumps(line) + b"\n"
        if len(data) > self._limits.bytes:
            raise RefusedError(
                f"the row has {len(data):,} bytes, but a batch may have {self._limits.bytes:,} "
                "at most (batch_bytes)",
                413,
                "TooLarge",
            )
        tried: set[str] = set()
        submissions = 0
        while True:
            batches = await asyncio.shield(self._join(key, url, data, tried).batches)
            batch = batches[key]
            tried.add(batch.name)
            submissions += not batch.resumed
            said = (await self._answers(batch)).get(key)
            status, answered = (504, {}) if said is None else _status_and_body(orjson.loads(said))
            if status == 200:
                return answered
            passing = status >= 500 or status in _PASSING
            if not passing or submissions >= self._limits.submissions:
                raise _refusal(status, answered)

    # -- groups -------------------------------------------------------------------------------

    def _join(self, key: str, url: str, data: bytes, tried: set[str]) -> _Group:
        """The group that a row is in now."""
        notes = NOTES.get()
        place = (url, notes.name if notes else "")
        group = self._groups.get(place)
        if group is not None and not group.closed:
            full = len(group.lines) >= self._limits.rows
            if full or group.size + len(data) > self._limits.bytes:
                self._close(group)
        if group is None or group.closed:
            group = self._groups[place] = _Group(url, notes)
            self._start(self._close_when_quiet(group))
        if key not in group.lines:  # else it is the same row twice
            group.lines[key] = data
            group.tried[key] = tried
            group.size += len(data)
        return group

    async def _close_when_quiet(self, group: _Group) -> None:
        rows = -1
        while rows < len(group.lines) and not group.closed:
            rows = len(group.lines)
            await asyncio.sleep(_QUIET_SECONDS)
        self._close(group)

    def _close(self, group: _Group) -> None:
        if not group.closed:
            group.closed = True
            self._start(self._submit(group))

    async def _submit(self, group: _Group) -> None:
        try:
            group.batches.set_result(await self._batches_of(group))
        except asyncio.CancelledError:
            group.batches.cancel()
            raise
        except Exception as e:
            group.batches.set_exception(e)

    async def _batches_of(self, group: _Group) -> dict[str, _Batch]:
        """The batch that each row is in; those that are in none are submitted."""
        batches: dict[str, _Batch] = {}
        noted = await _read(group.notes)
        newest = {key: name for name, note in noted.items() for key in note["rows"]}
        for key in group.lines:
            name = newest.get(key)
            if name is not None and name not in group.tried[key]:
                batches[key] = await self._attached(group.notes, name, noted[name])
        rest = [key for key in group.lines if key not in batches]
        if rest:
            name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"  # in the order of submission
            data = b"".join(group.lines[key] for key in rest)
            content = (f"{name}.jsonl", data, "application/jsonl")
            file = await self._client.files.create(file=content, purpose="batch")
            note = {"file": file.id, "url": group.url, "rows": rest}
            await _write(group.notes, name, note)
            batches |= dict.fromkeys(rest, await self._created(group.notes, name, note))
        return batches

    async def _created(self, notes: Notes | None, name: str, note: dict[str, Any]) -> _Batch:
        """Creates a batch of a file that is uploaded and noted, and notes the batch."""
        made = await self._client.batches.create(
            input_file_id=note["file"],
            endpoint=note["url"],
            completion_window=self._limits.window,
            metadata={"sheaf_dagster": name},
            extra_headers={"Idempotency-Key": name},
        )
        await _write(notes, name, {**note, "batch": made.id})
        return _Batch(name, made.id, note["rows"])

    # -- what earlier runs have submitted -----------------------------------------------------

    async def _attached(self, notes: Notes | None, name: str, note: dict[str, Any]) -> _Batch:
        task = self._attaching.get(name)
        if task is None:
            task = self._attaching[name] = self._start(self._attach(notes, name, note))
        return await asyncio.shield(task)

    async def _attach(self, notes: Notes | None, name: str, note: dict[str, Any]) -> _Batch:
        id = note.get("batch") or await self._created_of(note["file"])
        if id is None:  # it was killed between the upload and the batch
            return await self._created(notes, name, note)
        return _Batch(name, id, note["rows"], resumed=True)

    async def _created_of(self, file: str) -> str | None:
        """The batch that was created of a file, if there is one and the vendor lists its batches."""
        from openai import APIStatusError

        try:
            async for batch in self._client.batches.list(limit=100):
                if batch.input_file_id == file:
                    return str(batch.id)
        except APIStatusError as e:
            if e.status_code not in (404, 405, 501):
                raise
        return None

    # -- answers ------------------------------------------------------------------------------

    async def _answers(self, batch: _Batch) -> dict[str, bytes]:
        """The line of each row that a batch has answered, once it has ended."""
        task = self._ended.get(batch.id)
        if task is None:
            task = self._ended[batch.id] = self._start(self._ended_answers(batch))
            done = [id for id, t in self._ended.items() if t.done()]
            for id in done[:-_KEPT]:
                del self._ended[id]
        return await asyncio.shield(task)

    async def _ended_answers(self, batch: _Batch) -> dict[str, bytes]:
        while (ended := await self._client.batches.retrieve(batch.id)).status not in _ENDED:
            await asyncio.sleep(self._limits.poll_s)
        answers: dict[str, bytes] = {}
        # A row may have lines in both files, or two in one: its answer counts before its errors.
        for file in (ended.error_file_id, ended.output_file_id):
            if file is not None:
                content = await self._client.files.content(file)
                answers |= _by_key(content.content, batch)
        if ended.status == "failed":
            answers |= _refused_lines(ended, batch)
        if ended.status in ("failed", "cancelled") and not answers and not batch.resumed:
            raise _refused_batch(ended)
        return answers

    def _start(self, coroutine: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _read(notes: Notes | None) -> dict[str, dict[str, Any]]:
    """All notes by name, the oldest first."""
    if notes is None:
        return {}
    found = await asyncio.to_thread(notes.read)
    return {name: orjson.loads(found[name]) for name in sorted(found)}


async def _write(notes: Notes | None, name: str, note: dict[str, Any]) -> None:
    if notes is not None:
        await asyncio.to_thread(notes.write, name, orjson.dumps(note))


def _by_key(data: bytes, batch: _Batch) -> dict[str, bytes]:
    """The lines of a file by their rows; of two answers to a row the first.

    A line that can't be read leaves its row unanswered, to be submitted again.
    """
    found: dict[str, bytes] = {}
    known, unread = set(batch.keys), 0
    for line in data.split(b"\n"):
        if not line.strip():
            continue
        try:
            said = orjson.loads(line)
            key = said["custom_id"]
            status, _ = _status_and_body(said)
        except (ValueError, TypeError, KeyError, AttributeError):
            unread += 1
            continue
        if key in known and (key not in found or status == 200 != _status(found[key])):
            found[key] = line
    if unread:
        log.warning("%d lines of the answers to batch %s can't be read", unread, batch.id)
    return found


def _status(line: bytes) -> int:
    return _status_and_body(orjson.loads(line))[0]


def _status_and_body(said: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """What a line of an answer says; an error without a status is one that may pass."""
    response, error = said.get("response"), said.get("error")
    if response:
        return int(response.get("status_code") or 200), response.get("body") or {}
    return 504, {"error": error}


def _refusal(status: int, body: Mapping[str, Any]) -> RefusedError:
    error = body.get("error")
    error = error if isinstance(error, Mapping) else {"message": error}
    kind = error.get("type") or error.get("code") or ("Unanswered" if status == 504 else "Refused")
    message = error.get("message") or "the batch ended without an answer to this row"
    return RefusedError(str(message), status, str(kind))


def _refused_lines(ended: Any, batch: _Batch) -> dict[str, bytes]:
    """Rows that the vendor named when it refused the whole file; the others are unanswered."""
    found = {}
    for error in getattr(ended.errors, "data", None) or ():
        if error.line and 0 < error.line <= len(batch.keys):
            said = {"error": {"message": error.message, "type": error.code}}
            line = {"response": {"status_code": 400, "body": said}}
            found[batch.keys[error.line - 1]] = orjson.dumps(line)
    return found


def _refused_batch(ended: Any) -> BackendError:
    """Why nothing of a batch was answered."""
    if ended.status == "cancelled":
        return BackendError(
            f"batch {ended.id} was cancelled at the vendor; run again to submit its rows anew"
        )
    errors = getattr(ended.errors, "data", None) or ()
    said = "; ".join(f"{e.code}: {e.message}" for e in errors) or "it doesn't say why"
    if any("limit" in str(e.code) for e in errors):
        return ServiceDownError(
            f"batch {ended.id} was refused: {said}. Run the job again once other batches are done"
        )
    return BackendError(f"batch {ended.id} was refused: {said}")
