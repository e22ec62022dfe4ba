"""Which jobs plain Ray starts, and which Ray Data."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sheaf_dagster import BatchSpec, ClusterConfig, RayClusterResource
from sheaf_dagster.batch.ray.engine_choice import RAY_DATA_FROM_BYTES, engine_for
from tests.conftest import ROOT


def of_size(path: Path, size: int) -> BatchSpec:
    """A file that takes no room on the disk."""
    with path.open("wb") as f:
        f.truncate(size)
    return BatchSpec(source=str(path), sink=str(path) + ".out")


@pytest.mark.parametrize(
    ("size", "files", "cluster", "engine"),
    [
        (1000, 1, {}, "ray_core"),
        (RAY_DATA_FROM_BYTES - 1, 1, {}, "ray_core"),
        (RAY_DATA_FROM_BYTES, 1, {}, "ray_data"),
        (RAY_DATA_FROM_BYTES // 100, 99, {}, "ray_core"),
        (RAY_DATA_FROM_BYTES // 100, 101, {}, "ray_data"),
        (1000, None, {}, "ray_data"),
        (1000, 1, {"autoscaling": True}, "ray_data"),
        (1000, 1, {"engine": "ray_data"}, "ray_data"),
        (RAY_DATA_FROM_BYTES, None, {"autoscaling": True, "engine": "ray_core"}, "ray_core"),
    ],
)
def test_the_engine_goes_by_the_size_of_the_job_unless_it_is_named(
    tmp_path, size, files, cluster, engine
):
    first = of_size(tmp_path / "in.jsonl", size)

    chosen = engine_for(first, files, ClusterConfig(**cluster))

    assert chosen == engine


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_folder_is_as_large_as_the_files_of_rows_in_it(tmp_path, slash):
    half = RAY_DATA_FROM_BYTES // 2
    for name, size in (("a.jsonl", half), ("day=1/b.jsonl", half - 1), ("c.csv", half)):
        (path := tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        of_size(path, size)
    source = str(tmp_path / "in") + slash
    spec = BatchSpec(source=source, sink=str(tmp_path / "out.jsonl"))

    assert engine_for(spec, 1, ClusterConfig()) == "ray_core"
    of_size(tmp_path / "in" / "a.jsonl", half + 1)
    assert engine_for(spec, 1, ClusterConfig()) == "ray_data"


def test_a_source_that_is_missing_is_left_to_its_reader(tmp_path):
    first = BatchSpec(source=str(tmp_path / "no.jsonl"), sink=str(tmp_path / "out.jsonl"))

    assert engine_for(first, 1, ClusterConfig()) == "ray_core"


def test_a_resource_names_the_engine_for_its_jobs():
    assert RayClusterResource().to_config().engine == "auto"
    assert RayClusterResource(engine="ray_data").to_config().engine == "ray_data"


@pytest.mark.ray
def test_a_pool_of_actors_that_ray_starts_makes_no_noise(write_rows, tmp_path):
    source = write_rows(list(range(50)))
    # In a process of its own: Ray says some things once a process.
    code = f"""
from sheaf_dagster import BatchRunner, BatchSpec, ClusterConfig
from tests.toys import doubler
spec = BatchSpec(source={str(source)!r}, sink={str(tmp_path / "out.jsonl")!r}, compute="actors", num_actors=1)
print(BatchRunner(doubler(), ClusterConfig(address="local", engine="ray_core")).run(spec).rows)
"""

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == "50"
    assert not [line for line in done.stderr.splitlines() if "core_worker" in line]
