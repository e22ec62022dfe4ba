"""Invalid rows that are tolerated: a green step, and checks that warn."""

from __future__ import annotations

import dagster as dg
import pytest

from tests.definitions.project import Project, checks, failure


@pytest.fixture
def tolerant(tmp_path):
    project = Project(tmp_path, on_invalid="record", max_error_rows=2, strict=True)
    project.write("all", [1, "x", 3, 4, 5])
    return project


def test_the_step_is_green_and_its_checks_warn_and_name_the_lines(tolerant):
    result = tolerant.run()

    assert result.success
    assert tolerant.downstream_ran == [[]]
    found = {e.check_name: e for e in result.get_asset_check_evaluations()}
    assert {name for name, passed in checks(result).items() if not passed} == {
        "input_rows_are_valid",
        "no_row_failed",
    }
    invalid, failed = found["input_rows_are_valid"], found["no_row_failed"]
    assert {invalid.severity, failed.severity} == {dg.AssetCheckSeverity.WARN}
    assert "line 2, field 'value'" in invalid.description
    assert "1 of 5 rows are invalid; they are error rows in the sink." in invalid.description
    assert failed.description == "1 of 5 rows failed, 1 of them invalid"
    metadata = tolerant.records()[-1].asset_materialization.metadata
    assert metadata["error_rows"].value == 1
    assert metadata["validation"].value.startswith("1 of 5 rows invalid (error rows), checked in ")
    assert "line 2, field 'value'" in metadata["preview_rows"].value


def test_past_the_limit_the_step_fails_and_for_one_run_the_limit_may_be_another(tolerant):
    tolerant.write("all", ["x", "y", "z", 4])

    failed = tolerant.run()
    mended = tolerant.run(config={"max_error_rows": 3})
    strict = tolerant.run(config={"on_invalid": "fail", "on_error": "record"})

    assert "3 of 4 rows are invalid; max_error_rows=2 allows 2 of 4" in failure(failed)
    assert mended.success
    assert "nothing was run or written" in failure(strict)


def test_one_run_may_tolerate_nothing(tolerant):
    failed = tolerant.run(config={"max_error_rows": 0})

    assert "1 of 5 rows are invalid; max_error_rows=0 allows 0 of 5" in failure(failed)
    assert tolerant.run(config={"max_error_fraction": 0.0}).success is False
