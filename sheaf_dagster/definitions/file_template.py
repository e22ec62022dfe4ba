"""What a location template looks for below a folder."""

from __future__ import annotations

import re
import string
from dataclasses import dataclass

import dagster as dg

from sheaf_dagster.storage.source_files import is_lines

__all__ = ["FileTemplate"]

_UNFINISHED = (
    ".tmp", ".temp", ".part", ".partial", ".crdownload", ".filepart", ".inprogress", "._copying_",
    ".swp", "~",
)  # fmt: skip
"""Names that uploaders and editors give to files that they have not finished."""

_DIGITS = {"%Y": 4, "%m": 2, "%d": 2, "%H": 2, "%M": 2, "%S": 2, "%j": 3}
_OFFSET = "(?:[+-][0-9]{4})?"


@dataclass(frozen=True)
class FileTemplate:
    """A location template, split into the folder to list and a pattern for what is in it.

    Attributes:
        folder: The part before the first placeholder, up to its last slash.
        pattern: What a path below the folder looks like, with a group for each placeholder.
        depth: Levels below the folder.
        unfinished: Endings of files that are still being written.
        name: The path below the folder, where it has no placeholder.
        may_be_folder: Whether a folder may be what it names, whose files are one source then.
        only_folders: Whether a file may not.
    """

    folder: str
    pattern: re.Pattern[str]
    depth: int
    unfinished: tuple[str, ...]
    name: str | None
    may_be_folder: bool
    only_folders: bool

    @classmethod
    def of(
        cls, template: str, root: str, partitions_def: dg.PartitionsDefinition | None
    ) -> FileTemplate:
        """The parts of a checked template, for a storage root."""
        only_folders = template.endswith("/")
        template = template.rstrip("/")
        pieces: list[tuple[str, str | None]] = []  # literal text, then a placeholder
        text = ""
        for literal, name, _, _ in string.Formatter().parse(template):
            text += literal
            if name == "root":
                text += root
            elif name is not None:
                pieces.append((text, name))
                text = ""
        pieces.append((text, None))
        folder, _, start = pieces[0][0].rpartition("/")
        pieces[0] = (start, pieces[0][1])
        pattern = ""
        seen: set[str] = set()
        for literal, name in pieces:
            pattern += re.escape(literal)
            if name is not None:
                value = _values(name, partitions_def)
                pattern += f"(?P={name})" if name in seen else f"(?P<{name}>{value})"
                seen.add(name)
        depth = 1 + sum(literal.count("/") for literal, _ in pieces)
        own_end = text.lower()
        unfinished = tuple(e for e in _UNFINISHED if not own_end.endswith(e))
        return cls(
            folder=folder or "/",
            pattern=re.compile(pattern, re.DOTALL),
            depth=depth,
            unfinished=unfinished,
            name=start if len(pieces) == 1 else None,
            may_be_folder=only_folders or not is_lines(text),
            only_folders=only_folders,
        )


def _values(name: str, partitions_def: dg.PartitionsDefinition | None) -> str:
    """Pattern of what stands for a placeholder.

    That of a time window is exact where its format has digits only: a file of another name is
    then known to be misnamed, and ``{station}-{day}`` can be told apart.
    """
    if isinstance(partitions_def, dg.MultiPartitionsDefinition):
        by_name = {d.name: d.partitions_def for d in partitions_def.partitions_defs}
        partitions_def = by_name.get(name)
    if not isinstance(partitions_def, dg.TimeWindowPartitionsDefinition):
        return "[^/]+"
    pattern = ""
    for directive, text in re.findall(r"(%.)|([^%]+)", partitions_def.fmt):
        if directive and directive not in _DIGITS:
            return "[^/]+"
        pattern += rf"[0-9]{{{_DIGITS[directive]}}}" if directive else re.escape(text)
    # Of the hour that comes twice when clocks are set back Dagster tells one by its offset.
    twice = "%H" in partitions_def.fmt and partitions_def.timezone != "UTC"
    return pattern + (_OFFSET if twice else "")
