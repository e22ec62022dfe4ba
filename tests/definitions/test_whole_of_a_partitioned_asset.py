"""An asset without partitions after one that has some."""

from __future__ import annotations

import dagster as dg

import sheaf_dagster as sd
from sheaf_dagster.definitions import history
from tests.definitions.project import DAYS
from tests.toys import doubler


def test_the_history_of_the_partitioned_one_is_not_read_through(tmp_path, write_rows, monkeypatch):
    write_rows([1, 2])
    days = dg.AssetSpec("days", partitions_def=DAYS)
    asset = sd.build_batch_inference_asset(
        "predictions",
        source="{root}/in.jsonl",
        sink="{root}/out.jsonl",
        deps=[days],
        compute="local",
    )
    monkeypatch.setattr(history, "_PAGE", 2)
    with dg.instance_for_test() as instance:
        for key in DAYS.get_partition_keys():
            instance.report_runless_asset_event(dg.AssetMaterialization("days", partition=key))
        fetch, fetched = instance.fetch_materializations, []

        def noting(filters, limit, cursor=None, **options):
            fetched.append(filters)
            return fetch(filters, limit=limit, cursor=cursor, **options)

        monkeypatch.setattr(instance, "fetch_materializations", noting)
        result = dg.materialize(
            [days, asset],
            instance=instance,
            selection=[asset],
            resources={
                "model": sd.ModelResource.from_spec(doubler()),
                "ray_cluster": sd.RayClusterResource(),
                "storage": sd.StorageResource(root=str(tmp_path)),
            },
        )

    (materialization,) = result.asset_materializations_for_node("predictions")
    assert materialization.tags["dagster/data_version"]
    assert "dagster/code_version" not in materialization.tags
    assert len(fetched) <= 1
