"""What this library reaches for inside of Dagster is still there, and does what it did."""

from __future__ import annotations

import dagster as dg
import pytest

from sheaf_dagster.definitions import inside

DAYS = dg.StaticPartitionsDefinition(["a", "b"])


def test_an_output_so_marked_is_still_not_materialised_again():
    @dg.multi_asset(specs=[dg.AssetSpec("own")], partitions_def=DAYS)
    def own(context):
        context.log_event(dg.AssetMaterialization("own", partition=context.partition_key))
        yield dg.MaterializeResult(metadata={inside.LOGGED_ITS_OWN_EVENTS: True})

    with dg.DagsterInstance.ephemeral() as instance:
        dg.materialize([own], partition_key="a", instance=instance)
        found = instance.fetch_materializations(dg.AssetKey("own"), limit=10)

    assert len(found.records) == 1


def test_mappings_still_find_dynamic_partitions_within():
    files = dg.DynamicPartitionsDefinition(name="files")
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("files", ["x"])
        with inside.dynamic_partitions_of(instance):
            assert list(files.get_partition_keys()) == ["x"]


@pytest.mark.parametrize("known", inside.__all__)
def test_each_reach_has_a_test_here(known):
    assert f"inside.{known}" in open(__file__).read()
