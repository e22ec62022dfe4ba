"""From files that lie somewhere to partitions that have something new to run."""

from __future__ import annotations

import base64
import hashlib
import re
import string
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import dagster as dg
from dagster._core.definitions.partitions.context import partition_loading_context

from sheaf_dagster.definitions.paths import partition_fields
from sheaf_dagster.errors import SpecError
from sheaf_dagster.storage import FoundFile

__all__ = ["NO_PARTITION", "Arrival", "Arrivals", "FileTemplate"]

_UNFINISHED = (
    ".tmp", ".temp", ".part", ".partial", ".crdownload", ".filepart", ".inprogress", "._copying_",
    ".swp", "~",
)  # fmt: skip
"""Names that uploaders and editors give to files that they have not finished."""

_EXAMPLES = 5

NO_PARTITION = "no such partition (yet)"


@dataclass(frozen=True)
class FileTemplate:
    """A location template, split into the folder to list and a pattern for what is in it."""

    folder: str
    pattern: re.Pattern[str]
    depth: int

    @classmethod
    def of(cls, template: str, root: str) -> FileTemplate:
        """The parts of a checked template, for a storage root."""
        parts = list(string.Formatter().parse(template))
        literal, fields = "", False
        rest: list[str] = []
        seen: set[str] = set()
        for text, name, _, _ in parts:
            if name == "root":
                text, name = text + root, None
            if not fields:
                literal += text
            else:
                rest.append(re.escape(text))
            if name is not None:
                if not fields:
                    fields = True
                    folder, _, start = literal.rpartition("/")
                    rest.append(re.escape(start))
                rest.append(f"(?P={name})" if name in seen else f"(?P<{name}>[^/]+)")
                seen.add(name)
        if not fields:
            folder, _, start = literal.rpartition("/")
            rest.append(re.escape(start))
        pattern = "".join(rest)
        return cls(folder or "/", re.compile(pattern), pattern.count("/") + 1)


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
        ready: Files that have a partition and are whole.
        waiting: Files that may become ready, by why they are not yet.
        ignored: Files that won't, by why.
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
        """Sorts files by what is to be done with them; partition keys are not looked up yet."""
        found = cls()
        now = time.time()
        for file in files:
            match = template.pattern.fullmatch(file.name)
            if file.name.lower().endswith(_UNFINISHED):
                found._add(found.waiting, "unfinished by its name", file)
            elif match is None:
                found._add(found.ignored, "name does not fit the template", file)
            elif file.state.size == 0 and not run_empty:
                found._add(found.waiting, "empty", file)
            elif file.modified is not None and 0 <= now - file.modified < settle_seconds:
                found._add(found.waiting, "modified just now", file)
            else:
                try:
                    key = _key_of(match.groupdict(), partitions_def)
                    partition_fields(key)
                except SpecError:
                    found._add(found.ignored, "unsafe partition key", file)
                else:
                    found.ready.append(Arrival(key, file, _version(file)))
        return found

    def keep_known(
        self,
        arrivals: list[Arrival],
        partitions_def: dg.PartitionsDefinition | None,
        instance: dg.DagsterInstance,
    ) -> list[Arrival]:
        """The arrivals whose partition exists, or can be made; the others wait."""
        if partitions_def is None or isinstance(partitions_def, dg.DynamicPartitionsDefinition):
            return arrivals
        known = []
        with partition_loading_context(dynamic_partitions_store=instance):
            for arrival in arrivals:
                assert arrival.key is not None
                try:
                    exists = partitions_def.has_partition_key(arrival.key)
                except Exception:  # a time window's parser, a dimension that is missing
                    exists = False
                if exists:
                    known.append(arrival)
                else:
                    self._add(self.waiting, NO_PARTITION, arrival.file)
        return known

    def digest(self) -> str:
        """Identity of all files that are ready."""
        total = 0
        for arrival in self.ready:
            total ^= int.from_bytes(
                hashlib.blake2b(arrival.version.encode(), digest_size=8).digest()
            )
        return f"{len(self.ready)}:{total:016x}"

    def remarks(self) -> str:
        """What was passed over and why, in one line; empty where nothing was."""
        parts = []
        for groups in (self.waiting, self.ignored):
            for why, names in groups.items():
                shown = ", ".join(sorted(names)[:_EXAMPLES])
                more = ", …" if len(names) > _EXAMPLES else ""
                parts.append(f"{len(names)} passed over, {why}: {shown}{more}")
        return "; ".join(parts)

    @staticmethod
    def _add(groups: dict[str, list[str]], why: str, file: FoundFile) -> None:
        groups.setdefault(why, []).append(file.name)


def _key_of(
    fields: Mapping[str, str], partitions_def: dg.PartitionsDefinition | None
) -> str | None:
    if partitions_def is None:
        return None
    if isinstance(partitions_def, dg.MultiPartitionsDefinition) and "partition_key" not in fields:
        names = [d.name for d in partitions_def.partitions_defs]
        return dg.MultiPartitionKey({name: fields[name] for name in names})
    if isinstance(partitions_def, dg.MultiPartitionsDefinition):
        try:
            return partitions_def.get_partition_key_from_str(fields["partition_key"])
        except Exception as e:
            raise SpecError(str(e)) from e
    return fields["partition_key"]


def _version(file: FoundFile) -> str:
    text = f"{file.name}\0{file.state.size}\0{file.state.version}"
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")
