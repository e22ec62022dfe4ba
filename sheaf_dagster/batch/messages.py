"""What the driver, the coordinator and the workers of a job tell one another.

The coordinator knows a job by these alone: this module loads neither the contracts nor pydantic,
so that it is up before the workers are.
"""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from sheaf_dagster.errors import BackendError, SheafError
from sheaf_dagster.storage import Location, Part, PartStore

if TYPE_CHECKING:
    from sheaf_dagster.batch.spec import OnError

__all__ = [
    "ChunkFailure",
    "ChunkReport",
    "FileJob",
    "Hangs",
    "said_by",
    "shortened",
    "worker_name",
]

_MESSAGE = 2000
_TRACEBACK_CHARS = 20_000


@dataclass(frozen=True)
class Hangs:
    """What earlier attempts at a chunk have learned, as positions of rows."""

    together: frozenset[int] = frozenset()
    """Rows of batches that ran out of time: they are tried one at a time."""
    alone: frozenset[int] = frozenset()
    """Rows that ran out of time by themselves: they are not tried again."""

    def after(self, rows: Iterable[int]) -> Hangs:
        """What is known once this batch has run out of time too."""
        batch = frozenset(rows)
        alone = self.alone | batch if len(batch) == 1 else self.alone
        return Hangs(self.together | batch, alone)


@dataclass(frozen=True)
class FileJob:
    """One source→sink pair as a worker sees it."""

    id: int
    texts: tuple[Location, ...]
    """Where the text of each source file can be read."""
    names: tuple[str, ...]
    """What to call them in messages."""
    store: PartStore
    batch_size: int | None
    """Rows of a batch; None: each worker finds the best."""
    on_error: OnError
    bucket_by: str | None
    batch_timeout: float | None = None
    redact: bool = False
    hangs: dict[int, Hangs] = field(default_factory=dict)
    """By chunk: what ran out of time in workers that were ended for it."""


@dataclass(frozen=True)
class ChunkFailure:
    """An error that crosses processes as plain data, so that its type and text survive."""

    error: str
    """Name of the ``SheafError`` subclass."""
    message: str
    traceback: str = ""
    retryable: bool = False

    @classmethod
    def of(cls, error: BaseException, place: str, *, redact: bool = False) -> ChunkFailure:
        """Describes any exception.

        Args:
            error: The exception.
            place: Names the source.
            redact: Leave out what errors that aren't ours say, for they may quote rows.
        """
        text = _frames(error) if redact else _cut_traceback(error)
        if isinstance(error, SheafError):
            return cls(type(error).__name__, str(error), text, error.retryable)
        return cls(BackendError.__name__, f"{place}: {said_by(error, redact=redact)}", text)


def _cut_traceback(error: BaseException) -> str:
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    half = _TRACEBACK_CHARS // 2
    return text if len(text) <= 2 * half else f"{text[:half]}\n  […]\n{text[-half:]}"


def _frames(error: BaseException) -> str:
    """The way to an error and its causes, in code alone."""
    pieces: list[str] = []
    seen: BaseException | None = error
    while seen is not None:
        frames = "".join(traceback.format_tb(seen.__traceback__))
        pieces.insert(0, f"{frames}{type(seen).__name__}\n")
        seen = seen.__cause__ or seen.__context__
    return "\n".join(pieces)


@dataclass(frozen=True)
class ChunkReport:
    """All that the driver learns of a chunk."""

    job: int
    chunk: int
    first_row: int
    worker: str
    part: Part | None = None
    failure: ChunkFailure | None = None
    predict_seconds: float = 0.0
    halved: int = 0
    batch_size: int = 0
    """Rows of a batch when the chunk ended."""
    started: float = 0.0
    ended: float = 0.0
    load_seconds: float = 0.0
    model_digest: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ChunkReport:
        """The report that ``to_dict`` described."""
        part, failure = data.pop("part"), data.pop("failure")
        return cls(
            **data,
            part=Part(**part) if part else None,
            failure=ChunkFailure(**failure) if failure else None,
        )


def worker_name() -> str:
    """Names this process among those of a cluster."""
    return f"{socket.gethostname()}:{os.getpid()}"


def said_by(error: BaseException, *, redact: bool = False) -> str:
    """An error of a backend in words, shortened: its text may quote whole rows.

    Args:
        error: The error.
        redact: Its type alone.
    """
    name = type(error).__name__
    if redact:
        return f"{name} (its text is left out: redact_rows)"
    return f"{name}: {shortened(str(error))}"


def shortened(text: str, limit: int = _MESSAGE) -> str:
    """The text, or its beginning where it is long."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
