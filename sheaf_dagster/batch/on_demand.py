"""A workforce that is there once there is work: a job that keeps its answers may have none."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from sheaf_dagster.batch.events import Tell, Waiting
from sheaf_dagster.batch.messages import FileWork
from sheaf_dagster.batch.rows.findings import ChunkFindings
from sheaf_dagster.batch.rows.requests import RowContract
from sheaf_dagster.batch.workforce import Workforce
from sheaf_dagster.storage import Chunk, ScannedSource

__all__ = ["OnDemandWorkforce"]


class OnDemandWorkforce:
    """Another workforce, which is opened and started when the first chunks are submitted.

    Until then files are validated in this process, no Ray is started and nothing is reserved.

    Args:
        workforce: The other one.
    """

    surely_opens = True

    def __init__(self, workforce: Workforce) -> None:
        self._workforce = workforce
        self.files_ahead = workforce.files_ahead
        self._tell: Tell = lambda event: None
        self._lock = threading.Lock()
        self._waiting: list[tuple[FileWork, list[Chunk]]] = []
        self._all_submitted = False
        self._at_work = False

    def open(self) -> None:
        """Nothing is needed yet."""

    def start(self, tell: Tell) -> None:
        """Remembers whom to tell."""
        self._tell = tell

    def validate(
        self, contract: RowContract, source: ScannedSource, stop: threading.Event
    ) -> Iterable[ChunkFindings]:
        """Validates as the other one does, open or not."""
        return self._workforce.validate(contract, source, stop)

    def submit(self, work: FileWork, chunks: list[Chunk]) -> None:
        """Adds a validated file's chunks; the first ones wait for the loop's next look."""
        with self._lock:
            if self._at_work:
                self._workforce.submit(work, chunks)
            else:
                self._waiting.append((work, chunks))
        self._tell(Waiting())

    def no_more_files(self) -> None:
        """Says that the last one has been submitted."""
        with self._lock:
            self._all_submitted = True
            if self._at_work:
                self._workforce.no_more_files()

    def cancel(self, file: int) -> None:
        """Calls off the rest of a file that failed."""
        with self._lock:
            self._waiting = [(work, chunks) for work, chunks in self._waiting if work.id != file]
        if self._at_work:
            self._workforce.cancel(file)

    def look(self) -> bool:
        """Opens and starts the other workforce once there is work, then looks after it.

        Raises:
            ClusterError, ClusterCapacityError: As by its ``open`` and ``start``.
        """
        if self._waiting and not self._at_work:
            self._workforce.open()
            self._workforce.start(self._tell)
            with self._lock:
                self._at_work = True
                for work, chunks in self._waiting:
                    self._workforce.submit(work, chunks)
                self._waiting = []
                if self._all_submitted:
                    self._workforce.no_more_files()
        return self._at_work and self._workforce.look()

    def stop(self) -> None:
        """Stops what is running."""
        self._workforce.stop()

    def close(self) -> None:
        """Gives back what was taken."""
        self._workforce.close()
