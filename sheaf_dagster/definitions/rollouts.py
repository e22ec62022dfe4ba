"""What a changed model leaves to do: the partitions that an earlier version has answered, and their rows."""

from __future__ import annotations

from collections.abc import Mapping
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
        counted_all: Every materialisation was looked at. If not, there may be more of both.
    """

    asset: dg.AssetKey
    partitions: int
    rows: int
    counted_all: bool = True


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
        latest, counted_all = _latest_by_partition(instance, key)
        others = [made for made in latest if (made.tags or {}).get(tag, version) != version]
        if others or not counted_all:
            rows = sum(_rows(made.metadata) for made in others)
            found.append(Outdated(key, len(others), rows, counted_all))
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
            f"| {each.asset.to_user_string()} | {each.partitions:,}{more} | {each.rows:,}{more} |"
            for each in outdated
            for more in ("" if each.counted_all else " or more",)
        ]
        head = ["| asset | partitions | rows that a backfill would run |", "|---|--:|--:|"]
        if not all(each.counted_all for each in outdated):
            lines += [
                "",
                f"Of each asset the newest {_LOOKED_AT:,} materialisations were looked at.",
            ]
        md["rollout"] = dg.MetadataValue.md("\n".join([*head, *lines]))
    return md


def _latest_by_partition(
    instance: dg.DagsterInstance, key: dg.AssetKey
) -> tuple[list[dg.AssetMaterialization], bool]:
    """The last materialisation of each partition, and whether all were looked at."""
    latest: dict[str | None, dg.AssetMaterialization] = {}
    cursor, left = None, _LOOKED_AT
    while left > 0:
        page = instance.fetch_materializations(key, limit=min(_PAGE, left), cursor=cursor)
        for record in page.records:  # newest first
            if record.asset_materialization is not None:
                latest.setdefault(record.partition_key, record.asset_materialization)
        if not page.has_more:
            return [*latest.values()], True
        cursor, left = page.cursor, left - len(page.records)
    return [*latest.values()], False


def _rows(metadata: Mapping[str, Any]) -> int:
    found = (getattr(metadata.get(name), "value", None) for name in ROW_COUNTS)
    return next((value for value in found if isinstance(value, int)), 0)
