"""A sensor that starts runs when files land."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dagster as dg
from dagster._core.definitions.partitions.context import partition_loading_context

from sheaf_dagster.definitions.arrivals import NO_PARTITION, Arrival, Arrivals, FileTemplate
from sheaf_dagster.definitions.paths import SOURCE_METADATA, check_template
from sheaf_dagster.errors import SpecError
from sheaf_dagster.storage import Location, list_files

__all__ = ["build_jsonl_arrival_sensor"]

_START = "dagster/asset_partition_range_start"
_END = "dagster/asset_partition_range_end"


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
    """A sensor that watches a location and runs an asset's partition for each file that lands.

    Each version of a file (its path, size and modification time, or ETag) is asked for exactly
    once: also when many files share a second, a run fails, runs are deleted from the instance,
    or the daemon is killed in the middle of a tick. A file that changes is asked for again. What
    becomes of the other files:

    ===============================  =========================================================
    half-uploaded                    waits: unfinished names (``.tmp``, ``.part``, …), files
                                     younger than ``settle_seconds``
    empty                            waits for content (``run_empty`` runs it)
    late                             runs its old partition
    modified                         runs again
    deleted                          nothing; what it made stays. Back with the same
                                     modification time or ETag, it is not run again
    no such partition                waits: tomorrow's file runs once tomorrow is a partition
    new key of dynamic partitions    adds the partition, and runs it
    other name, hidden, unsafe key   passed over, and named in the tick's log
    invalid rows                     one failed run; none again until the file changes
    ===============================  =========================================================

    Resetting the cursor asks for every file again.

    Args:
        asset: The asset to run.
        source: Template of the location, such as ``"{root}/inbox/{partition_key}.jsonl"``; by
            default the asset's own source. Where it is another one, the run reads from it.
        name: Name of the sensor; by default the asset's, with ``_arrivals``.
        also: Assets of the same partitions that run in the same run: those downstream, say.
        files_per_run: Files that one run may cover. More than one makes runs over ranges of
            partitions, wherever new files are neighbours: one model load for all of them.
        max_files_per_tick: New files that one tick asks for; the rest follow in the next ones,
            oldest first.
        settle_seconds: How long a file must not have changed, where a store shows files while
            they are written. Object stores don't: an object is whole once it is there.
        run_empty: Whether a file of no bytes is run, rather than waited for.
        skip_existing: Whether files that are there at the first tick are taken as seen.
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
    own = asset.metadata_by_key[asset.key].get(SOURCE_METADATA)
    template = source or own
    if template is None:
        raise SpecError(
            f"asset {asset.key.to_user_string()} doesn't say where its source is; give the sensor "
            "a source template"
        )
    partitions_def = asset.partitions_def
    is_multi = isinstance(partitions_def, dg.MultiPartitionsDefinition)
    check_template(
        "source",
        template,
        [d.name for d in partitions_def.partitions_defs] if is_multi else [],  # type: ignore[union-attr]
        partitioned=partitions_def is not None,
    )
    if isinstance(partitions_def, dg.DynamicPartitionsDefinition) and not partitions_def.name:
        raise SpecError("dynamic partitions need a name for the sensor to add to")
    if files_per_run > 1 and (is_multi or partitions_def is None):
        raise SpecError("files_per_run > 1 needs partitions of one dimension, which have ranges")
    sensor_name = name or f"{'__'.join(asset.key.path)}_arrivals"
    config = dict(run_config or {})
    if own is not None and own != template:
        config = _reading_from(config, asset, template)
    watcher = _Watcher(
        sensor_name, template, partitions_def, files_per_run, max_files_per_tick, settle_seconds,
        run_empty, skip_existing, config, dict(tags or {}),
    )  # fmt: skip

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


def _reading_from(
    config: dict[str, Any], asset: dg.AssetsDefinition, template: str
) -> dict[str, Any]:
    ops = dict(config.get("ops", {}))
    op = dict(ops.get(asset.op.name, {}))
    op["config"] = {"source": template, **op.get("config", {})}
    return {**config, "ops": {**ops, asset.op.name: op}}


@dataclass
class _Cursor:
    """What a tick leaves for the next one.

    The versions that were asked for are kept in the instance, not here: a hundred thousand of
    them would make every tick carry a megabyte. Only those of the last tick are here, since
    Dagster saves cursor and run requests together: what a saved cursor names was asked for.
    """

    generation: str = ""
    asked: list[str] = field(default_factory=list)
    digest: str = ""

    @classmethod
    def read(cls, text: str | None) -> _Cursor:
        if not text:
            return cls(generation=secrets.token_hex(4))
        try:
            data = json.loads(text)
            return cls(data["generation"], data["asked"], data["digest"])
        except (ValueError, KeyError, TypeError) as e:
            raise SpecError(
                f"the sensor's cursor can't be read ({e}); reset it, after which every file is "
                "asked for again"
            ) from e

    def write(self) -> str:
        return json.dumps(
            {"generation": self.generation, "asked": self.asked, "digest": self.digest}
        )


