"""What a changed model leaves to do: the partitions that an earlier version has answered, and their rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import dagster as dg

from sheaf_dagster.definitions.metadata import ROW_COUNTS

__all__ = ["Outdated", "outdated_by", "rollout_metadata"]

_PAGE = 500
_LOOKED_AT = 20_000
"""Materialisations of an asset, so that a long history doesn't hold up an observation."""


@dataclass(frozen=True)
class Outdated:
    """What another version of a model has made of an asset.

    Attributes:
        asset: The asset.
        partitions: How many of its partitions; 1 of an asset without partitions.
        rows: Their rows. A backfill of these partitions runs all of them: answers of another model
            are never reused.
    """

    asset: dg.AssetKey
    partitions: int
    rows: int


def outdated_by(instance: dg.DagsterInstance, model: dg.AssetKey, version: str) -> list[Outdated]:
    """The assets of which something was made with another version of a model.

    An asset depends on the model if its last materialisation says so.

    Args:
        instance: Where materialisations are.
        model: The asset that stands for the model.
        version: Its data version now.
    """
    tag = f"dagster/input_data_version/{model.to_user_string()}"
    found = []
    for record in instance.get_asset_records():
        last = record.asset_entry.last_materialization
        if last is None or tag not in (last.tags or {}):
            continue
        key = record.asset_entry.asset_key
        others = [
            made
            for made in _latest_by_partition(instance, key)
            if (made.tags or {}).get(tag, version) != version
        ]
        if others:
            found.append(Outdated(key, len(others), sum(_rows(m.metadata) for m in others)))
    return sorted(found, key=lambda each: -each.rows)


def rollout_metadata(outdated: list[Outdated]) -> dict[str, Any]:
    """Metadata of a model's observation that says what a backfill would run.

    Args:
        outdated: What was made with another version.
    """
    md: dict[str, Any] = {
        "outdated_partitions": sum(each.partitions for each in outdated),
        "outdated_rows": sum(each.rows for each in outdated),
    }
    if outdated:
        lines = [
            f"| {each.asset.to_user_string()} | {each.partitions:,} | {each.rows:,} |"
            for each in outdated
        ]
        head = ["| asset | partitions | rows that a backfill would run |", "|---|--:|--:|"]
        md["rollout"] = dg.MetadataValue.md("\n".join([*head, *lines]))
    return md


def _latest_by_partition(
    instance: dg.DagsterInstance, key: dg.AssetKey
) -> Iterator[dg.AssetMaterialization]:
    seen: set[str | None] = set()
    cursor, left = None, _LOOKED_AT
    while left > 0:
        page = instance.fetch_materializations(key, limit=min(_PAGE, left), cursor=cursor)
        for record in page.records:
            if record.partition_key in seen or record.asset_materialization is None:
                continue
            seen.add(record.partition_key)  # newest first
            yield record.asset_materialization
        if not page.has_more:
            return
        cursor, left = page.cursor, left - len(page.records)


def _rows(metadata: Mapping[str, Any]) -> int:
    found = (getattr(metadata.get(name), "value", None) for name in ROW_COUNTS)
    return next((value for value in found if isinstance(value, int)), 0)
