"""Files that land, through the daemon: one run each, no loops, and eager() after them."""

from __future__ import annotations

from collections.abc import Iterator

import dagster as dg
import pytest

from tests.conftest import read_rows
from tests.daemon import Daemon
from tests.definitions.inbox import ROW

pytestmark = pytest.mark.daemon
BAD = ROW.replace(b"1}", b'"x"}')
SENSOR = "predictions_arrivals"


@pytest.fixture
def daemon(tmp_path) -> Iterator[Daemon]:
    (tmp_path / "in").mkdir()
    for name, data in {"a": ROW, "b": ROW, "bad": BAD, "c.tmp": ROW}.items():
        (tmp_path / "in" / f"{name}.jsonl").write_bytes(data)
    (tmp_path / "in" / "c.tmp.jsonl").rename(tmp_path / "in" / "c.jsonl.tmp")
    running = Daemon(tmp_path, "tests.definitions.arrival_project", SHEAF_TEST_ROOT=str(tmp_path))
    yield running
    running.stop()


def test_each_file_that_lands_is_run_once_and_a_bad_one_again_when_it_changes(daemon, tmp_path):
    def arrivals() -> list[dg.DagsterRun]:
        return daemon.ended_runs(**{"sheaf_dagster/sensor": SENSOR})

    def made(asset: str) -> set[str]:
        return daemon.instance.get_materialized_partitions(dg.AssetKey(asset))

    (first,) = daemon.until("the first run", arrivals)
    assert first.status == dg.DagsterRunStatus.FAILURE, "one of its three files is bad"
    assert made("predictions") == {"a", "b"}, "the others are materialised"
    ticks = len(daemon.ticks(SENSOR))
    daemon.until("two more ticks", lambda: len(daemon.ticks(SENSOR)) >= ticks + 2)
    assert len(arrivals()) == 1, "no loop"
    assert "unfinished by its name: c.jsonl.tmp" in daemon.ticks(SENSOR)[0].skip_reason

    (tmp_path / "in" / "bad.jsonl").write_bytes(ROW * 2)
    (_, second) = daemon.until("the second run", lambda: len(arrivals()) == 2 and arrivals())
    assert second.status == dg.DagsterRunStatus.SUCCESS
    assert second.tags["dagster/partition"] == "bad"
    assert made("predictions") == {"a", "b", "bad"}
    assert len(read_rows(tmp_path / "out" / "bad.jsonl")) == 2

    # Of what the first run materialises while the daemon looks, Dagster's eager() may miss some.
    daemon.until("eager()", lambda: "bad" in made("follower"))
    assert len(arrivals()) == 2