@dataclass
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
        cursor = _Cursor.read(context.cursor)
        first = not context.cursor
        seen = _SeenFiles(context.instance, f"sheaf_dagster/{self.name}/{cursor.generation}")
        seen.add(cursor.asked)
        cursor.asked = []

        where = FileTemplate.of(self.template, root)
        folder = Location.of(where.folder, options)
        settle = self.settle_seconds if folder.has_folders else 0.0
        found = Arrivals.sort(
            list_files(folder, where.depth), where, self.partitions_def,
            settle_seconds=settle, run_empty=self.run_empty,
        )  # fmt: skip
        if first and self.skip_existing:
            seen.add([a.version for a in found.ready])
        digest = found.digest()
        if digest == cursor.digest:
            return self._result(context, cursor, found, [], 0)
        known = seen.all()
        new = [a for a in found.ready if a.version not in known]
        new = found.keep_known(new, self.partitions_def, context.instance)
        new.sort(key=lambda a: (a.file.modified or 0.0, a.file.name))
        taken, left = new[: self.max_files], max(0, len(new) - self.max_files)
        cursor.asked = [a.version for a in taken]
        # Unchanged files need no second look at what was seen, until something is new.
        settled = not left and not found.waiting.get(NO_PARTITION)
        cursor.digest = digest if settled else ""
        return self._result(context, cursor, found, taken, left)

    def _result(
        self,
        context: dg.SensorEvaluationContext,
        cursor: _Cursor,
        found: Arrivals,
        taken: list[Arrival],
        left: int,
    ) -> dg.SensorResult:
        remarks = found.remarks()
        if remarks:
            context.log.info(remarks)
        text = cursor.write()
        if not taken:
            reason = f"no new files among {len(found.ready)}"
            return dg.SensorResult(
                skip_reason=f"{reason}; {remarks}" if remarks else reason, cursor=text
            )
        requests = []
        additions = []
        keys = [a.key for a in taken if a.key is not None]
        if isinstance(self.partitions_def, dg.DynamicPartitionsDefinition):
            have = set(
                self.partitions_def.get_partition_keys(dynamic_partitions_store=context.instance)
            )
            new_keys = list(dict.fromkeys(k for k in keys if k not in have))
            if new_keys:
                additions.append(self.partitions_def.build_add_request(new_keys))
        for group in self._groups(taken, context.instance):
            requests.append(self._request(group, cursor.generation))
        more = f"; {left} more follow in the next ticks" if left else ""
        context.log.info(f"{len(taken)} new file(s), {len(requests)} run(s){more}")
        return dg.SensorResult(
            run_requests=requests, dynamic_partitions_requests=additions, cursor=text
        )

    def _request(self, group: list[Arrival], generation: str) -> dg.RunRequest:
        """One run; its key names the versions, so that Dagster too asks for them only once."""
        first, last = group[0], group[-1]
        tags = {**self.tags, "sheaf_dagster/sensor": self.name}
        key = f"{self.name}:{generation}:{first.version}"
        if len(group) == 1:
            return dg.RunRequest(
                run_key=key,
                partition_key=first.key,
                run_config=self.run_config,
                tags={**tags, "sheaf_dagster/file": first.file.name[:200]},
            )
        assert first.key is not None
        assert last.key is not None
        return dg.RunRequest(
            run_key=f"{key}:{last.version}:{len(group)}",
            run_config=self.run_config,
            tags={**tags, _START: first.key, _END: last.key},
        )

    def _groups(
        self, taken: list[Arrival], instance: dg.DagsterInstance
    ) -> Iterator[list[Arrival]]:
        if self.files_per_run == 1 or self.partitions_def is None:
            yield from ([a] for a in taken)
            return
        with partition_loading_context(dynamic_partitions_store=instance):
            order = {k: i for i, k in enumerate(self.partitions_def.get_partition_keys())}
        for arrival in taken:  # dynamic ones that this tick adds come last, in this order
            order.setdefault(str(arrival.key), len(order))
        group: list[Arrival] = []
        for arrival in sorted(taken, key=lambda a: order[str(a.key)]):
            neighbour = group and order[str(arrival.key)] == order[str(group[-1].key)] + 1
            if group and (not neighbour or len(group) == self.files_per_run):
                yield group
                group = []
            group.append(arrival)
        if group:
            yield group


class _SeenFiles:
    """The versions that were asked for, kept in the Dagster instance.

    They lie there as keys of a dynamic partition set that no asset uses: the one public place
    of an instance that holds a large set, takes additions cheaply, and survives the deletion of
    runs.
    """

    def __init__(self, instance: dg.DagsterInstance, name: str) -> None:
        self._instance = instance
        self._name = name

    def add(self, versions: Sequence[str]) -> None:
        if versions:
            self._instance.add_dynamic_partitions(self._name, list(versions))

    def all(self) -> set[str]:
        return set(self._instance.get_dynamic_partitions(self._name))
