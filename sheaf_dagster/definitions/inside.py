"""Every reach into Dagster's private parts, so that a new version has one place to break.

``tests/definitions/test_inside.py`` fails where one has; what to do stands at each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager

import dagster as dg

__all__ = ["LOGGED_ITS_OWN_EVENTS", "checks_of_partition", "dynamic_partitions_of"]

LOGGED_ITS_OWN_EVENTS = "__source_asset_observation__"
"""Metadata of an output whose asset has logged its own events.

Dagster logs one materialisation for each partition of a range when the step's output is
yielded, and only then: too late for a range of which some fail, and without a data version of
each. We log them one by one as their files are committed, and yield the output, without which
downstream steps of the same run would be skipped, with this mark.

Elsewhere: each partition is materialised twice. Look into ``execute_step`` for what it skips.
"""


def checks_of_partition(
    instance: dg.DagsterInstance,
    key: dg.AssetKey,
    partition: str,
    results: Iterable[dg.AssetCheckResult],
) -> Iterator[dg.AssetCheckEvaluation]:
    """The events by which results of checks stand at a partition, as of its last materialisation.

    Dagster makes an event of a result by itself, but in a step of a range it leaves the partition
    out. Without the materialisation that was looked at, its pages call the result outdated.

    Elsewhere: look for what ``AssetCheckResult.to_asset_check_evaluation`` does with a range.
    """
    from dagster._core.definitions.asset_checks.asset_check_evaluation import (
        AssetCheckEvaluationTargetMaterializationData as Target,
    )

    of_partition = dg.AssetRecordsFilter(key, asset_partitions=[partition])
    records = instance.fetch_materializations(of_partition, limit=1).records
    last = next(iter(records), None)
    target = last and Target(
        storage_id=last.storage_id, run_id=last.run_id, timestamp=last.timestamp
    )
    for result in results:
        yield dg.AssetCheckEvaluation(
            asset_key=key,
            check_name=str(result.check_name),
            passed=result.passed,
            metadata=result.metadata,
            target_materialization_data=target,
            severity=result.severity,
            description=result.description,
            blocking=True,
            partition=partition,
        )


def dynamic_partitions_of(instance: dg.DagsterInstance) -> AbstractContextManager[object]:
    """Within it, partition mappings find the dynamic partitions that the instance knows.

    Elsewhere: look for how ``PartitionMapping``'s callers hand an instance on.
    """
    from dagster._core.definitions.partitions.context import partition_loading_context

    return partition_loading_context(dynamic_partitions_store=instance)
