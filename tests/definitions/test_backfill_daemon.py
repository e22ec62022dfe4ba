"""A backfill as a person has it: webserver, daemon and GraphQL; a bad day, mended and redone."""

from __future__ import annotations

import json
from pathlib import Path

import dagster as dg
import pytest

from tests.dagster_dev import DagsterDev

pytestmark = [pytest.mark.daemon, pytest.mark.timeout(420)]
KEYS = dg.DailyPartitionsDefinition("2026-01-01", end_date="2026-01-11").get_partition_keys()
ASSET = {"path": ["predictions"]}


class Dagster(DagsterDev):
    """The project of ten days."""

    def __init__(self, root: Path) -> None:
        super().__init__(
            root, "-m", "tests.definitions.backfill_project", env={"SHEAF_TEST_ROOT": str(root)}
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
    try:
        server.start()
        yield server
    finally:
        server.stop()


def test_one_bad_day_is_shown_failed_and_alone_redone(dagster, tmp_path):
    (tmp_path / "in").mkdir()
    for key in KEYS:
        value = "x" if key == KEYS[4] else 1
        (tmp_path / "in" / f"{key}.jsonl").write_text(
            json.dumps({"model_name": "m", "value": value}) + "\n"
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
