"""Several files: as one source, and as jobs of their own that share workers."""

from __future__ import annotations

from pathlib import Path

import pytest

import sheaf_dagster as sd
from sheaf_dagster import BatchRunner, BatchSpec
from tests.conftest import read_rows
from tests.toys import doubler


def test_several_files_are_one_source_in_their_order(write_rows, tmp_path):
    files = [write_rows([i, i + 0.5], name=f"{i}.jsonl") for i in (3, 1, 2)]
    result = BatchRunner(doubler()).run(
        BatchSpec(source=files, sink=str(tmp_path / "out.jsonl"), compute="local")
    )
    assert [r["value"] for r in read_rows(result.sink)] == [6, 7, 2, 3, 4, 5]


def test_one_bad_file_never_costs_the_others(mode, write_rows, tmp_path):
    values = [[1, 2], ["x"], [3], [41], [5, 6, 7]]
    specs = [
        BatchSpec(
            source=write_rows(v, name=f"in/{i}.jsonl"),
            sink=str(tmp_path / f"out/{i}.jsonl"),
            **mode,
        )
        for i, v in enumerate(values)
    ]
    specs.insert(
        2, BatchSpec(source=str(tmp_path / "no.jsonl"), sink=str(tmp_path / "out/no.jsonl"), **mode)
    )
    same = write_rows([1], name="in/same.jsonl")
    alias = str(tmp_path / "in" / ".." / "in" / "same.jsonl")
    specs.insert(0, BatchSpec(source=same, sink=alias, **mode))

    outcomes = {
        Path(o.spec.sink).stem: o for o in BatchRunner(doubler(fail_on=41)).run_many(iter(specs))
    }

    assert {k for k, o in outcomes.items() if o.ok} == {"0", "2", "4"}
    assert isinstance(outcomes["1"].error, sd.InputValidationError)
    assert isinstance(outcomes["3"].error, sd.PredictError)
    assert isinstance(outcomes["no"].error, sd.SourceNotFoundError)
    assert "source and sink are the same file" in str(outcomes["same"].error)
    assert [r["value"] for r in read_rows(tmp_path / "out/4.jsonl")] == [10, 12, 14]


@pytest.mark.ray
def test_many_small_files_share_workers_that_load_once(ray_cluster, write_rows, tmp_path):
    log = tmp_path / "loads"
    specs = [
        BatchSpec(
            source=write_rows([i, i], name=f"in/{i}.jsonl"),
            sink=str(tmp_path / f"out/{i}.jsonl"), compute="actors", num_actors=2,
        )
        for i in range(60)
    ]  # fmt: skip
    outcomes = list(BatchRunner(doubler(load_log=str(log))).run_many(specs))
    assert all(o.ok for o in outcomes)
    assert len(outcomes) == 60
    assert 1 <= len(log.read_text().split()) <= 2, "once an actor; one may do it all alone"
