"""The example's inbox: drop a file, and it is forecast."""

from __future__ import annotations

import json
from pathlib import Path

import dagster as dg
import pytest

from example_project.series import HORIZON
from tests.conftest import read_rows
from tests.daemon import Daemon

KEY_OF_ASSET = dg.AssetKey("inbox_forecasts")
ROUTES = ["EWR-ATL", "JFK-LAX"]
REQUESTS = "".join(
    json.dumps(
        {
            "model_type": "time_series",
            "model_name": route,
            "history": [20 + day % 7 for day in range(28)],
            "horizon": HORIZON,
            "frequency": "1d",
        }
    )
    + "\n"
    for route in ROUTES
)


@pytest.mark.long
@pytest.mark.daemon
@pytest.mark.model
def test_a_file_dropped_into_the_inbox_starts_a_run(tmp_path):
    data = tmp_path / "data"
    daemon = Daemon(tmp_path, "example_project.definitions", SHEAF_EXAMPLE_ROOT=str(data))
    try:
        daemon.until("the first tick", lambda: daemon.ticks("inbox_forecasts_arrivals"))
        (data / "inbox").mkdir(parents=True)
        (data / "inbox" / "monday.jsonl").write_text(REQUESTS)
        (run,) = daemon.until("a run", daemon.ended_runs)
        made = daemon.instance.get_materialized_partitions(KEY_OF_ASSET)
    finally:
        daemon.stop()
    assert run.status == dg.DagsterRunStatus.SUCCESS
    assert made == {"monday"}
    rows = read_rows(data / "inbox" / "forecasts" / "monday.jsonl")
    assert [r["model_name"] for r in rows] == ROUTES
    assert all(len(r["mean"]) == HORIZON for r in rows)


@pytest.mark.s3
@pytest.mark.model
def test_the_inbox_can_be_in_s3(s3, monkeypatch, tmp_path):
    from example_project.definitions import defs
    from example_project.inbox import build_inbox

    monkeypatch.setenv("SHEAF_EXAMPLE_INBOX", s3.uri("inbox"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret)
    asset, sensor, storage = build_inbox(Path("unused"))
    s3.put("inbox/monday.jsonl", REQUESTS.encode())

    with dg.DagsterInstance.ephemeral() as instance:
        with dg.build_sensor_context(instance=instance, resources={"inbox": storage}) as context:
            (request,) = sensor(context).run_requests
        instance.add_dynamic_partitions("inbox_files", ["monday"])
        result = dg.materialize(
            [asset],
            partition_key=request.partition_key,
            instance=instance,
            resources={**(defs.resources or {}), "inbox": storage},
        )

    assert result.success
    lines = s3.get("inbox/forecasts/monday.jsonl").splitlines()
    assert [json.loads(line)["model_name"] for line in lines] == ROUTES
