"""What earlier runs of the same chain have done: the memory behind a retry that skips."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

import dagster as dg

from sheaf_dagster.batch.committed import CommittedSink
from sheaf_dagster.definitions.metadata import (
    FAILED_CHECKS,
    FINGERPRINT,
    MODEL_VERSION,
    OUTPUT_BYTES,
    ROW_COUNTS,
    SOURCE_DIGEST,
)

__all__ = [
    "EarlierMaterialization",
    "Provenance",
    "committed_in_this_chain",
    "latest_materializations",
]

_PAGE = 500


@dataclass(frozen=True)
class EarlierMaterialization:
    """A partition's latest materialisation."""

    materialization: dg.AssetMaterialization
    in_this_run: bool

    @property
    def committed(self) -> CommittedSink | None:
        """The sink that it stands for, where the materialisation says enough of it."""
        md = self.materialization.metadata
        fingerprint, size = md.get(FINGERPRINT), md.get(OUTPUT_BYTES)
        if fingerprint is None or size is None:
            return None
        told = (md.get(name) for name in (SOURCE_DIGEST, MODEL_VERSION))
        source, model = (str(value.value) if value else "" for value in told)
        return CommittedSink(str(fingerprint.value), int(size.value), source, model)  # type: ignore[arg-type]

    @property
    def rows(self) -> int:
        """Its rows."""
        found = (self.materialization.metadata.get(name) for name in ROW_COUNTS)
        return next((int(value.value) for value in found if value), 0)  # type: ignore[arg-type]

    @property
    def failed_checks(self) -> list[str]:
        """Names of the checks that it failed."""
        failed = self.materialization.metadata.get(FAILED_CHECKS)
        return str(failed.value).split(", ") if failed else []


def committed_in_this_chain(
    context: dg.AssetExecutionContext, key: dg.AssetKey, partitions: Sequence[str | None]
) -> dict[str, EarlierMaterialization]:
    """Latest materialisations that this run, or a run that it retries, made.

    Keyed by partition, ``""`` for none; empty for a run that is no retry.
    """
    if _parent(context.run) is None and context.retry_number == 0:
        return {}
    return latest_materializations(context, key, partitions, _chain(context))


def latest_materializations(
    context: dg.AssetExecutionContext,
    key: dg.AssetKey,
    partitions: Sequence[str | None],
    runs: Container[str] | None = None,
) -> dict[str, EarlierMaterialization]:
    """The latest materialisations, keyed by partition, ``""`` for none.

    Args:
        context: The step.
        key: The asset.
        partitions: Its partitions.
        runs: Leave out those that other runs than these made.
    """
    wanted = {p or "" for p in partitions}
    found: dict[str, EarlierMaterialization] = {}
    seen: set[str] = set()
    cursor = None
    while len(seen) < len(wanted):
        page = context.instance.fetch_materializations(
            dg.AssetRecordsFilter(
                asset_key=key,
                asset_partitions=[p for p in partitions if p is not None] or None,
            ),
            limit=_PAGE,
            cursor=cursor,
        )
        for record in page.records:
            partition = record.partition_key or ""
            if partition in seen or partition not in wanted:
                continue
            seen.add(partition)  # newest first: an older one doesn't count
            run_id = record.event_log_entry.run_id
            materialization = record.asset_materialization
            if materialization is not None and (runs is None or run_id in runs):
                found[partition] = EarlierMaterialization(
                    materialization, in_this_run=run_id == context.run_id
                )
        if not page.has_more:
            break
        cursor = page.cursor
    return found


def _chain(context: dg.AssetExecutionContext) -> set[str]:
    """This run and those that it is a retry of."""
    chain = {context.run_id}
    run: dg.DagsterRun | None = context.run
    while run is not None and (parent := _parent(run)) and parent not in chain:
        chain.add(parent)
        run = context.instance.get_run_by_id(parent)
    return chain


