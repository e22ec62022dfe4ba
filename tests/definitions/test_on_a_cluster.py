"""Steps on a real Ray cluster: as its driver, inside a Ray job, and as a Ray job of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import ROOT, read_rows
from tests.daemon import text_of
from tests.definitions.cluster_project import KEYS, REFUSED, WHEN, write, write_table
from tests.ray_head import RayHead, in_full

pytestmark = [pytest.mark.ray, pytest.mark.daemon]


@pytest.fixture(
    scope="module",
    params=[pytest.param(True, id="token"), pytest.param(False, id="open", marks=in_full)],
)
def head(request) -> Iterator[RayHead]:
    head = RayHead(token=request.param)
    try:
        yield head
    finally:
        head.stop()


class Deployment:
    """A Dagster instance and a folder of files, used from processes that know one cluster."""

    def __init__(self, root: Path, head: RayHead) -> None:
        self.root = root
        self.head = head
        home = root / "dagster"
        home.mkdir()
        (home / "dagster.yaml").write_text(
            "telemetry: {enabled: false}\n"
            # Without a daemon nothing would take runs out of a queue.
            "run_coordinator:\n"
            "  module: dagster._core.run_coordinator\n"
            "  class: DefaultRunCoordinator\n"
            "run_launcher:\n"
            "  module: dagster_ray\n"
            "  class: RayRunLauncher\n"
            "  config:\n"
            "    ray:\n"
            f"      address: '{head.dashboard}'\n"
            f"      env_vars: ['SHEAF_TEST_ROOT={root}']\n"
        )
        self.env = {
            **head.environment(),
            "DAGSTER_HOME": str(home),
            "SHEAF_TEST_ROOT": str(root),
            "SHEAF_TEST_RAY": head.address,
            "SHEAF_TEST_DASHBOARD": head.dashboard,
        }
        self.instance = dg.DagsterInstance.from_config(str(home))

    def start(self, *arguments: str, **env: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "tests.definitions.cluster_project", *arguments]
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env={**self.env, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, **env: str) -> dict:
        out, err = self.start(*arguments, **env).communicate(timeout=300)
        assert out, err[-3000:]
        return json.loads(out.splitlines()[-1])

    def logged(self, run_id: str, key: str) -> list[str]:
        records = self.instance.fetch_materializations(
            dg.AssetRecordsFilter(asset_key=dg.AssetKey(key)), limit=99
        ).records
        return sorted(str(r.partition_key) for r in records if r.run_id == run_id)

    def text_of(self, run_id: str) -> str:
        return text_of(self.instance, run_id)


@pytest.fixture
def deployment(tmp_path, head) -> Deployment:
    for i, key in enumerate(KEYS):
        write(tmp_path, key, [i, i + 1, i + 2])
        write_table(tmp_path, key, [i, i + 1, i + 2])
    return Deployment(tmp_path, head)


@pytest.mark.long
def test_a_step_on_a_machine_of_the_cluster_is_its_driver(deployment):
    # Both take the cluster of RAY_ADDRESS, which is this one.
    how = (
        {"SHEAF_TEST_CLUSTER": "LocalRay"}
        if deployment.head.token is None
        else {"SHEAF_TEST_RAY": "auto"}
    )

    done = deployment.run("step", KEYS[0], KEYS[-1], **how)

    assert done["success"], deployment.text_of(done["run"])
    assert deployment.logged(done["run"], "step") == KEYS
    assert [r["value"] for r in read_rows(deployment.root / "step" / f"{KEYS[2]}.jsonl")] == [
        4,
        6,
        8,
    ]


@pytest.mark.long
def test_a_whole_run_is_a_ray_job(deployment):
    subprocess.run(
        [
            *(sys.executable, "-m", "dagster", "job", "launch"),
            *("-m", "tests.definitions.cluster_project", "-j", "one"),
            *("--tags", json.dumps({"dagster/partition": KEYS[1]})),
        ],
        cwd=ROOT,
        env={k: v for k, v in deployment.env.items() if k != "SHEAF_TEST_RAY"},
        check=True,
        capture_output=True,
        timeout=300,
    )
    deadline = time.monotonic() + 300
    while not (run := deployment.instance.get_runs(limit=1)[0]).is_finished:
        assert time.monotonic() < deadline, deployment.text_of(run.run_id)
        time.sleep(0.2)

    assert run.is_success, deployment.text_of(run.run_id)
    assert deployment.logged(run.run_id, "step") == [KEYS[1]]


def test_a_step_is_a_ray_job_of_its_own(deployment):
    write_table(deployment.root, KEYS[1], ["1", "x"])
    kind = "Head" if deployment.head.token else "ours"

    done = deployment.run("ray_job", KEYS[0], REFUSED, SHEAF_TEST_CLUSTER=kind)

    text = deployment.text_of(done["run"])
    assert not done["success"]
    assert deployment.logged(done["run"], "ray_job") == [KEYS[0], *KEYS[2:]], text
    assert "2 of 5 partitions failed" in text
    assert "partition key '..'" in text
    assert f"{KEYS[1]}/2026.parquet: 1 of 2 rows are invalid" in text
    assert "row 2, column 'amount', field 'value'" in text
    checks = {
        e.dagster_event.event_specific_data.check_name: e.dagster_event.event_specific_data.passed
        for e in deployment.instance.all_logs(
            done["run"], of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION
        )
    }
    assert checks["input_rows_are_valid"] is False
    assert checks["order_is_kept"] is True
    (record,) = deployment.instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=dg.AssetKey("ray_job"), asset_partitions=[KEYS[2]]),
        limit=1,
    ).records
    md = record.asset_materialization.metadata
    assert md["dagster/partition_row_count"].value == 3
    assert "| request | response |" in md["preview"].value
    sink = deployment.root / "ray_job" / f"{KEYS[2]}.parquet"
    answers = pq.read_table(sink)
    assert answers.column("value").to_pylist() == [4, 6, 8]
    assert answers.column("sold_at").to_pylist() == [WHEN] * 3
    assert answers.schema.field("sold_at").type == pa.timestamp("us", "UTC")
    assert "double" in {c.type for c in md["dagster/column_schema"].value.columns}
    assert md["receipt"].value == f"{sink}.receipt.json"
    assert md["report"].value == f"{sink}.report.html"
    assert "order_is_kept" in Path(md["report"].value).read_text("utf-8")
    assert json.loads(Path(md["receipt"].value).read_text())["sink"] == str(sink)
    assert record.asset_materialization.tags["dagster/data_version"]

    write_table(deployment.root, KEYS[1], [1])
    again = deployment.run("ray_job", KEYS[0], KEYS[-1], done["run"])

    assert again["success"], deployment.text_of(again["run"])
    assert deployment.logged(again["run"], "ray_job") == [KEYS[1]]
    assert "not run again" in deployment.text_of(again["run"])


@pytest.mark.long
def test_cancelling_a_step_stops_its_ray_job_and_keeps_what_is_done(deployment):
    if deployment.head.token:  # which this process can't change its mind about
        pytest.skip("once is enough")
    from ray.job_submission import JobStatus, JobSubmissionClient

    write_table(deployment.root, KEYS[1], list(range(200)))
    child = deployment.start("ray_job", KEYS[0], KEYS[1], SHEAF_TEST_SLEEP="0.5")
    calls = deployment.root / "calls"
    deadline = time.monotonic() + 300
    while not (calls.exists() and len(calls.read_text().split()) > 6):
        assert time.monotonic() < deadline and child.poll() is None, child.communicate()
        time.sleep(0.1)

    child.send_signal(signal.SIGINT)
    child.communicate(timeout=300)

    jobs = JobSubmissionClient(deployment.head.dashboard)
    newest = max(jobs.list_jobs(), key=lambda j: j.start_time or 0)
    assert newest.status == JobStatus.STOPPED
    assert sorted(os.listdir(deployment.root / "ray_job")) == [
        f".{KEYS[1]}.parquet.sheaf",
        f"{KEYS[0]}.parquet",
        f"{KEYS[0]}.parquet.receipt.json",
        f"{KEYS[0]}.parquet.report.html",
    ]
