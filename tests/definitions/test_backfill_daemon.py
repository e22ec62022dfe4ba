"""Backfills as a person has them: webserver, daemon and GraphQL, of every policy, and one bad day."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.daemon import text_of
from tests.dagster_dev import DagsterDev
from tests.definitions.backfill_project import HANGS, POWER_CUT, days

pytestmark = pytest.mark.daemon
ASSETS = {
    "at_once": 10,
    "by_three": 5,
    "one_by_one": 2,
    "cut_short": 6,
    "called_off": 6,
    "mended": 5,
}
"""Days of each asset."""

TABLES = {"at_once", "cut_short"}
"""Those whose files are Parquet, in and out."""

BAD = 4
"""The day of ``at_once`` whose file is broken, counted from 0."""


class Dagster(DagsterDev):
    """The toy assets, and the instance that the test looks into."""

    def __init__(self, root: Path) -> None:
        super().__init__(
            root, "-m", "tests.definitions.backfill_project", env={"SHEAF_TEST_ROOT": str(root)}
        )
        with (self.home / "dagster.yaml").open("a") as f:  # retries are asked for by tag
            f.write("run_retries:\n  enabled: true\n  max_retries: 0\n")
        self.root = root
        self.instance = dg.DagsterInstance.from_config(str(self.home))

    def stop(self) -> None:
        super().stop()
        self.instance.dispose()

    def write(self, asset: str, key: str, value: object) -> None:
        path = self.root / "in" / asset / f"{key}.{'parquet' if asset in TABLES else 'jsonl'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        row = {"model_name": "m", "value": value}
        if asset in TABLES:
            pq.write_table(pa.Table.from_pylist([row]), path)
        else:
            path.write_text(json.dumps(row) + "\n")

    def launch(self, asset: str, config: dict | None = None, **tags: str) -> str:
        """Starts a backfill of all the asset's days, as the UI does; its id."""
        given = {} if config is None else {"runConfigData": {"ops": {asset: {"config": config}}}}
        launched = self.query(
            "mutation($p: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $p) "
            "{ __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }",
            p={
                "assetSelection": [{"path": [asset]}],
                "partitionNames": keys_of(asset),
                "tags": [{"key": k, "value": v} for k, v in tags.items()],
                **given,
            },
        )["launchPartitionBackfill"]
        assert "backfillId" in launched, launched
        return launched["backfillId"]

    def wait_for_backfill(self, backfill_id: str) -> str:
        def ended():
            status = self.query(
                "query($id: String!) { partitionBackfillOrError(backfillId: $id) "
                "{ ... on PartitionBackfill { status } } }",
                id=backfill_id,
            )["partitionBackfillOrError"]["status"]
            return status if status.startswith(("COMPLETED", "FAILED", "CANCELED")) else None

        return self.until("the end of the backfill", ended)

    def partitions(self, asset: str) -> dict[str, list[str]]:
        """What the asset's page shows."""
        (node,) = self.query(
            "query($keys: [AssetKeyInput!]) { assetNodes(assetKeys: $keys) { "
            "assetPartitionStatuses { ... on TimePartitionStatuses { ranges { status startKey endKey } } } "
            "} }",
            keys=[{"path": [asset]}],
        )["assetNodes"]
        keys = keys_of(asset)
        found: dict[str, list[str]] = {}
        for r in node["assetPartitionStatuses"]["ranges"]:
            start, end = keys.index(r["startKey"]), keys.index(r["endKey"])
            found.setdefault(r["status"], []).extend(keys[start : end + 1])
        return found

    def runs(self, backfill_id: str) -> list[dg.DagsterRun]:
        """The backfill's runs, oldest first."""
        only = dg.RunsFilter(tags={"dagster/backfill": backfill_id})
        return [r.dagster_run for r in self.instance.get_run_records(only, ascending=True)]

    def logged(self, asset: str) -> list[tuple[str, str]]:
        """(partition, run id) of each materialisation, by partition."""
        records = self.instance.fetch_materializations(dg.AssetKey(asset), limit=100).records
        return sorted((str(r.partition_key), r.run_id) for r in records)