def _parent(run: dg.DagsterRun) -> str | None:
    return run.parent_run_id or run.tags.get("dagster/parent_run_id")


class Provenance:
    """Data version tags of materialisations that we log ourselves.

    Dagster adds them to those that it logs; without them it couldn't tell that an upstream
    partition has changed since. They name, for each upstream asset, the version and the event
    of the partition that was read.
    """

    def __init__(
        self,
        context: dg.AssetExecutionContext,
        key: dg.AssetKey,
        partitions: Sequence[str | None],
        model_key: dg.AssetKey | None,
    ) -> None:
        spec = context.assets_def.specs_by_key[key]
        graph = context.job_def.asset_layer.asset_graph
        self._code_version = spec.code_version or context.run_id
        self._model_key = model_key
        self._upstream: dict[dg.AssetKey, dict[str, tuple[str, str]]] = {}
        self._known = all(dep.partition_mapping is None for dep in spec.deps)
        for dep in spec.deps if self._known else ():
            if not graph.get(dep.asset_key).is_partitioned:
                version = _latest_of_all(context.instance, dep.asset_key)
                found = dict.fromkeys((p or "" for p in partitions), version)
            elif None in partitions:
                found = {}  # all of its partitions, and no end of their history, may be the input
            else:
                found = _latest(context.instance, dep.asset_key, partitions)
            self._upstream[dep.asset_key] = found

    def tags(self, partition: str | None, data_version: str, model_version: str) -> dict[str, str]:
        """The tags of one partition's materialisation.

        Args:
            partition: Its key, if any.
            data_version: What it holds.
            model_version: The model that made it.
        """
        tags = {
            "dagster/data_version": data_version,
            "dagster/data_version_is_user_provided": "true",
        }
        if not self._known:
            return tags
        inputs = {dep: found.get(partition or "") for dep, found in self._upstream.items()}
        if any(version is None for version in inputs.values()):
            return tags  # with half a provenance Dagster would take an input for a new one
        tags["dagster/code_version"] = self._code_version
        for dep, version in inputs.items():
            assert version is not None
            name = dep.to_user_string()
            ran = model_version if dep == self._model_key else version[0]
            tags[f"dagster/input_data_version/{name}"] = ran
            tags[f"dagster/input_event_pointer/{name}"] = version[1]
        return tags


def _latest_of_all(instance: dg.DagsterInstance, key: dg.AssetKey) -> tuple[str, str]:
    """(data version, event id) of an unpartitioned asset, in Dagster's words if it has none."""
    only = dg.AssetRecordsFilter(asset_key=key)
    for fetch in (instance.fetch_materializations, instance.fetch_observations):
        for record in fetch(only, limit=1).records:
            made = record.asset_materialization or record.event_log_entry.asset_observation
            version = (made.tags or {}).get("dagster/data_version") if made else None
            return version or "INITIAL", str(record.storage_id)
    return "INITIAL", "NULL"


def _latest(
    instance: dg.DagsterInstance, key: dg.AssetKey, partitions: Sequence[str | None]
) -> dict[str, tuple[str, str]]:
    """(data version, event id) of an asset's latest materialisation, by partition."""
    wanted = {p or "" for p in partitions}
    found: dict[str, tuple[str, str]] = {}
    cursor = None
    while len(found) < len(wanted):
        page = instance.fetch_materializations(
            dg.AssetRecordsFilter(
                asset_key=key,
                asset_partitions=[p for p in partitions if p is not None] or None,
            ),
            limit=_PAGE,
            cursor=cursor,
        )
        for record in page.records:
            made = record.asset_materialization
            partition = record.partition_key or ""
            if made is not None and partition in wanted and partition not in found:
                version = (made.tags or {}).get("dagster/data_version", "INITIAL")
                found[partition] = (version, str(record.storage_id))
        if not page.has_more:
            break
        cursor = page.cursor
    return found
