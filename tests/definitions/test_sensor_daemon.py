"""Files that land, through the daemon: one run each, no loops, and eager() after them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.daemon import Daemon, text_of

pytestmark = pytest.mark.daemon
SENSOR = "predictions_arrivals"


def put(path: Path, values: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    begun = path.with_name(f".{path.name}")  # a tick may look while it is written
    pq.write_table(pa.table({"model_name": ["m"] * len(values), "value": values}), begun)
    begun.rename(path)


def values_in(path: Path) -> list[float]:
    return pq.read_table(path).column("value").to_pylist()


@pytest.fixture
def daemon(tmp_path) -> Iterator[Daemon]:
    put(tmp_path / "in" / "a.parquet", [1])
    put(tmp_path / "in" / "b.parquet", [1])
    put(tmp_path / "in" / "bad.parquet", ["1", "x"])
    put(tmp_path / "in" / "c.parquet.tmp", [1])
    put(tmp_path / "folders" / "week" / "group=1" / "part-0.parquet", [1, 2])
    put(tmp_path / "folders" / "week" / "group=2" / "part-0.parquet", [3])
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
    said = text_of(daemon.instance, first.run_id)
    assert f"{tmp_path}/in/bad.parquet: 1 of 2 rows are invalid" in said
    assert "row 2, column 'value'" in said
    ticks = len(daemon.ticks(SENSOR))
    daemon.until("two more ticks", lambda: len(daemon.ticks(SENSOR)) >= ticks + 2)
    assert len(arrivals()) == 1, "no loop"
    assert "unfinished by its name: c.parquet.tmp" in daemon.ticks(SENSOR)[0].skip_reason

    put(tmp_path / "in" / "bad.parquet", [1, 2])
    (_, second) = daemon.until("the second run", lambda: len(arrivals()) == 2 and arrivals())
    assert second.status == dg.DagsterRunStatus.SUCCESS
    assert second.tags["dagster/partition"] == "bad"
    assert made("predictions") == {"a", "b", "bad"}
    assert values_in(tmp_path / "out" / "bad.parquet") == [2, 4]

    # Of what the first run materialises while the daemon looks, Dagster's eager() may miss some.
    daemon.until("eager()", lambda: "bad" in made("follower"))
    assert len(arrivals()) == 2

    daemon.until("the folder", lambda: made("folders") == {"week"})
    assert values_in(tmp_path / "of_folders" / "week.parquet") == [2, 4, 6]
