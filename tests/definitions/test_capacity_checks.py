"""What is known of capacity before anything runs."""

from __future__ import annotations

import dagster as dg
import pytest

import sheaf_dagster as sd
from tests.definitions.project import inference_asset
from tests.toys import doubler


def asset(**fields) -> dg.AssetsDefinition:
    return inference_asset(
        **{
            "key": "predictions",
            "source": "{root}/in.jsonl",
            "sink": "{root}/out.jsonl",
            "compute": "actors",
            "num_actors": 3,
            **fields,
        }
    )


def definitions(built: dg.AssetsDefinition, **resources) -> dg.Definitions:
    return dg.Definitions(
        assets=[built],
        resources={
            "model": sd.ModelResource.from_spec(doubler(num_gpus=1)),
            "ray_cluster": sd.RayClusterResource(gpu_limit=2),
            "storage": sd.StorageResource(root="/data"),
            **resources,
        },
    )


def test_an_asset_beyond_the_limit_fails_at_definition_with_the_sum():
    with pytest.raises(
        sd.ClusterCapacityError,
        match=r"asset predictions: 3 actors × 1 GPU = 3 GPUs, but the limit \(gpu_limit\) is 2",
    ):
        sd.check_definitions(definitions(asset()))


def test_the_resources_that_the_asset_names_count():
    other = {
        "embedder": sd.ModelResource.from_spec(doubler(num_gpus=0.5, num_cpus=2)),
        "large": sd.RayClusterResource(gpu_limit=2, cpu_limit=4),
    }
    with pytest.raises(sd.ClusterCapacityError, match=r"3 actors × 2 CPU = 6 CPUs"):
        sd.check_definitions(definitions(asset(model="embedder", ray_cluster="large"), **other))


@pytest.mark.parametrize(
    ("fields", "cluster"),
    [
        ({"num_actors": 2}, sd.RayClusterResource(gpu_limit=2)),
        ({"compute": "local", "num_actors": None}, sd.RayClusterResource(gpu_limit=0)),
        ({}, sd.RayClusterResource(address=dg.EnvVar("SOMEWHERE"))),
    ],
)
def test_definitions_that_fit_are_returned(fields, cluster):
    defs = definitions(asset(**fields), ray_cluster=cluster)
    assert sd.check_definitions(defs) is defs


def test_clusters_whose_limits_a_run_finds_out_are_left_to_it():
    from dagster_ray import LocalRay

    defs = definitions(asset(), ray_cluster=LocalRay())
    assert sd.check_definitions(defs) is defs


def test_the_pool_is_named_like_the_cluster_unless_it_is_given():
    pools = [
        asset(**fields).op.pool
        for fields in (
            {},
            {"ray_cluster": "gpus"},
            {"pool": "mine"},
            {"pool": ""},
            {"compute": "local", "num_actors": None},
        )
    ]
    assert pools == ["ray_cluster", "gpus", "mine", None, None]
