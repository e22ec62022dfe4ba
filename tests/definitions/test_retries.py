"""Runs that failed, were killed or are repeated: what is run again, what is passed over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import dagster as dg
import pytest

import sheaf_dagster as sd
from tests.conftest import ROOT
from tests.definitions.project import DAYS, Project, checks, failure


def test_a_retry_runs_what_changed_or_vanished(year):
    keys = DAYS.get_partition_keys()
    year.write(keys[0], ["x"])
    first = year.run(keys[0], keys[3])
    year.write(keys[0], [1])
    year.write(keys[1], [9, 9])
    os.unlink(year.root / "out" / f"{keys[2]}.jsonl")

    again = year.run(keys[0], keys[3], parent=first.run_id)

    assert sorted(year.logged(again.run_id)) == keys[:3]


def test_a_retry_that_fails_again_still_owns_what_it_passed_over(year):
    keys = DAYS.get_partition_keys()
    year.write(keys[0], ["x"])
    first = year.run(keys[0], keys[3])

    again = year.run(keys[0], keys[3], parent=first.run_id)

    assert not again.success
    assert sorted(year.logged(again.run_id)) == keys[1:4]


def test_a_run_that_is_all_done_can_be_run_again_and_says_what_its_checks_found(tmp_path):
    project = Project(tmp_path, DAYS, {"fail_on": 3}, on_error="record")
    keys = DAYS.get_partition_keys()[:2]
    project.write(keys[0], [1, 3])
    project.write(keys[1], [1, 2])
    first = project.run(*keys)

    again = project.run(*keys, parent=first.run_id)

    assert again.success
    assert project.logged(again.run_id) == []
    assert checks(again) == checks(first)
    assert checks(again)["no_row_failed"] is False


def test_a_retry_does_not_get_by_a_check_that_blocks(tmp_path):
    project = Project(
        tmp_path,
        DAYS,
        {"fail_on": 3},
        on_error="record",
        check_severities={"no_row_failed": dg.AssetCheckSeverity.ERROR},
    )
    keys = DAYS.get_partition_keys()[:2]
    project.write(keys[0], [1, 3])
    project.write(keys[1], [1, 2])
    first = project.run(*keys)

    again = project.run(*keys, parent=first.run_id)
    project.write(keys[0], [1, 2])
    mended = project.run(*keys, parent=again.run_id)

    assert not first.success
    assert not again.success
    assert project.logged(again.run_id) == [keys[0]], "what is held back is run again"
    assert "checks failed: no_row_failed" in failure(again)
    assert mended.success
    assert project.downstream_ran == [keys]


def test_a_model_resource_that_cannot_work_is_no_matter_for_retries(tmp_path):
    project = Project(tmp_path, retry_policy=dg.RetryPolicy(max_retries=2))
    project.write("all", [1])
    project.defs.resources["model"] = sd.ModelResource(
        name="m", model_type="number", backend="tests.toys:Doubler", num_gpus=1.5
    )

    result = project.run()

    assert "model 'm': num_gpus: num_gpus=1.5: a worker reserves a fraction" in failure(result)
    assert not [e for e in result.all_events if e.event_type_value == "STEP_UP_FOR_RETRY"]


def test_materialising_anew_always_runs(year):
    keys = DAYS.get_partition_keys()
    first, second = year.run(key=keys[0]), year.run(key=keys[0])
    assert year.logged(first.run_id) == year.logged(second.run_id) == [keys[0]]


def test_a_step_retry_resumes_and_logs_nothing_twice(tmp_path):
    project = Project(tmp_path, DAYS, retry_policy=dg.RetryPolicy(max_retries=2))
    keys = DAYS.get_partition_keys()[:3]
    for k in keys:
        project.write(k, [1, 2])
    lock = tmp_path / "out" / f".{keys[1]}.jsonl.sheaf"
    lock.mkdir(parents=True)
    import fcntl

    # Another job holds the second sink: a retryable failure, which stays for all attempts.
    with open(lock / "lock", "w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        result = project.run(keys[0], keys[-1])

    assert not result.success
    assert sum(e.event_type_value == "STEP_RESTARTED" for e in result.all_events) == 2
    assert project.logged(result.run_id) == [keys[0], keys[2]]


def test_invalid_input_is_not_retried(tmp_path):
    project = Project(tmp_path, retry_policy=dg.RetryPolicy(max_retries=3))
    project.write("all", ["x"])
    result = project.run()
    assert not result.success
    assert "line 1, field 'value'" in failure(result)
    assert not any(e.event_type_value == "STEP_UP_FOR_RETRY" for e in result.all_events)


CHILD = """
import json, sys
from pathlib import Path
from tests.definitions.project import DAYS, Project
import dagster as dg
project = Project(Path(sys.argv[1]), DAYS, json.loads(sys.argv[2]), on_disk=True)
keys = DAYS.get_partition_keys()
project.run(keys[0], keys[-1], only=True)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_or_interrupted_run_keeps_what_is_done(tmp_path, how):
    keys = DAYS.get_partition_keys()
    first = tmp_path / "first"
    first.touch()
    # However late the signal comes: the first run doesn't get past the fifth day.
    model = {"slow_while": str(first), "slow_from": 5}
    project = Project(tmp_path, DAYS, model, on_disk=True)
    for day, k in enumerate(keys):
        project.write(k, [day] * 12)
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path), json.dumps(model)],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while len(project.records()) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(how)
    child.wait(timeout=300)
    first.unlink()

    done = [r.partition_key for r in project.records()]
    assert 3 <= len(done) <= 5
    assert sorted(done) == sorted(set(done))
    (run,) = {r.run_id for r in project.records()}
    rest = project.run(keys[0], keys[-1], parent=run)
    assert rest.success
    assert sorted(project.logged(rest.run_id)) == sorted(set(keys) - set(done))
    assert sorted(os.listdir(tmp_path / "out")) == [f"{k}.jsonl" for k in keys]
