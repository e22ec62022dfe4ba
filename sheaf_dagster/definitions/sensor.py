"""A sensor that starts runs when files land."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from sheaf_dagster.definitions.arrival_runs import group_neighbours, keys_under_way, run_request
from sheaf_dagster.definitions.arrivals import Arrival, Arrivals
from sheaf_dagster.definitions.file_template import FileTemplate
from sheaf_dagster.definitions.landed import files_for
from sheaf_dagster.definitions.partition_keys import PartitionKeys
from sheaf_dagster.definitions.paths import (
    SOURCE_METADATA,
    SOURCE_PARTITIONS_METADATA,
    check_template,
)
from sheaf_dagster.definitions.seen_files import Cursor, SeenFiles
from sheaf_dagster.errors import SpecError
from sheaf_dagster.storage import Location, store_at

__all__ = ["build_jsonl_arrival_sensor"]

_NO_PARTITION = "no such partition (yet)"
_UNDER_WAY = "a run of its partition has not ended"


def build_jsonl_arrival_sensor(
    asset: dg.AssetsDefinition,
    source: str | None = None,
    *,
    name: str | None = None,
    also: Sequence[dg.AssetsDefinition] = (),
    files_per_run: int = 1,
    max_files_per_tick: int = 500,
    settle_seconds: float = 10.0,
    run_empty: bool = False,
    skip_existing: bool = False,
    storage: str = "storage",
    run_config: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
    minimum_interval_seconds: int = 30,
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.STOPPED,
    description: str | None = None,
) -> dg.SensorDefinition:
    """Builds a sensor that watches a location and runs an asset's partition for each file that lands.

    The sensor asks for each version of a file exactly once. This holds even if many files share a
    second, a run fails, runs are deleted from the instance, or the daemon is killed in the middle of a
    tick. A version is the file's path and size with its ETag, or with its modification time if there
    are no ETags. A file that changes is a new version. What happens to each kind of file:

    ===============================  =========================================================
    half-uploaded                    waits. These are files with unfinished names (``.tmp``,
                                     ``.part``, …) or younger than ``settle_seconds``
    empty                            waits for content (``run_empty`` runs it)
    late                             runs its old partition
    modified                         runs again when its current run has ended
    deleted                          nothing; its output stays. If the same version comes back,
                                     it isn't run again
    no such partition                waits: tomorrow's file runs once tomorrow is a partition
    new key of dynamic partitions    adds the partition and runs it
    other name, hidden, unsafe key   skipped; the tick names those that aren't hidden
    invalid rows                     one failed run, and no other until the file changes
    ===============================  =========================================================

    A folder of files can be one source. A template that ends in a slash
    (``"{root}/inbox/{partition_key}/"``) matches folders only. One that ends like a file of JSON lines
    (``.jsonl``, ``.jsonl.gz`` …) matches files only. Any other, such as one that ends in ``.parquet``,
    matches both. A folder is ready when none of its files has changed for ``settle_seconds`` and none
    has an unfinished name. It runs again when a file in it is changed, added or removed.

    If you reset the cursor, the sensor asks for every file again.

    Args:
        asset: The asset to run.
        source: Template of the location, such as ``"{root}/inbox/{partition_key}.jsonl"``. By
            default the asset's own source. The run reads from this location.
        name: Name of the sensor. By default the asset's name with ``_arrivals``.
        also: Assets with the same partitions to run in the same run, such as downstream assets.
        files_per_run: The most files that one run may cover. With more than one, new files of
            neighbouring partitions share a run and one model load.
        max_files_per_tick: New files that one tick asks for. The others follow in the next ticks,
            oldest first.
        settle_seconds: How long a file must stay unchanged, for stores that show files while they
            are written. Object stores show only whole objects, so their files needn't wait. A
            folder of several files must stay unchanged as long in any store.
        run_empty: Run a file of no bytes instead of waiting for content.
        skip_existing: Treat files that exist at the first tick as already seen.
        storage: Key of the ``StorageResource``.
        run_config: Run config of the runs.
        tags: Tags of the runs.
        minimum_interval_seconds: Time between two ticks.
        default_status: Whether the sensor starts with its code location.
        description: Shown on the sensor's page.

    Raises:
        SpecError: The template can't be filled in, or an argument can't work.
    """
    if files_per_run < 1 or max_files_per_tick < 1:
        raise SpecError("files_per_run and max_files_per_tick must be at least 1")
    own, template = _templates(asset, source)
    partitions_def = asset.partitions_def
    _check_partitions(asset, partitions_def, files_per_run)
    sensor_name = name or f"{asset.key.to_python_identifier()}_arrivals"
    config = dict(run_config or {})
    if own is not None and own != template:
        config = _reading_from(config, asset, template)
    watcher = _Watcher(
        name=sensor_name,
        template=template,
        partitions_def=partitions_def,
        files_per_run=files_per_run,
        max_files=max_files_per_tick,
        settle_seconds=settle_seconds,
        run_empty=run_empty,
        skip_existing=skip_existing,
        run_config=config,
        tags=dict(tags or {}),
    )

    @dg.sensor(
        name=sensor_name,
        target=[asset, *also],
        required_resource_keys={storage},
        minimum_interval_seconds=minimum_interval_seconds,
        default_status=default_status,
        description=description or f"Runs {asset.key.to_user_string()} for files at {template}",
    )
    def arrivals(context: dg.SensorEvaluationContext, **_: Any) -> dg.SensorResult:
        # The daemon gives the resources in the context alone, a direct call by name as well.
        where = getattr(context.resources, storage)
        return watcher.tick(context, where.base, where.options)

    return arrivals


def _templates(asset: dg.AssetsDefinition, source: str | None) -> tuple[str | None, str]:
    """The asset's own source, where it says, and the one to watch."""
    metadata = asset.metadata_by_key[asset.key]
    asset_name = asset.key.to_user_string()
    if metadata.get(SOURCE_PARTITIONS_METADATA):
        raise SpecError(
            f"asset {asset_name} reads several files for a partition (source_partitions): one "
            "file that lands doesn't complete a partition; use AutomationCondition.eager() or a "
            "schedule"
        )
    own = metadata.get(SOURCE_METADATA)
    template = source or own
    if template is None:
        raise SpecError(
            f"asset {asset_name} doesn't say where its source is; give the sensor a source template"
        )
    partitions_def = asset.partitions_def
    dimensions = (
        [d.name for d in partitions_def.partitions_defs]
        if isinstance(partitions_def, dg.MultiPartitionsDefinition)
        else []
    )
    check_template("source", template, dimensions, partitioned=partitions_def is not None)
    return own, template


