"""Every reach into Dagster's private parts, so that a new version has one place to break.

``tests/definitions/test_inside.py`` fails where one has; what to do stands at each.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import dagster as dg

__all__ = ["LOGGED_ITS_OWN_EVENTS", "dynamic_partitions_of"]

LOGGED_ITS_OWN_EVENTS = "__source_asset_observation__"
"""Metadata of an output whose asset has logged its own events.

Dagster logs one materialisation for each partition of a range when the step's output is
yielded, and only then: too late for a range of which some fail, and without a data version of
each. We log them one by one as their files are committed, and yield the output, without which
downstream steps of the same run would be skipped, with this mark.

Elsewhere: each partition is materialised twice. Look into ``execute_step`` for what it skips.
"""


def dynamic_partitions_of(instance: dg.DagsterInstance) -> AbstractContextManager[object]:
    """Within it, partition mappings find the dynamic partitions that the instance knows.

    Elsewhere: look for how ``PartitionMapping``'s callers hand an instance on.
    """
    from dagster._core.definitions.partitions.context import partition_loading_context

    return partition_loading_context(dynamic_partitions_store=instance)
