"""A materialisation by which only the failed rows are run, from the Launchpad or a backfill."""

from __future__ import annotations

import json
import os

import pytest

from tests.definitions.project import DAYS, Project, checks, failure
from tests.toys import Moody, shaped

KEYS = DAYS.get_partition_keys()[:3]
ONLY = {"only": "failed"}


@pytest.fixture
def project(tmp_path):
    """Three days, of which the first two have a row that failed; the model is mended since."""
    (moods := tmp_path / "moods").mkdir()
    (moods / "3").touch()
    model = shaped(Moody, moods=str(moods), call_log=str(tmp_path / "calls"))
    project = Project(tmp_path, DAYS, model=model, on_error="record")
    for key, values in zip(KEYS, ([1, 3], [3, 4, 5], [7, 8]), strict=True):
        project.write(key, values)
    assert checks(project.run(KEYS[0], KEYS[-1]))["no_row_failed"] is False
    (moods / "3").unlink()
    (tmp_path / "calls").unlink()
    return project


def values(project, key):
    lines = (project.root / "out" / f"{key}.jsonl").read_bytes().splitlines()
    return [json.loads(line).get("value") for line in lines]


def test_the_failed_rows_of_a_range_are_run_and_what_is_whole_is_left(project):
    again = project.run(KEYS[0], KEYS[-1], config=ONLY)

    assert again.success
    assert [values(project, key) for key in KEYS] == [[2, 6], [6, 8, 10], [14, 16]]
    assert (project.root / "calls").read_text().split() == ["1", "1"]
    assert project.logged(again.run_id) == KEYS[:2]
    assert checks(again)["no_row_failed"] is True
    metadata = project.records()[-1].asset_materialization.metadata
    assert metadata["reused_rows"].value == 2
    assert metadata["error_rows"].value == 0
    said = [e.user_message for e in project.instance.all_logs(again.run_id)]
    assert f"{KEYS[1]}: 1 rows were run, 2 keep their answers" in said
    assert f"{KEYS[2]}: no row failed in its last output; nothing was run" in said


def test_each_partition_of_a_backfill_is_materialised_whether_it_had_failures_or_not(project):
    before = {r.partition_key: r.asset_materialization for r in project.records()}

    again = project.run(KEYS[0], KEYS[-1], config=ONLY, tags={"dagster/backfill": "b"})

    assert sorted(project.logged(again.run_id)) == KEYS
    now = {r.partition_key: r.asset_materialization for r in project.records()}
    versions = [[made[key].tags["dagster/data_version"] for key in KEYS] for made in (before, now)]
    assert [a == b for a, b in zip(*versions, strict=True)] == [False, False, True]


def test_a_partition_that_was_never_run_fails_alone(project):
    os.unlink(project.root / "out" / f"{KEYS[0]}.jsonl")

    again = project.run(KEYS[0], KEYS[1], config=ONLY)

    assert "doesn't exist, so there are no failed rows" in failure(again)
    assert project.logged(again.run_id) == [KEYS[1]]


def test_what_dagster_knows_of_source_and_model_decides_what_may_be_kept(project):
    path = project.root / "in" / f"{KEYS[1]}.jsonl"
    path.write_text(path.read_text().replace('"value": 4', '"value": 4.5'))

    changed = project.run(KEYS[0], KEYS[1], config=ONLY)
    renewed = Project(project.root, DAYS, {"batch_seconds": 0.1})
    renewed.instance = project.instance
    other = renewed.run(KEYS[1], KEYS[1], config=ONLY)

    assert "line 2: the last output has another row's answer in its place" in failure(changed)
    assert values(project, KEYS[1]) == [None, 8, 10]
    assert project.logged(changed.run_id) == [KEYS[0]]
    assert "has the answers of another version of the model 'doubler'" in failure(other)


def test_rows_that_a_source_gained_are_not_passed_over_where_no_row_failed(project):
    project.write(KEYS[2], [7, 8, 9])

    grown = project.run(KEYS[1], KEYS[2], config=ONLY)

    assert f"{KEYS[2]}.jsonl has 2 lines, but the source has 3 rows" in failure(grown)
    assert project.logged(grown.run_id) == [KEYS[1]]
    assert values(project, KEYS[2]) == [14, 16]
