"""From files that lie somewhere to partitions that have something new to run."""

from __future__ import annotations

import base64
import hashlib
import re
import string
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import dagster as dg

from sheaf_dagster.definitions.paths import partition_fields
from sheaf_dagster.errors import SpecError
from sheaf_dagster.storage import FoundFile

__all__ = ["Arrival", "Arrivals", "FileTemplate"]

_UNFINISHED = (
    ".tmp", ".temp", ".part", ".partial", ".crdownload", ".filepart", ".inprogress", "._copying_",
    ".swp", "~",
)  # fmt: skip
"""Names that uploaders and editors give to files that they have not finished."""

_EXAMPLES = 5

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
    """

    folder: str
    pattern: re.Pattern[str]
    depth: int
    unfinished: tuple[str, ...]

    @classmethod
    def of(
        cls, template: str, root: str, partitions_def: dg.PartitionsDefinition | None
    ) -> FileTemplate:
        """The parts of a checked template, for a storage root."""
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
        return cls(folder or "/", re.compile(pattern, re.DOTALL), depth, unfinished)


@dataclass(frozen=True)
class Arrival:
    """A version of a file that is there and whole, and the partition that it is for."""

    key: str | None
    file: FoundFile
    version: str
    """Identity of the file with its content: 11 characters."""


@dataclass
class Arrivals:
    """What a look at the folder found.

    Attributes:
        ready: Files that are whole and named for a partition.
        waiting: Names of files that may become ready, by why they are not yet.
        ignored: Names of files that won't, by why.
    """

    ready: list[Arrival] = field(default_factory=list)
    waiting: dict[str, list[str]] = field(default_factory=dict)
    ignored: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def sort(
        cls,
        files: Iterable[FoundFile],
        template: FileTemplate,
        partitions_def: dg.PartitionsDefinition | None,
        *,
        settle_seconds: float,
        run_empty: bool,
    ) -> Arrivals:
        """Sorts files by what is to be done with them; that a partition exists is not asked yet.

        Args:
            files: What lies below the template's folder.
            template: What names are looked for.
            partitions_def: The asset's.
            settle_seconds: How long ago a file must have been modified.
            run_empty: Whether a file of no bytes is ready.
        """
        found = cls()
        now = time.time()
        for file in files:
            name = file.name
            match = template.pattern.fullmatch(name)
            if partitions_def is None and match is None:
                continue  # one file is looked for, and its neighbours are nobody's business here
            if name.lower().endswith(template.unfinished):
                found._add(found.waiting, "unfinished by its name", name)
            elif match is None:
                found._add(found.ignored, "name does not fit the template", name)
            elif file.state.size == 0 and not run_empty:
                found._add(found.waiting, "empty", name)
            # Either way: a file server's clock may be a little ahead of ours.
            elif file.modified is not None and abs(now - file.modified) < settle_seconds:
                found._add(found.waiting, "modified just now", name)
            else:
                try:
                    key = _key_of(match.groupdict(), partitions_def)
                    found.ready.append(Arrival(key, file, _version(file)))
                except SpecError:
                    found._add(found.ignored, "unsafe partition key", name)
                except UnicodeEncodeError:
                    found._add(found.ignored, "name is not UTF-8", name)
        return found

    def hold_back(
        self, arrivals: list[Arrival], why: str, stays: Callable[[Arrival], bool]
    ) -> list[Arrival]:
        """The arrivals that stay; the others wait, and ``why`` is remarked."""
        kept = []
        for arrival in arrivals:
            if stays(arrival):
                kept.append(arrival)
            else:
                self._add(self.waiting, why, arrival.file.name)
        return kept

    def digest(self) -> str:
        """Identity of all files that are ready, in any order."""
        versions = "".join(sorted(a.version for a in self.ready))
        return hashlib.blake2b(versions.encode(), digest_size=12).hexdigest()

    def remarks(self) -> str:
        """What was passed over and why, in one line; empty where nothing was."""
        parts = []
        for groups in (self.waiting, self.ignored):
            for why, names in groups.items():
                shown = ", ".join(sorted(names)[:_EXAMPLES])
                more = ", …" if len(names) > _EXAMPLES else ""
                parts.append(f"{len(names)} passed over, {why}: {shown}{more}")
        return "; ".join(parts).encode("utf-8", "backslashreplace").decode()

    @staticmethod
    def _add(groups: dict[str, list[str]], why: str, name: str) -> None:
        groups.setdefault(why, []).append(name)


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


def _key_of(
    fields: Mapping[str, str], partitions_def: dg.PartitionsDefinition | None
) -> str | None:
    if partitions_def is None:
        return None
    if isinstance(partitions_def, dg.MultiPartitionsDefinition):
        names = [d.name for d in partitions_def.partitions_defs]
        values = [fields.get(name) for name in names]
        if "partition_key" in fields:
            values = list(fields["partition_key"].split("|"))
        if len(values) != len(names):
            raise SpecError(f"{fields['partition_key']!r} doesn't have {len(names)} dimensions")
        by_name = {name: str(value) for name, value in zip(names, values, strict=True)}
        key: str = dg.MultiPartitionKey(by_name)
    else:
        key = fields["partition_key"]
        by_name = {"partition_key": key}
    partition_fields(key)
    for value in by_name.values():
        if "..." in value or ("|" in value and len(by_name) > 1):
            raise SpecError(f"{value!r} can't be a partition key in Dagster")
    return key


def _version(file: FoundFile) -> str:
    text = f"{file.name}\0{file.state.size}\0{file.state.version}"
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")
