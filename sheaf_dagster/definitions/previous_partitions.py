"""The partition before a partition, whose answers may be reused (``reuse_from``)."""

from __future__ import annotations

import dagster as dg

from sheaf_dagster.definitions.inside import dynamic_partitions_of

__all__ = ["previous_partition"]


def previous_partition(
    partition: str, partitions_def: dg.PartitionsDefinition, instance: dg.DagsterInstance
) -> str | None:
    """The key of the partition that comes before one; None for the first.

    Of two dimensions it is that with the time before, and with the same key of the other dimension.
    """
    if isinstance(partitions_def, dg.TimeWindowPartitionsDefinition):
        start = partitions_def.time_window_for_partition_key(partition).start
        window = partitions_def.get_prev_partition_window(start)
        if window is None:
            return None
        return partitions_def.get_partition_key_for_timestamp(window.start.timestamp())
    if isinstance(partitions_def, dg.MultiPartitionsDefinition):
        return _of_dimensions(partition, partitions_def, instance)
    with dynamic_partitions_of(instance):
        keys = partitions_def.get_partition_keys()
    at = keys.index(partition) if partition in keys else 0
    return keys[at - 1] if at else None


def _of_dimensions(
    partition: str, partitions_def: dg.MultiPartitionsDefinition, instance: dg.DagsterInstance
) -> str | None:
    keys = dict(partitions_def.get_partition_key_from_str(str(partition)).keys_by_dimension)
    dimensions = partitions_def.partitions_defs
    times = [
        d for d in dimensions if isinstance(d.partitions_def, dg.TimeWindowPartitionsDefinition)
    ]
    if len(times) != 1:
        return None
    (time,) = times
    before = previous_partition(keys[time.name], time.partitions_def, instance)
    return None if before is None else dg.MultiPartitionKey({**keys, time.name: before})
