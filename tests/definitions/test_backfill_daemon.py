"""A backfill as a person has it: webserver, daemon and GraphQL; a bad day, mended and redone."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import dagster as dg
import pytest

from tests.conftest import ROOT

pytestmark = [pytest.mark.daemon, pytest.mark.timeout(420)]
KEYS = dg.DailyPartitionsDefinition("2026-01-01", end_date="2026-01-11").get_partition_keys()
ASSET = {"path": ["predictions"]}


class Dagster:
    """``dagster dev`` on a port of its own."""

    def __init__(self, root: Path) -> None:
        home = root / "home"
        home.mkdir()
        (home / "dagster.yaml").write_text(
            "telemetry:\n  enabled: false\nrun_coordinator:\n  module: dagster.core.run_coordinator\n"
            "  class: QueuedRunCoordinator\n  config:\n    dequeue_interval_seconds: 1\n"
        )
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.log = (root / "dev.log").open("w")
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "dagster", "dev", "-m", "tests.definitions.backfill_project",
                "-p", str(self.port), "-h", "127.0.0.1",
            ],
            cwd=ROOT, stdout=self.log, stderr=self.log, start_new_session=True,
            env={**os.environ, "DAGSTER_HOME": str(home), "SHEAF_TEST_ROOT": str(root)},
        )  # fmt: skip

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.log.close()

    def query(self, text: str, **variables):
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/graphql",
            json.dumps({"query": text, "variables": variables}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            answer = json.load(response)
        assert "errors" not in answer, answer["errors"]
        return answer["data"]

    def until(self, what: str, check, seconds: float = 150):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                found = check()
            except OSError:
                found = None
            if found:
                return found
            time.sleep(0.5)
        raise AssertionError(
            f"{what} did not happen; see {self.log.name}: {Path(self.log.name).read_text()[-2000:]}"
        )

    def wait_for_backfill(self, backfill_id: str) -> str:
        def ended():
            status = self.query(
                "query($id: String!) { partitionBackfillOrError(backfillId: $id) "
                "{ ... on PartitionBackfill { status } } }",
                id=backfill_id,
            )["partitionBackfillOrError"]["status"]
            return status if status.startswith(("COMPLETED", "FAILED", "CANCELED")) else None

        return self.until("the end of the backfill", ended)

    def partitions(self) -> dict[str, list[str]]:
        """What the asset's page shows."""
        (node,) = self.query(
            "query($keys: [AssetKeyInput!]) { assetNodes(assetKeys: $keys) { "
            "assetPartitionStatuses { ... on TimePartitionStatuses { ranges { status startKey endKey } } } "
            "partitionStats { numMaterialized numFailed numPartitions } } }",
            keys=[ASSET],
        )["assetNodes"]
        found: dict[str, list[str]] = {}
        for r in node["assetPartitionStatuses"]["ranges"]:
            start, end = KEYS.index(r["startKey"]), KEYS.index(r["endKey"])
            found.setdefault(r["status"], []).extend(KEYS[start : end + 1])
        return found


@pytest.fixture
def dagster(tmp_path):
    server = Dagster(tmp_path)
    yield server
    server.stop()


def test_one_bad_day_is_shown_failed_and_alone_redone(dagster, tmp_path):
    (tmp_path / "in").mkdir()
    for key in KEYS:
        value = "x" if key == KEYS[4] else 1
        (tmp_path / "in" / f"{key}.jsonl").write_text(
            json.dumps({"model_name": "m", "value": value}) + "\n"
        )
    dagster.until(
        "the UI",
        lambda: dagster.query(
            "{ repositoriesOrError { ... on RepositoryConnection { nodes { name } } } }"
        )["repositoriesOrError"].get("nodes"),
    )

    launched = dagster.query(
        "mutation($p: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $p) "
        "{ __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }",
        p={"assetSelection": [ASSET], "partitionNames": KEYS},
    )["launchPartitionBackfill"]
    status = dagster.wait_for_backfill(launched["backfillId"])

    assert status in ("COMPLETED_FAILED", "FAILED")
    shown = dagster.partitions()
    assert shown["FAILED"] == [KEYS[4]]
    assert shown["MATERIALIZED"] == [k for k in KEYS if k != KEYS[4]]

    (tmp_path / "in" / f"{KEYS[4]}.jsonl").write_text('{"model_name": "m", "value": 5}\n')
    again = dagster.query(
        "mutation($p: ReexecutionParams!) { reexecutePartitionBackfill(reexecutionParams: $p) "
        "{ __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }",
        p={"parentRunId": launched["backfillId"], "strategy": "FROM_FAILURE"},
    )["reexecutePartitionBackfill"]
    status = dagster.wait_for_backfill(again["backfillId"])

    assert status == "COMPLETED_SUCCESS"
    assert dagster.partitions() == {"MATERIALIZED": KEYS}
    runs = dagster.query(
        "{ runsOrError { ... on Runs { results { runId tags { key value } } } } }"
    )["runsOrError"]["results"]
    assert len(runs) == 2, "one run for the range, one for the bad day"
    tags = {t["key"]: t["value"] for t in runs[0]["tags"]}
    assert KEYS[4] in (
        tags.get("dagster/partition"),
        tags.get("dagster/asset_partition_range_start"),
    )
    with dg.DagsterInstance.from_config(str(tmp_path / "home")) as instance:
        records = instance.fetch_materializations(dg.AssetKey("predictions"), limit=100).records
    assert sorted(r.partition_key for r in records) == KEYS, "no partition was logged twice"
