"""Who runs a job's chunks, as its driver sees them."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Protocol

from sheaf_dagster.batch.events import Tell
from sheaf_dagster.batch.messages import FileWork
from sheaf_dagster.batch.rows.findings import ChunkFindings
from sheaf_dagster.batch.rows.requests import RowContract
from sheaf_dagster.storage import Chunk, ScannedSource

__all__ = ["Workforce"]


class Workforce(Protocol):
    """Those who run a job's chunks.

    It is opened, started, stopped and closed once, in that order, by the loop's thread. Stopping
    and closing may come at any time, and without what would come before.
    """

    files_ahead: int
    """Files that may be validated and not yet committed."""

    @property
    def surely_opens(self) -> bool:
        """Whether files may be prepared before it is open: it is bound to have room for the job."""

    def open(self) -> None:
        """Makes sure that there is room for the job; from here on chunks can be submitted.

        Raises:
            ClusterCapacityError: There is none.
        """

    def start(self, tell: Tell) -> None:
        """Has the workers started.

        Args:
            tell: Hears of each chunk that is done, and of the end of all workers after the last.
        """

    def validate(
        self, contract: RowContract, source: ScannedSource, stop: threading.Event
    ) -> Iterable[ChunkFindings]:
        """Validates all chunks of a source, in order; in the feeder's thread, open or not."""

    def submit(self, work: FileWork, chunks: list[Chunk]) -> None:
        """Adds a validated file's chunks; in the feeder's thread."""

    def no_more_files(self) -> None:
        """Says that the last one has been submitted; in the feeder's thread."""

    def cancel(self, file: int) -> None:
        """Calls off the rest of a file that failed."""

    def look(self) -> bool:
        """Does what is to be done from time to time; True where there is more to do at once."""

    def stop(self) -> None:
        """Stops what is running; parts of finished chunks stay."""

    def close(self) -> None:
        """Gives everything back."""
