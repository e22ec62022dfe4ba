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


def test_a_check_of_a_range_is_still_known_by_its_partition_and_up_to_date():
    @dg.multi_asset(
        specs=[dg.AssetSpec("own", partitions_def=DAYS)],
        check_specs=[dg.AssetCheckSpec("good", asset="own", partitions_def=DAYS)],
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def own(context):
        for key in context.partition_keys:
            context.log_event(dg.AssetMaterialization("own", partition=key))
            result = dg.AssetCheckResult(check_name="good", passed=key == "a")
            at = (context.instance, dg.AssetKey("own"), key, [result])
            for event in inside.checks_of_partition(*at):
                context.log_event(event)
        yield dg.AssetCheckResult(check_name="good", passed=False)
        yield dg.MaterializeResult(metadata={inside.LOGGED_ITS_OWN_EVENTS: True})

    job = dg.Definitions([own]).resolve_implicit_global_asset_job_def()
    ends = {"dagster/asset_partition_range_start": "a", "dagster/asset_partition_range_end": "b"}
    with dg.DagsterInstance.ephemeral() as instance:
        assert job.execute_in_process(instance=instance, tags=ends).success
        known = instance.event_log_storage.get_asset_check_partition_info(
            [dg.AssetCheckKey(dg.AssetKey("own"), "good")]
        )

    found = {k.partition_key: (k.latest_execution_status.value, k.is_current) for k in known}
    assert found["a"] == ("SUCCEEDED", True)
    assert found["b"] == ("FAILED", True)


@pytest.mark.parametrize("known", inside.__all__)
def test_each_reach_has_a_test_here(known):
    assert f"inside.{known}" in open(__file__).read()
