"""Which versions of files were asked for: a small cursor, and a large set in the instance."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

import dagster as dg

from sheaf_dagster.errors import SpecError

__all__ = ["Cursor", "SeenFiles"]

_AT_A_TIME = 5000
"""Keys that one statement adds; databases limit its parameters (SQLite: 32,766)."""


@dataclass
class Cursor:
    """What a tick leaves for the next one.

    The versions that were asked for are kept in the instance, not here: a hundred thousand of
    them would make every tick carry a megabyte. Only those of the last tick are here, since
    Dagster saves cursor and run requests together: what a saved cursor names was asked for.

    Attributes:
        generation: Names the set of seen versions; another one after a reset.
        asked: Versions that the last tick asked for.
        digest: Identity of a listing in which nothing is left to ask for.
    """

    generation: str = ""
    asked: list[str] = field(default_factory=list)
    digest: str = ""

    @classmethod
    def read(cls, text: str | None) -> Cursor:
        """The cursor that was saved, or a new one.

        Raises:
            SpecError: It is not one of ours.
        """
        if not text:
            return cls(generation=secrets.token_hex(4))
        try:
            data = json.loads(text)
            return cls(data["generation"], data["asked"], data["digest"])
        except (ValueError, KeyError, TypeError) as e:
            raise SpecError(
                f"the sensor's cursor can't be read ({e}); reset it; every file is then requested "
                "again"
            ) from e

    def write(self) -> str:
        """The text to save."""
        data = {"generation": self.generation, "asked": self.asked, "digest": self.digest}
        return json.dumps(data, separators=(",", ":"))


class SeenFiles:
    """The versions that were asked for, kept in the Dagster instance.

    They lie there as keys of a dynamic partition set that no asset uses: the one public place
    of an instance that holds a large set, takes additions cheaply, and survives the deletion of
    runs. ``benchmarks/arrivals.py`` measures it.
    """

    def __init__(self, instance: dg.DagsterInstance, sensor: str, generation: str) -> None:
        self._instance = instance
        self._name = f"sheaf_dagster/{sensor}/{generation}"

    def add(self, versions: Sequence[str]) -> None:
        """Adds versions; those that are there already change nothing."""
        for start in range(0, len(versions), _AT_A_TIME):
            some = list(versions[start : start + _AT_A_TIME])
            self._instance.add_dynamic_partitions(self._name, some)

    def all(self) -> set[str]:
        """Every version that was added."""
        return set(self._instance.get_dynamic_partitions(self._name))
