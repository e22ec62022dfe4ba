"""An asset on a cluster that the environment names; runs by itself or through Dagster's tools.

``python -m tests.definitions.cluster_project LAUNCH FIRST LAST [PARENT]`` materialises a range of
partitions in the folder ``SHEAF_TEST_ROOT``. The cluster is the one of ``SHEAF_TEST_RAY`` (its address) and
``SHEAF_TEST_DASHBOARD``, as the resource ``SHEAF_TEST_CLUSTER``: ours, or one of dagster-ray's.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
from dagster_ray import Lifecycle, LocalRay, RayResource

import sheaf_dagster as sd
from tests.definitions.project import inference_asset
from tests.toys import doubler

KEYS = ["12:30 Köln::Süd", "2026-01-01", "50%", "two words"]
"""Keys that stand in file names, URIs, tags and messages as they are."""

WHEN = datetime(2026, 1, 1, 12, tzinfo=UTC)
REFUSED = ".."
ROOT = Path(os.environ.get("SHEAF_TEST_ROOT", "/nowhere"))


class Head(RayResource):
    """A cluster of dagster-ray's that is up already, as KubeRay's are once they are ready."""

    @property
    def host(self) -> str:
        return "127.0.0.1"

    @property
    def name(self) -> str:
        return "head"

    @property
    def created(self) -> bool:
        return True

    @property
    def ready(self) -> bool:
        return True


def ray_cluster() -> dg.ConfigurableResource:
    kind = os.environ.get("SHEAF_TEST_CLUSTER", "ours")
    dashboard = os.environ.get("SHEAF_TEST_DASHBOARD")
    if kind == "LocalRay":
        return LocalRay()
    if kind == "Head":
        port = int(str(dashboard).rpartition(":")[2])
        return Head(dashboard_port=port, lifecycle=Lifecycle(connect=False, cleanup="never"))
    return sd.RayClusterResource(
        address=os.environ.get("SHEAF_TEST_RAY"), dashboard=dashboard, cpu_limit=2
    )


def predictions(
    name: str, of: str = ".jsonl", suffix: str = "jsonl", **fields
) -> dg.AssetsDefinition:
    return inference_asset(
        name,
        source=f"{{root}}/in/{{partition_key}}{of}",
        sink=f"{{root}}/{name}/{{partition_key}}.{suffix}",
        partitions_def=dg.StaticPartitionsDefinition([*KEYS, REFUSED]),
        compute="actors",
        num_actors=2,
        batch_size=2,
        **fields,
    )


defs = dg.Definitions(
    assets=[
        predictions("step"),
        predictions(
            "ray_job",
            "/",
            "parquet",
            launch="ray_job",
            report="html",
            receipt=True,
            columns={"value": "amount"},
            fields={"model_name": "m"},
            keep=["sold_at"],
        ),
    ],
    jobs=[dg.define_asset_job("one", ["step"], executor_def=dg.in_process_executor)],
    resources={
        "model": sd.ModelResource.from_spec(
            doubler(
                num_cpus=0.5,
                batch_seconds=float(os.environ.get("SHEAF_TEST_SLEEP", "0")),
                call_log=str(ROOT / "calls"),
            )
        ),
        "ray_cluster": ray_cluster(),
        "storage": sd.StorageResource(root=str(ROOT)),
    },
)


def write(root: Path, key: str, values: list) -> None:
    path = root / "in" / f"{key}.jsonl"
    path.parent.mkdir(exist_ok=True)
    rows = [{"model_name": "m", "value": v} for v in values]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))


def write_table(root: Path, key: str, values: list) -> None:
    path = root / "in" / key / "2026.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    times = pa.array([WHEN] * len(values), pa.timestamp("us", "UTC"))
    pq.write_table(pa.table({"amount": values, "sold_at": times}), path)


def main(launch: str, first: str, last: str, parent: str = "") -> None:
    tags = {
        "dagster/asset_partition_range_start": first,
        "dagster/asset_partition_range_end": last,
    }
    if parent:
        tags |= {"dagster/parent_run_id": parent, "dagster/root_run_id": parent}
    result = defs.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=dg.DagsterInstance.get(),
        tags=tags,
        raise_on_error=False,
        asset_selection=[dg.AssetKey(launch)],
    )
    print(json.dumps({"run": result.run_id, "success": result.success}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
