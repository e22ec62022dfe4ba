"""What a backend writes down about a job while it runs, for the next attempt at the same job."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Protocol

__all__ = ["NOTES", "Notes"]


class Notes(Protocol):
    """A place beside the finished parts of a file; it goes with them once the file is committed."""

    @property
    def name(self) -> str:
        """Tells this place from others."""

    def read(self) -> dict[str, bytes]:
        """All notes by their names, those of killed runs and other workers among them."""

    def write(self, name: str, data: bytes) -> None:
        """Writes a note, whole or not at all; in place of one of that name.

        Args:
            name: Letters, digits and dashes.
            data: What it says.
        """


NOTES: ContextVar[Notes | None] = ContextVar("NOTES", default=None)
"""Of the row that ``predict_async`` is called for; None outside of a job."""
