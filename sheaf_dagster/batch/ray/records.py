"""What is handed out to the workers of a job, and what its ledger keeps of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sheaf_dagster.batch.messages import FileWork
from sheaf_dagster.errors import WorkerCrashError
from sheaf_dagster.storage import Chunk
from sheaf_dagster.storage.formats import row_word

__all__ = [
    "MAX_ATTEMPTS",
    "MAX_LOSSES",
    "ChunkWork",
    "NodeDrains",
    "OpenChunk",
    "OpenFile",
    "Seat",
    "ValidationWork",
]

MAX_ATTEMPTS = 3
"""Times that a chunk may be tried again after its worker died."""

MAX_LOSSES = 20
"""Times that a chunk may be tried again after its worker's node was lost. A machine that fails or
is taken away is none of the chunk's doing; but one that brings machines down must not go on so."""


ChunkWork = list[tuple[FileWork, Chunk]]
"""Chunks to run, each with its file."""


class ValidationWork(NamedTuple):
    """Chunks to validate; only the driver and the workers look into them."""

    number: int
    chunks: Any


class NodeDrains:
    """Told to a worker instead of more work: its node is about to be taken away."""


@dataclass
class OpenFile:
    """A file that is under way."""

    work: FileWork
    open: int
    """Chunks that are not done."""


@dataclass(eq=False)
class OpenChunk:
    """A chunk that is not done."""

    file: int
    chunk: Chunk
    suspect: bool = False
    """It runs alone, so that the one to blame is known."""
    deaths: list[str] = field(default_factory=list)
    """The nodes on which its workers died."""
    losses: int = 0
    """How often its worker went with its node."""

    @property
    def key(self) -> tuple[int, int]:
        """File and index."""
        return self.file, self.chunk.index

    @property
    def given_up(self) -> bool:
        """Whether it has cost too many workers to be tried again."""
        return len(self.deaths) > MAX_ATTEMPTS or self.losses > MAX_LOSSES

    def blame(self, nodes: set[str]) -> None:
        """These nodes are gone: what was heard of as a death there was their loss."""
        before = len(self.deaths)
        self.deaths = [node for node in self.deaths if node not in nodes]
        self.losses += before - len(self.deaths)

    def crash(self, where: str, backend: str) -> WorkerCrashError:
        """Why it is given up."""
        what = (
            f"{where}, the {self.chunk.rows} rows from {row_word(where)} {self.chunk.first_line}:"
        )
        if len(self.deaths) > MAX_ATTEMPTS:
            return WorkerCrashError(
                f"{what} their worker process died {len(self.deaths)} times (segmentation fault, "
                f"exit, or killed for memory) in backend {backend!r}; look at these rows and at "
                "the worker's log, lower batch_size, or give the model more memory_gb"
            )
        return WorkerCrashError(
            f"{what} the node of their worker was lost {self.losses} times (backend {backend!r}); "
            "find out why nodes are lost (preempted, out of memory), give the model more "
            "memory_gb, or lower batch_size so that a chunk takes less time"
        )


@dataclass
class Seat:
    """Leave to work for one worker at a time."""

    turn: int = 0
    """How often it has been taken."""
    node: str = ""
    at_work: bool = False
    ending: bool = False
    """Its worker ends itself, and takes nothing more."""
    held: dict[tuple[int, int], OpenChunk] = field(default_factory=dict)
