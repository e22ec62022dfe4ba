"""Notes of a backend, kept where the parts of their file are."""

from __future__ import annotations

from dataclasses import dataclass

from sheaf_dagster.storage import Location, store_at

__all__ = ["PartNotes"]

_START, _END = "note-", ".json"


@dataclass(frozen=True)
class PartNotes:
    """The notes beside some parts; see ``backends.common.notes``.

    Attributes:
        folder: Where the parts are.
    """

    folder: Location

    @property
    def name(self) -> str:
        """The folder's."""
        return self.folder.uri

    def read(self) -> dict[str, bytes]:
        """All notes by their names."""
        files = store_at(self.folder).list_files(depth=1)
        names = [f.name for f in files if f.name.startswith(_START) and f.name.endswith(_END)]
        return {
            name.removeprefix(_START).removesuffix(_END): store_at(self.folder.child(name)).read()
            for name in names
        }

    def write(self, name: str, data: bytes) -> None:
        """Writes a note, which outlasts a power loss: what it tells of may have been paid for."""
        store_at(self.folder.child(f"{_START}{name}{_END}")).write(data, lasting="name")
