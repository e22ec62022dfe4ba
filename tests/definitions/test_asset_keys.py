"""Asset keys may hold what Dagster's own assets let them hold."""

from __future__ import annotations

import dagster as dg
import pytest

import sheaf_dagster as sd
from tests.conftest import read_rows
from tests.toys import doubler


@pytest.mark.parametrize("path", [["daily-forecasts"], ["sales.v2", "daily-forecasts"]])
def test_a_key_may_hold_dashes_and_dots(path, tmp_path, write_rows):
    write_rows([1, 2])
    model = sd.build_model_asset([*path[:-1], "the-model"])
    asset = sd.build_batch_inference_asset(
        path,
        source="{root}/in.jsonl",
        sink="{root}/out.jsonl",
        compute="local",
        model_asset=model,
    )
    defs = dg.Definitions(
        assets=[asset, model],
        sensors=[sd.build_jsonl_arrival_sensor(asset)],
        resources={
            "model": sd.ModelResource.from_spec(doubler()),
            "ray_cluster": sd.RayClusterResource(),
            "storage": sd.StorageResource(root=str(tmp_path)),
        },
    )

    result = defs.resolve_implicit_global_asset_job_def().execute_in_process()

    assert result.success
    assert [r["value"] for r in read_rows(tmp_path / "out.jsonl")] == [2, 4]


def test_a_components_key_may_hold_dashes(tmp_path, write_rows):
    write_rows([1])
    component = sd.BatchInferenceComponent(
        asset=dg.AssetSpec("daily-forecasts"),
        source="{root}/in.jsonl",
        sink="{root}/out.jsonl",
        compute="local",
        model_resource=sd.ModelResource.from_spec(doubler()),
        ray_cluster=sd.RayClusterResource(),
        storage=sd.StorageResource(root=str(tmp_path)),
    )
    defs = component.build_defs(dg.ComponentTree.for_test().load_context)

    result = defs.resolve_implicit_global_asset_job_def().execute_in_process()

    assert result.success
