"""What the driver of a job hears of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sheaf_dagster.batch.file_run import FileRun
from sheaf_dagster.batch.messages import ChunkReport
from sheaf_dagster.batch.results import BatchOutcome, BatchResult

__all__ = [
    "AllFed",
    "Broke",
    "Committed",
    "Ended",
    "Event",
    "Failed",
    "Prepared",
    "Reported",
    "Settled",
    "Tell",
    "Waiting",
    "WorkFailed",
]


@dataclass(frozen=True)
class Settled:
    """A file has an outcome without being run: it can't work, or there is nothing to do."""

    outcome: BatchOutcome


@dataclass(frozen=True)
class Prepared:
    """A file is valid and about to be submitted."""

    run: FileRun


@dataclass(frozen=True)
class Reported:
    """A chunk is done, well or not."""

    report: ChunkReport


@dataclass(frozen=True)
class Committed:
    """A file's sink is there; without a result it was there already."""

    run: FileRun
    result: BatchResult | None


@dataclass(frozen=True)
class Failed:
    """A file could not be prepared or committed."""

    run: FileRun
    error: Exception


@dataclass(frozen=True)
class WorkFailed:
    """A file's chunks can't be run."""

    file: int
    error: Exception


@dataclass(frozen=True)
class AllFed:
    """There are no more files."""


@dataclass(frozen=True)
class Waiting:
    """The workforce has something to do when it is next looked after."""


@dataclass(frozen=True)
class Ended:
    """Nobody works any more, and all reports are in: what is open stays open."""

    error: Exception


@dataclass(frozen=True)
class Broke:
    """The caller's iterator of files, or what listens to the workers, has failed."""

    error: BaseException


Event = (
    Settled
    | Prepared
    | Reported
    | Committed
    | Failed
    | WorkFailed
    | AllFed
    | Waiting
    | Ended
    | Broke
)

Tell = Callable[[Event], None]
"""Puts an event into the inbox; from any thread."""
