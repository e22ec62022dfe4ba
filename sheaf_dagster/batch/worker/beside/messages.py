"""What the model's process and those beside it tell one another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sheaf_dagster.backends import ModelBackend
from sheaf_dagster.batch.messages import ChunkReport, ErrorMessage, FileWork
from sheaf_dagster.batch.worker.loading import ModelContext
from sheaf_dagster.batch.worker.memory import is_out_of_memory
from sheaf_dagster.errors import SheafError
from sheaf_dagster.storage import Chunk

__all__ = [
    "Asks",
    "Begin",
    "Chunks",
    "Failed",
    "Idle",
    "Log",
    "More",
    "Outputs",
    "Ready",
    "Report",
    "Start",
    "Stop",
    "as_error",
    "told_error",
]


# -- to a process beside --------------------------------------------------------------------------


@dataclass(frozen=True)
class Start:
    """The first message: what it works with."""

    context: ModelContext
    backend: ModelBackend
    """Without its model."""
    load_seconds: float
    ready_at: float
    digest: str | None
    threads: int
    """Threads that prepare."""
    bytes_ahead: int
    """About what its prepared rows may take."""


@dataclass(frozen=True)
class Begin:
    """Chunks are to be had: ask for them."""


@dataclass(frozen=True)
class Chunks:
    """Some chunks of files; none: there are no more."""

    works: dict[int, FileWork]
    """Files of which it has had none before."""
    chunks: list[tuple[int, Chunk]]


@dataclass(frozen=True)
class Stop:
    """End after the batch in hand."""


@dataclass(frozen=True)
class Outputs:
    """What ``infer`` came to."""

    number: int
    values: Any
    seconds: float
    """In which the device had the batch."""
    error: ToldError | None = None


# -- from it ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ready:
    """It has started."""


@dataclass(frozen=True)
class More:
    """It needs more chunks."""


@dataclass(frozen=True)
class Asks:
    """A batch for ``infer``."""

    number: int
    prepared: list[Any]
    size: int
    """What it costs the device, padded."""


@dataclass(frozen=True)
class Report:
    """A chunk is done, or has failed."""

    report: ChunkReport


@dataclass(frozen=True)
class Idle:
    """It has done all of its chunks."""


@dataclass(frozen=True)
class Failed:
    """It can't go on."""

    why: str


@dataclass(frozen=True)
class Log:
    """A record of its log."""

    name: str
    level: int
    message: str


# -- errors ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ToldError:
    """An error of ``infer`` as plain data: the error itself may hold a batch, or the model."""

    ours: ErrorMessage | None
    name: str
    text: str
    is_out_of_memory: bool
    attributes: dict[str, Any]
    """What is written of it to an error row."""


def told_error(error: Exception) -> ToldError:
    """An error as it is sent."""
    ours = ErrorMessage.of(error) if isinstance(error, SheafError) else None
    known = {n: getattr(error, n) for n in ("status_code", "kind") if hasattr(error, n)}
    plain = {n: v for n, v in known.items() if isinstance(v, (str, int, type(None)))}
    return ToldError(ours, type(error).__name__, str(error), is_out_of_memory(error), plain)


def as_error(told: ToldError) -> Exception:
    """An error as it was told: of the same name and text."""
    if told.ours is not None:
        return told.ours.rebuilt()
    base = MemoryError if told.is_out_of_memory else Exception
    return type(told.name, (base,), dict(told.attributes))(told.text)  # type: ignore[no-any-return]
