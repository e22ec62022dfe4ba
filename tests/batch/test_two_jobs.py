"""Two jobs at once: on one sink, one of them wins or each does in turn; on one cluster, both."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import sheaf_dagster as sd
from sheaf_dagster import BatchRunner, BatchSpec
from tests.conftest import read_rows
from tests.crashes import FULL, Job, driving
from tests.toys import doubler

ROUNDS = int(os.environ.get("SHEAF_RACES", "3"))


def whole(rows: list[dict], count: int) -> int:
    """The batch size of the one job that wrote all of these rows."""
    assert [r["value"] for r in rows] == [2 * i for i in range(count)]
    (size,) = {r["batch"] for r in rows}
    return size


def two(source: str, sink: str, **fields) -> list[Job]:
    """Jobs on one sink whose answers can be told apart."""
    return [
        Job(
            doubler(batch_seconds=0.01),
            BatchSpec(source=source, sink=sink, batch_size=b, compute="local", **fields),
        )
        for b in (4, 8)
    ]


def test_a_second_job_is_refused_while_the_first_writes(write_rows, tmp_path):
    source = write_rows(list(range(400)))
    sink = tmp_path / "out" / "out.jsonl"
    first, second = two(source, str(sink))
    with driving(first) as driver:
        assert driver.wait_for(lambda: len(first.parts()) >= 5)

        with pytest.raises(sd.SinkBusyError, match="is being written by another job"):
            BatchRunner(second.model, on_progress=None).run(second.spec)

        assert "error" not in driver.result()
    assert whole(read_rows(sink), 400) == 4
    assert os.listdir(sink.parent) == ["out.jsonl"]


@pytest.mark.parametrize("number", range(ROUNDS))
def test_of_jobs_that_start_together_each_completes_or_is_refused(write_rows, tmp_path, number):
    source = write_rows(list(range(80)))
    sink = tmp_path / "out" / "out.jsonl"
    jobs = two(source, str(sink))
    with driving(jobs[number % 2]) as a, driving(jobs[1 - number % 2]) as b:
        ended = [a.result(), b.result()]

    errors = [r["error"] for r in ended if "error" in r]
    assert len(errors) <= 1
    assert all(e.startswith("SinkBusyError") for e in errors)
    assert whole(read_rows(sink), 80) in (4, 8)
    assert os.listdir(sink.parent) == ["out.jsonl"]


@pytest.mark.s3
def test_on_one_object_of_a_store_too(s3, write_rows):
    source = write_rows(list(range(80)))
    jobs = two(source, s3.uri("out.jsonl"), storage_options=s3.options())
    with driving(jobs[0]) as a, driving(jobs[1]) as b:
        ended = [a.result(), b.result()]

    errors = [r["error"] for r in ended if "error" in r]
    assert len(errors) <= 1
    assert all(e.startswith("SinkBusyError") for e in errors)
    rows = [json.loads(line) for line in s3.get("out.jsonl").splitlines()]
    assert whole(rows, 80) in (4, 8)
    assert s3.names() == ["out.jsonl"]


@pytest.mark.ray
@pytest.mark.skipif(not FULL, reason="make test-crashes runs it")
def test_two_jobs_on_one_cluster_both_complete(two_nodes, write_rows, tmp_path):
    source = write_rows(list(range(400)))
    jobs = [
        Job(
            doubler(batch_seconds=0.01),
            BatchSpec(
                source=source,
                sink=str(tmp_path / compute / "out.jsonl"),
                batch_size=4,
                compute=compute,
                num_actors=1 if compute == "actors" else None,
            ),
            two_nodes.address,
        )
        for compute in ("tasks", "actors")
    ]
    with driving(jobs[0]) as a, driving(jobs[1]) as b:
        ended = [a.result(), b.result()]

    assert ["error" in r for r in ended] == [False, False], ended
    written = [Path(j.spec.sink).read_bytes() for j in jobs]
    assert written[0] == written[1]
    assert [os.listdir(tmp_path / c) for c in ("tasks", "actors")] == [["out.jsonl"]] * 2
