"""Which file each partition of a step is, made before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sheaf_dagster.batch.committed import CommittedSink
from sheaf_dagster.batch.spec import BatchSpec
from sheaf_dagster.definitions.history import EarlierMaterialization
from sheaf_dagster.errors import SheafError, SpecError

__all__ = ["PlannedFile", "SpecOf", "StepPlan"]

SpecOf = Callable[[str | None], BatchSpec]
"""The file of a partition."""


@dataclass(frozen=True)
class PlannedFile:
    """A file to run.

    Attributes:
        partition: What it is the file of; None of an asset without partitions.
        spec: The file.
        earlier: What an earlier run has made of it, where that may stand or be kept.
    """

    partition: str | None
    spec: BatchSpec
    earlier: EarlierMaterialization | None = None


@dataclass(frozen=True)
class StepPlan:
    """The files of a step.

    Attributes:
        files: By sink, in the order of the partitions.
        errors: By partition why it can't be a file.
    """

    files: Mapping[str, PlannedFile]
    errors: Mapping[str | None, SheafError]

    @classmethod
    def of(
        cls,
        keys: Sequence[str | None],
        spec_of: SpecOf,
        earlier: Mapping[str, EarlierMaterialization],
    ) -> StepPlan:
        """The plan for some partitions.

        Args:
            keys: The partitions; None of an asset without.
            spec_of: Their files.
            earlier: By partition what earlier runs made that may stand or be kept.
        """
        files: dict[str, PlannedFile] = {}
        errors: dict[str | None, SheafError] = {}
        for key in keys:
            try:
                spec = spec_of(key)
            except SheafError as e:
                errors[key] = e
                continue
            if spec.sink in files:  # such as {a}-{b} for x-y, z and x, y-z
                errors[key] = SpecError(
                    f"partitions {files[spec.sink].partition} and {key} have the same sink, "
                    f"{spec.sink}; put something between the placeholders of sink that does not "
                    "occur in partition keys, such as a slash"
                )
                continue
            files[spec.sink] = PlannedFile(key, spec, earlier.get(key or ""))
        return cls(files, errors)

    @property
    def keys(self) -> list[str | None]:
        """All partitions."""
        return [*(file.partition for file in self.files.values()), *self.errors]

    @property
    def specs(self) -> list[BatchSpec]:
        """The files to run."""
        return [file.spec for file in self.files.values()]

    @property
    def committed(self) -> dict[str, CommittedSink]:
        """By sink what an earlier run committed, where that may stand or be kept."""
        found = {sink: f.earlier and f.earlier.committed for sink, f in self.files.items()}
        return {sink: committed for sink, committed in found.items() if committed}
