"""Files that an earlier run committed: which of them a job runs again."""

from __future__ import annotations

import logging

import pytest

import sheaf_dagster as sd
from sheaf_dagster.batch.committed import CommittedSink
from tests.conftest import read_rows
from tests.toys import doubler


@pytest.fixture
def earlier(write_rows, tmp_path):
    """Three files with what a run committed of them."""
    specs = [
        sd.BatchSpec(
            source=write_rows([i, i + 1], name=f"{i}.jsonl"),
            sink=str(tmp_path / f"out/{i}.jsonl"),
            compute="local",
        )
        for i in range(3)
    ]
    results = [sd.BatchRunner(doubler()).run(spec) for spec in specs]
    return specs, {r.sink: CommittedSink(r.fingerprint[:16], r.output_bytes) for r in results}


def test_only_what_no_longer_holds_is_run(earlier, write_rows, tmp_path):
    specs, committed = earlier
    write_rows([7, 8], name="1.jsonl")
    (tmp_path / "out/2.jsonl").write_text("shorter\n")
    other_layout = specs[0].model_copy(update={"batch_size": 1})
    fresh = specs[0].model_copy(update={"sink": str(tmp_path / "out/fresh.jsonl")})

    outcomes = list(sd.BatchRunner(doubler()).run_many([*specs, fresh], committed=committed))
    (again,) = sd.BatchRunner(doubler()).run_many([other_layout], committed=committed)

    unchanged = {outcome.spec.sink: outcome.unchanged for outcome in outcomes}
    assert unchanged == {specs[0].sink: True, specs[1].sink: False, specs[2].sink: False} | {
        fresh.sink: False
    }
    assert all(outcome.ok for outcome in outcomes)
    assert not again.unchanged
    assert [r["value"] for r in read_rows(specs[1].sink)] == [14, 16]
    assert [r["value"] for r in read_rows(specs[2].sink)] == [4, 6]


def test_nothing_is_started_where_all_of_it_holds(earlier, caplog):
    specs, committed = earlier
    on_ray = [s.model_copy(update={"compute": "tasks"}) for s in specs]
    told: list[sd.BatchProgress] = []
    runner = sd.BatchRunner(doubler(), sd.ClusterConfig(address="nowhere.invalid:1"), told.append)

    with caplog.at_level(logging.DEBUG):
        outcomes = list(runner.run_many(on_ray, committed=committed))

    assert [outcome.unchanged for outcome in outcomes] == [True, True, True]
    assert told == []


def test_outcomes_between_files_that_run_are_told_too(earlier, tmp_path):
    specs, committed = earlier
    fresh = [
        specs[0].model_copy(update={"sink": str(tmp_path / f"out/fresh{i}.jsonl")})
        for i in range(2)
    ]
    alias = str(tmp_path / "out" / ".." / "0.jsonl")
    onto_itself = specs[0].model_copy(update={"sink": alias})
    files = [fresh[0], specs[1], onto_itself, fresh[1]]

    outcomes = list(sd.BatchRunner(doubler()).run_many(iter(files), committed=committed))

    by_sink = {outcome.spec.sink: outcome for outcome in outcomes}
    assert len(outcomes) == len(by_sink) == 4
    assert by_sink[specs[1].sink].unchanged
    assert isinstance(by_sink[onto_itself.sink].error, sd.SpecError)
    assert by_sink[fresh[0].sink].result and by_sink[fresh[1].sink].result