def _check_partitions(
    asset: dg.AssetsDefinition, partitions_def: dg.PartitionsDefinition | None, files_per_run: int
) -> None:
    is_multi = isinstance(partitions_def, dg.MultiPartitionsDefinition)
    if isinstance(partitions_def, dg.DynamicPartitionsDefinition) and not partitions_def.name:
        raise SpecError("dynamic partitions need a name for the sensor to add to")
    if files_per_run == 1:
        return
    if is_multi or partitions_def is None:
        raise SpecError("files_per_run > 1 needs partitions of one dimension, which have ranges")
    policy = asset.backfill_policy
    at_most = policy.max_partitions_per_run if policy else 1
    if at_most is not None and at_most < files_per_run:
        raise SpecError(
            f"files_per_run={files_per_run}, but asset {asset.key.to_user_string()} runs at most "
            f"{at_most} partitions at a time (backfill_policy); change one of them"
        )


def _reading_from(
    config: dict[str, Any], asset: dg.AssetsDefinition, template: str
) -> dict[str, Any]:
    ops = dict(config.get("ops", {}))
    op = dict(ops.get(asset.op.name, {}))
    op["config"] = {"source": template, **op.get("config", {})}
    return {**config, "ops": {**ops, asset.op.name: op}}


@dataclass(frozen=True)
class _Watcher:
    name: str
    template: str
    partitions_def: dg.PartitionsDefinition | None
    files_per_run: int
    max_files: int
    settle_seconds: float
    run_empty: bool
    skip_existing: bool
    run_config: dict[str, Any]
    tags: dict[str, str]

    def tick(
        self, context: dg.SensorEvaluationContext, root: str, options: dict[str, Any]
    ) -> dg.SensorResult:
        cursor = Cursor.read(context.cursor)
        seen = SeenFiles(context.instance, self.name, cursor.generation)
        seen.add(cursor.asked)
        cursor.asked = []

        where = FileTemplate.of(self.template, root, self.partitions_def)
        folder = Location.of(where.folder, options)
        found = Arrivals.sort(
            files_for(where, folder),
            where,
            self.partitions_def,
            settle_files=self.settle_seconds if store_at(folder).shows_unfinished else 0.0,
            settle_folders=self.settle_seconds,
            run_empty=self.run_empty,
        )
        if self.skip_existing and not context.cursor:
            seen.add([a.version for a in found.ready])
        # A listing in which nothing was left to ask for needs no second look at what was seen.
        digest = found.digest()
        if digest == cursor.digest:
            return _nothing_new(cursor, found, folder)

        keys = PartitionKeys(self.partitions_def, context.instance)
        new = self._new(found, seen, keys, context.instance)
        taken, left = new[: self.max_files], max(0, len(new) - self.max_files)
        cursor.asked = [a.version for a in taken]
        held_back = {_NO_PARTITION, _UNDER_WAY} & found.waiting.keys()
        cursor.digest = "" if left or held_back else digest
        if not taken:
            return _nothing_new(cursor, found, folder)
        requests = self._requests(taken, keys, cursor.generation)
        told = [f"{len(taken)} new file(s), {len(requests)} run(s)"]
        if left:
            told.append(f"{left} more follow in the next ticks")
        context.log.info("; ".join(filter(None, [*told, found.remarks()])))
        return dg.SensorResult(
            run_requests=requests,
            dynamic_partitions_requests=keys.additions(a.key for a in taken),
            cursor=cursor.write(),
        )

    def _new(
        self,
        found: Arrivals,
        seen: SeenFiles,
        keys: PartitionKeys,
        instance: dg.DagsterInstance,
    ) -> list[Arrival]:
        """What can be asked for now, oldest first."""
        known = seen.all()
        new = [a for a in found.ready if a.version not in known]
        if not new:
            return []
        new = found.hold_back(new, _NO_PARTITION, lambda a: keys.can_run(a.key))
        # Two runs of a partition at a time would write one sink; the second would be refused.
        order = keys.order() if self.files_per_run > 1 else {}
        busy = keys_under_way(self.name, instance, order)
        new = found.hold_back(new, _UNDER_WAY, lambda a: a.key not in busy)
        return sorted(new, key=lambda a: (a.file.modified or 0.0, a.file.name))

    def _requests(
        self, taken: list[Arrival], keys: PartitionKeys, generation: str
    ) -> list[dg.RunRequest]:
        groups = (
            group_neighbours(taken, keys.order(), self.files_per_run)
            if self.files_per_run > 1
            else ([a] for a in taken)
        )
        return [
            run_request(self.name, generation, group, self.run_config, self.tags)
            for group in groups
        ]


def _nothing_new(cursor: Cursor, found: Arrivals, folder: Location) -> dg.SensorResult:
    reason = f"no new files among {len(found.ready)} in {folder.uri}"
    remarks = found.remarks()
    return dg.SensorResult(
        skip_reason=f"{reason}; {remarks}" if remarks else reason, cursor=cursor.write()
    )
