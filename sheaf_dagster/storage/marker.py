"""A small object of a remote store that is changed by compare-and-swap.

A store that can't compare, or doesn't do what it was asked, is looked at before it is written:
between the look and the write there is a moment in which another may write, too. ``exact`` tells
which it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

__all__ = ["Marker", "Stored"]


@dataclass(frozen=True)
class Stored:
    """What an object holds, and what tells this version of it from others."""

    content: bytes
    version: str


class Marker(Protocol):
    """The object.

    A request whose answer was lost may have been carried out: who hears that something else is
    there has to read it before he concludes that it is somebody else's.
    """

    @property
    def exact(self) -> bool:
        """Whether two who write at a time can't both believe that they did."""

    def read(self) -> Stored | None:
        """What is there, if anything."""

    def create(self, content: bytes) -> str | None:
        """Makes the object; its version, or None where there is one."""

    def replace(self, content: bytes, version: str, timeout: float | None = None) -> str | None:
        """Writes over a version; the new version, or None where this one is no longer there.

        Args:
            content: What to write.
            version: What must be there.
            timeout: Seconds after which to give up, where the store's client can.
        """

    def remove(self, version: str) -> None:
        """Deletes this version; another one stays."""
