"""Declarative automation: what eager() asks of a batch inference asset when its upstream changes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import dagster as dg
import pytest

import sheaf_dagster as sd
from tests.toys import doubler

UPSTREAM, ASSET = dg.AssetKey("requests"), dg.AssetKey("predictions")
STATIONS = dg.StaticPartitionsDefinition(["north", "south"])
DAYS = dg.DailyPartitionsDefinition("2026-01-01")
NOON = datetime(2026, 1, 10, 12, tzinfo=UTC)  # 9 January is the latest day


class Automation:
    """Ticks of the automation sensor over an upstream asset and one that follows it."""

    def __init__(
        self,
        instance: dg.DagsterInstance,
        partitions_def: dg.PartitionsDefinition,
        condition: dg.AutomationCondition,
    ) -> None:
        self.instance = instance
        self.cursor = None
        asset = sd.build_batch_inference_asset(
            dg.AssetSpec(ASSET, automation_condition=condition),
            deps=[UPSTREAM],
            source="{root}/in/{partition_key}.jsonl",
            sink="{root}/out/{partition_key}.jsonl",
            partitions_def=partitions_def,
        )
        upstream = dg.AssetSpec(UPSTREAM, partitions_def=partitions_def)
        self.defs = dg.Definitions(
            assets=[upstream, asset],
            resources={
                "model": sd.ModelResource.from_spec(doubler()),
                "ray_cluster": sd.RayClusterResource(),
                "storage": sd.StorageResource(root="/nowhere"),
            },
        )

    def made(self, key: dg.AssetKey, partition: str) -> None:
        self.instance.report_runless_asset_event(dg.AssetMaterialization(key, partition=partition))

    def tick(self) -> set[str]:
        """Partitions that it asks for."""
        result = dg.evaluate_automation_conditions(
            self.defs, self.instance, cursor=self.cursor, evaluation_time=NOON
        )
        self.cursor = result.cursor
        return result.get_requested_partitions(ASSET)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def test_eager_runs_a_partition_once_for_each_update_of_its_upstream(instance):
    automation = Automation(instance, STATIONS, dg.AutomationCondition.eager())
    assert automation.tick() == set()

    automation.made(UPSTREAM, "north")
    assert automation.tick() == {"north"}
    assert automation.tick() == set(), "it was asked for"
    automation.made(ASSET, "north")
    assert automation.tick() == set()

    automation.made(UPSTREAM, "north")
    automation.made(UPSTREAM, "south")
    assert automation.tick() == {"north", "south"}
    assert automation.tick() == set()


def test_eager_looks_at_the_latest_day_alone_unless_told_otherwise(instance):
    latest = Automation(instance, DAYS, dg.AutomationCondition.eager())
    every = Automation(
        instance,
        DAYS,
        dg.AutomationCondition.eager().without(dg.AutomationCondition.in_latest_time_window()),
    )
    latest.tick()
    every.tick()
    for day in ("2026-01-05", "2026-01-09"):
        latest.made(UPSTREAM, day)

    assert latest.tick() == {"2026-01-09"}
    assert every.tick() == {"2026-01-05", "2026-01-09"}
