"""From files that lie somewhere to partitions that have something new to run."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import dagster as dg

from sheaf_dagster.definitions.file_template import FileTemplate
from sheaf_dagster.definitions.landed import landed
from sheaf_dagster.definitions.paths import partition_fields
from sheaf_dagster.errors import SpecError
from sheaf_dagster.storage import FoundFile

__all__ = ["Arrival", "Arrivals"]

_EXAMPLES = 5


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
        settle_files: float,
        settle_folders: float,
        run_empty: bool,
    ) -> Arrivals:
        """Sorts files by what is to be done with them; that a partition exists is not asked yet.

        Args:
            files: What lies below the template's folder.
            template: What names are looked for.
            partitions_def: The asset's.
            settle_files: How many seconds ago a file must have been modified.
            settle_folders: The same of the last file of a folder that is one source.
            run_empty: Whether a file of no bytes is ready.
        """
        found = cls()
        now = time.time()
        for source in landed(files, template):
            file, name = source.file, source.file.name
            settle_seconds = settle_folders if source.is_folder else settle_files
            match = template.pattern.fullmatch(name)
            if partitions_def is None and match is None:
                continue  # one file is looked for, and its neighbours are nobody's business here
            if source.unfinished or name.lower().endswith(template.unfinished):
                found._add(found.waiting, "unfinished by its name", name)
            elif match is None or (template.only_folders and not source.is_folder):
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
