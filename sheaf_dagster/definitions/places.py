"""Where the files of an asset's partitions are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import dagster as dg
from pydantic import ValidationError

from sheaf_dagster.batch.model_spec import problems_of
from sheaf_dagster.batch.spec import BatchOptions, BatchSpec, Only
from sheaf_dagster.definitions.paths import (
    SINK_METADATA,
    SOURCE_METADATA,
    SOURCE_PARTITIONS_METADATA,
    check_placeholders,
    check_template,
    partition_fields,
    resolve,
)
from sheaf_dagster.definitions.previous_partitions import previous_partition
from sheaf_dagster.definitions.sources import SourcePartitions
from sheaf_dagster.errors import SpecError

__all__ = ["Places"]


@dataclass(frozen=True)
class Places:
    """The templates of an asset's source and sink, and the partitions that fill them in.

    Attributes:
        source: Template of the file of requests.
        sink: Template of the file of responses.
        partitions_def: Partitions of the asset.
        upstream: Partitions of the source, where they are others.

    Raises:
        SpecError: A template can't work; the message names it.
    """

    source: str
    sink: str
    partitions_def: dg.PartitionsDefinition | None
    upstream: SourcePartitions | None = None

    def __post_init__(self) -> None:
        """Refuses templates that these partitions can't fill in."""
        partitioned, dimensions = self.partitions_def is not None, self._dimensions
        check_template("sink", self.sink, dimensions, partitioned=partitioned)
        names = [] if self.upstream else dimensions
        check_template("source", self.source, names, partitioned=partitioned, shared=True)
        if self.source == self.sink:
            raise SpecError(
                f"source and sink are the same file, {self.source!r}; choose another sink"
            )
        if self.upstream is not None:
            self.upstream.check(self.partitions_def)

    @property
    def _dimensions(self) -> list[str]:
        if isinstance(self.partitions_def, dg.MultiPartitionsDefinition):
            return [d.name for d in self.partitions_def.partitions_defs]
        return []

    def check_reuse(self, options: BatchOptions) -> None:
        """Refuses a ``reuse_from`` that these partitions can't fill in; all may share one output.

        Raises:
            SpecError: It can't be filled in.
        """
        if options.reuse_from is not None:
            partitioned = self.partitions_def is not None
            check_placeholders(
                "reuse_from", options.reuse_from, self._dimensions, partitioned=partitioned
            )

    def _reusing(
        self, partition: str | None, options: BatchOptions, root: str, instance: dg.DagsterInstance
    ) -> BatchOptions:
        """The options with the output of the previous partition, if its answers are to be reused.

        The first partition has none before it: it reuses its own last output.
        """
        if options.reuse_from is None:
            return options
        before = partition
        if partition is not None and self.partitions_def is not None:
            before = previous_partition(partition, self.partitions_def, instance)
            if before is None:
                return options.model_copy(update={"reuse_from": None, "reuse": "previous"})
        fields = partition_fields(before)
        try:
            found = resolve(options.reuse_from, root, fields)
        except (KeyError, IndexError, ValueError) as e:
            known = ", ".join(f"{{{name}}}" for name in ["root", *fields])
            raise SpecError(
                f"reuse_from {options.reuse_from!r} is not a template that can be filled in: known "
                f"here are {known}"
            ) from e
        return options.model_copy(update={"reuse_from": found})

    @property
    def metadata(self) -> dict[str, Any]:
        """What the asset's definition says of them."""
        shown = {SOURCE_METADATA: self.source, SINK_METADATA: self.sink}
        if self.upstream is not None:
            shown[SOURCE_PARTITIONS_METADATA] = str(self.upstream.partitions_def)
        return shown

    def reading(self, source: str) -> Places:
        """The same with another source."""
        return replace(self, source=source)

    def spec_of(
        self,
        partition: str | None,
        options: BatchOptions,
        *,
        root: str,
        storage_options: Mapping[str, Any],
        instance: dg.DagsterInstance,
        only: Only | None = None,
    ) -> BatchSpec:
        """What runs for a partition.

        Raises:
            SpecError: The partition has no file, or none that may be written.
        """
        fields = partition_fields(partition)
        if self.upstream is None:
            source: str | list[str] = resolve(self.source, root, fields)
        else:
            keys = self.upstream.keys_for(partition, self.partitions_def, instance)
            files = [resolve(self.source, root, partition_fields(k)) for k in keys]
            source = files[0] if len(files) == 1 else files
        try:
            return BatchSpec(
                **self._reusing(partition, options, root, instance).model_dump(),
                source=source,
                sink=resolve(self.sink, root, fields),
                storage_options=dict(storage_options),
                only=only,
            )
        except ValidationError as e:
            what = f"partition {partition}" if partition else "asset"
            raise SpecError(f"{what}: {problems_of(e)}") from e
