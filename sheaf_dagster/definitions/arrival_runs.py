"""From arrivals to run requests, one for each file or for neighbours together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dagster as dg

from sheaf_dagster.definitions.arrivals import Arrival

__all__ = ["SENSOR_TAG", "group_neighbours", "keys_under_way", "run_request"]

SENSOR_TAG = "sheaf_dagster/sensor"
_FILE_TAG = "sheaf_dagster/file"
_PARTITION = "dagster/partition"
_START = "dagster/asset_partition_range_start"
_END = "dagster/asset_partition_range_end"

_FINISHED = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)


def group_neighbours(
    arrivals: Sequence[Arrival], order: Mapping[str, int], limit: int
) -> Iterator[list[Arrival]]:
    """Groups arrivals whose partitions follow each other without a gap.

    Args:
        arrivals: One for each partition.
        order: Position of each partition key. Keys that are not in it come last, in the order
            of their arrivals: that is how Dagster keeps dynamic keys as they are added.
        limit: Arrivals in a group.
    """
    places = dict(order)
    for arrival in arrivals:
        places.setdefault(str(arrival.key), len(places))
    group: list[Arrival] = []
    for arrival in sorted(arrivals, key=lambda a: places[str(a.key)]):
        after = group and places[str(arrival.key)] == places[str(group[-1].key)] + 1
        if group and (not after or len(group) == limit):
            yield group
            group = []
        group.append(arrival)
    if group:
        yield group


def run_request(
    sensor: str,
    generation: str,
    group: Sequence[Arrival],
    run_config: Mapping[str, Any],
    tags: Mapping[str, str],
) -> dg.RunRequest:
    """One run; its key names the versions, so that Dagster too asks for them only once."""
    first, last = group[0], group[-1]
    key = f"{sensor}:{generation}:{first.version}"
    tags = {**tags, SENSOR_TAG: sensor}
    if len(group) == 1:
        return dg.RunRequest(
            run_key=key,
            partition_key=first.key,
            run_config=run_config,
            tags={**tags, _FILE_TAG: first.file.name[:200]},
        )
    return dg.RunRequest(
        run_key=f"{key}:{last.version}:{len(group)}",
        run_config=run_config,
        tags={**tags, _START: str(first.key), _END: str(last.key)},
    )


def keys_under_way(
    sensor: str, instance: dg.DagsterInstance, order: Mapping[str, int]
) -> set[str | None]:
    """Partitions that runs of a sensor, queued or started, have not finished with.

    Args:
        sensor: Its name.
        instance: Where runs are recorded.
        order: Position of each key, in which ranges are filled in; may be empty without ranges.
    """
    unfinished = [s for s in dg.DagsterRunStatus if s not in _FINISHED]
    records = instance.get_run_records(
        filters=dg.RunsFilter(tags={SENSOR_TAG: sensor}, statuses=unfinished)
    )
    found: set[str | None] = set()
    for record in records:
        tags = record.dagster_run.tags
        first, last = order.get(tags.get(_START, "")), order.get(tags.get(_END, ""))
        if first is not None and last is not None:
            found.update(key for key, place in order.items() if first <= place <= last)
        else:
            found.add(tags.get(_PARTITION))
    return found
