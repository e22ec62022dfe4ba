"""Sources whose partitions differ from the sink's."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import dagster as dg

from sheaf_dagster.definitions.inside import dynamic_partitions_of
from sheaf_dagster.errors import SpecError

__all__ = ["SourcePartitions"]


@dataclass(frozen=True)
class SourcePartitions:
    """Which upstream partitions make up one partition's source.

    Example: hourly files as the source of a daily asset::

        SourcePartitions(dg.HourlyPartitionsDefinition("2026-01-01-00:00"))

    Attributes:
        partitions_def: Partitions of the upstream files.
        mapping: Dagster's mapping from the upstream partitions to the asset's. By default a file
            belongs to the window in which its own window begins, so that no row is answered twice.
            For example, the file of a Friday whose window ends on Monday belongs to the week of
            that Friday. ``dg.TimeWindowPartitionMapping()`` takes every file whose window overlaps.
    """

    partitions_def: dg.PartitionsDefinition
    mapping: dg.PartitionMapping | None = None

    def check(self, partitions_def: dg.PartitionsDefinition | None) -> None:
        """Refuses partitions of an asset that the default mapping can't serve.

        Raises:
            SpecError: They, or those of the source, are not time windows.
        """
        windows = dg.TimeWindowPartitionsDefinition
        if self.mapping is None and not (
            isinstance(partitions_def, windows) and isinstance(self.partitions_def, windows)
        ):
            raise SpecError(
                "source_partitions: the source files of a partition are known without a mapping "
                "only if both have time windows; give SourcePartitions a mapping, such as "
                "dg.AllPartitionMapping()"
            )

    def keys_for(
        self,
        partition: str | None,
        partitions_def: dg.PartitionsDefinition | None,
        instance: dg.DagsterInstance,
    ) -> list[str]:
        """Upstream keys of one partition, in their definition's order.

        Raises:
            SpecError: There are none.
        """
        # Not "or": a mapping without arguments is an empty tuple.
        mapping = dg.TimeWindowPartitionMapping() if self.mapping is None else self.mapping
        with dynamic_partitions_of(instance):
            subset = (
                None
                if partitions_def is None or partition is None
                else partitions_def.subset_with_partition_keys([partition])
            )
            found = mapping.get_upstream_mapped_partitions_result_for_partitions(
                subset, partitions_def, self.partitions_def
            )
            keys = list(found.partitions_subset.get_partition_keys())
            windows = self.partitions_def
            # Time windows are in order, and ten years of hours take a second to be listed.
            if not isinstance(windows, dg.TimeWindowPartitionsDefinition):
                wanted = set(keys)
                keys = [k for k in windows.get_partition_keys() if k in wanted]
            elif self.mapping is None and isinstance(
                partitions_def, dg.TimeWindowPartitionsDefinition
            ):
                begin = partitions_def.time_window_for_partition_key(str(partition)).start
                began_before = itertools.takewhile(
                    lambda key: windows.time_window_for_partition_key(key).start < begin, keys
                )
                keys = keys[len(list(began_before)) :]
        if not keys:
            raise SpecError(
                f"partition {partition!r} has no upstream partitions: "
                + (
                    "no window of source_partitions begins in it, and a file belongs to the window "
                    "in which its own begins; leave the partition out, or give SourcePartitions "
                    "the mapping dg.TimeWindowPartitionMapping(), which reads a file in every "
                    "window that it overlaps"
                    if self.mapping is None
                    else "check the mapping of source_partitions"
                )
            )
        return keys
