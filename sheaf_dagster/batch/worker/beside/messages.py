"""What the model's process and those beside it tell one another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sheaf_dagster.backends import ModelBackend
from sheaf_dagster.batch.messages import ChunkReport, FileWork
from sheaf_dagster.batch.worker.beside.errors import ToldError
from sheaf_dagster.batch.worker.loading import ModelContext
from sheaf_dagster.storage import Chunk

__all__ = [
    "Asks",
    "Begin",
    "Chunks",
    "Failed",
    "Idle",
    "Log",
    "Lowered",
    "More",
    "Outputs",
    "Ready",
    "Report",
    "Start",
    "Stop",
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
    log_level: int
    """Below which records are of no interest."""


@dataclass(frozen=True)
class Begin:
    """Chunks are to be had: ask for them."""

    context: bytes
    """The run's ``ModelContext``, pickled: another run may have another contract."""
    environment: Mapping[str, str]
    """The variables of the model's process, whose credentials may be new."""
    budget: int | None
    """What no batch may cost: more did not fit."""


@dataclass(frozen=True)
class Lowered:
    """A batch of this cost did not fit."""

    size: int


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