def keys_of(asset: str) -> list[str]:
    return list(days(ASSETS[asset]).get_partition_keys())


def asked_for(run: dg.DagsterRun) -> tuple[str, str]:
    """The first and the last partition of a run."""
    one = run.tags.get("dagster/partition")
    first = run.tags.get("dagster/asset_partition_range_start", one)
    return str(first), str(run.tags.get("dagster/asset_partition_range_end", one))


@pytest.fixture(scope="module")
def dagster(tmp_path_factory) -> Iterator[Dagster]:
    server = Dagster(tmp_path_factory.mktemp("backfills"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


class Launched(dict[str, str]):
    """The backfill of each asset, by asset, launched when it is first asked for."""

    def __init__(self, dagster: Dagster) -> None:
        self._dagster = dagster

    def __missing__(self, asset: str) -> str:
        for i, key in enumerate(keys_of(asset)):
            self._dagster.write(asset, key, "x" if (asset, i) == ("at_once", BAD) else i)
        tags = {"dagster/max_retries": "1"} if asset == "cut_short" else {}
        self[asset] = self._dagster.launch(asset, **tags)
        return self[asset]


@pytest.fixture(scope="module")
def launched(dagster) -> Launched:
    """Backfills that tests ask for; side by side, as the daemon looks every 30 s only."""
    backfills = Launched(dagster)
    for asset in ("cut_short", "called_off"):  # of the tests that aren't long
        assert backfills[asset]
    return backfills


@pytest.mark.long
def test_one_bad_day_is_shown_failed_and_alone_redone(dagster, launched):
    keys = keys_of("at_once")

    status = dagster.wait_for_backfill(launched["at_once"])

    assert status in ("COMPLETED_FAILED", "FAILED")
    shown = dagster.partitions("at_once")
    assert shown["FAILED"] == [keys[BAD]]
    assert shown["MATERIALIZED"] == [k for k in keys if k != keys[BAD]]
    (run,) = dagster.runs(launched["at_once"])
    said = text_of(dagster.instance, run.run_id)
    assert f"/in/at_once/{keys[BAD]}.parquet: 1 of 1 rows are invalid" in said
    assert "row 1, column 'value'" in said

    dagster.write("at_once", keys[BAD], 5)
    again = dagster.query(
        "mutation($p: ReexecutionParams!) { reexecutePartitionBackfill(reexecutionParams: $p) "
        "{ __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }",
        p={"parentRunId": launched["at_once"], "strategy": "FROM_FAILURE"},
    )["reexecutePartitionBackfill"]
    status = dagster.wait_for_backfill(again["backfillId"])

    assert status == "COMPLETED_SUCCESS"
    assert dagster.partitions("at_once") == {"MATERIALIZED": keys}
    (first,), (second,) = dagster.runs(launched["at_once"]), dagster.runs(again["backfillId"])
    assert asked_for(first) == (keys[0], keys[-1])
    assert asked_for(second) == (keys[BAD], keys[BAD])
    assert [key for key, _ in dagster.logged("at_once")] == keys, "no partition was logged twice"


@pytest.mark.long
@pytest.mark.parametrize(
    ("asset", "ranges"),
    [("by_three", [(0, 2), (3, 4)]), ("one_by_one", [(0, 0), (1, 1)])],
)
def test_a_policy_of_several_runs_shares_the_partitions_out(dagster, launched, asset, ranges):
    keys = keys_of(asset)

    status = dagster.wait_for_backfill(launched[asset])

    runs = dagster.runs(launched[asset])
    assert status == "COMPLETED_SUCCESS"
    assert sorted(map(asked_for, runs)) == [(keys[a], keys[b]) for a, b in ranges]
    assert {run.status for run in runs} == {dg.DagsterRunStatus.SUCCESS}
    assert dagster.partitions(asset) == {"MATERIALIZED": keys}
    assert dagster.logged(asset) == sorted(
        (key, run.run_id)
        for run in runs
        for key in keys
        if asked_for(run)[0] <= key <= asked_for(run)[1]
    )


def test_a_run_that_is_killed_is_retried_by_the_daemon_for_the_rest(dagster, launched):
    keys = keys_of("cut_short")
    cut = keys[int(POWER_CUT)]

    status = dagster.wait_for_backfill(launched["cut_short"])

    killed, retry = dagster.runs(launched["cut_short"])
    assert status == "COMPLETED_SUCCESS"
    assert killed.status == dg.DagsterRunStatus.FAILURE
    assert retry.status == dg.DagsterRunStatus.SUCCESS
    assert retry.parent_run_id == killed.run_id
    assert asked_for(retry) == asked_for(killed) == (keys[0], keys[-1]), "it was given all"
    assert dagster.logged("cut_short") == [
        (key, killed.run_id if key < cut else retry.run_id) for key in keys
    ]
    assert dagster.partitions("cut_short") == {"MATERIALIZED": keys}
    out = dagster.root / "out" / "cut_short"
    answers = [pq.read_table(out / f"{key}.parquet").column("value").to_pylist() for key in keys]
    assert answers == [[2 * i] for i in range(6)]


def test_a_run_that_is_called_off_keeps_what_is_done(dagster, launched):
    keys = keys_of("called_off")
    done = keys[: int(HANGS)]
    dagster.until(
        "the materialisation of the days before", lambda: len(dagster.logged("called_off")) == 3
    )
    (run,) = dagster.runs(launched["called_off"])

    answer = dagster.query(
        "mutation($id: String!) { terminateRun(runId: $id) { __typename } }", id=run.run_id
    )["terminateRun"]["__typename"]
    dagster.until("the end of the run", lambda: dagster.runs(launched["called_off"])[0].is_finished)

    assert answer == "TerminateRunSuccess"
    (run,) = dagster.runs(launched["called_off"])
    assert run.status == dg.DagsterRunStatus.CANCELED
    assert dagster.logged("called_off") == [(key, run.run_id) for key in done]
    assert dagster.partitions("called_off")["MATERIALIZED"] == done
    written = sorted(p.name for p in (dagster.root / "out" / "called_off").glob("*.jsonl"))
    assert written == [f"{key}.jsonl" for key in done]


@pytest.mark.long
def test_a_backfill_with_run_config_runs_the_failed_rows_alone(dagster, launched):
    keys = keys_of("mended")
    (moods := dagster.root / "moods").mkdir()
    (moods / "3").touch()
    assert dagster.wait_for_backfill(launched["mended"]) == "COMPLETED_SUCCESS"
    outputs = [dagster.root / "out" / "mended" / f"{key}.jsonl" for key in keys]
    failed = [json.loads(path.read_text()).get("value") for path in outputs]
    before = [path.stat().st_ino for path in outputs]
    (moods / "3").unlink()

    again = dagster.launch("mended", {"only": "failed"})

    assert dagster.wait_for_backfill(again) == "COMPLETED_SUCCESS"
    assert failed == [0, 2, 4, None, 8]
    assert [json.loads(path.read_text())["value"] for path in outputs] == [0, 2, 4, 6, 8]
    now = [path.stat().st_ino for path in outputs]
    assert [a == b for a, b in zip(before, now, strict=True)] == [True, True, True, False, True]
    assert dagster.partitions("mended") == {"MATERIALIZED": keys}
    (first,), (second,) = dagster.runs(launched["mended"]), dagster.runs(again)
    assert dagster.logged("mended") == sorted(
        (key, run.run_id) for key in keys for run in (first, second)
    )
