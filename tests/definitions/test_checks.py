"""What a red check names, where it stands, and what it holds up."""

from __future__ import annotations

import dagster as dg
import pytest

import sheaf_dagster as sd
from tests.definitions.project import DAYS, KEY, Project, evaluations


def test_the_red_check_names_file_line_and_field_in_words_and_as_a_table(tmp_path):
    project = Project(tmp_path, DAYS)
    keys = DAYS.get_partition_keys()[:3]
    for key in keys:
        project.write(key, [1, "two", 3] if key == keys[1] else [1])

    result = project.run(keys[0], keys[-1])

    check = evaluations(result)["input_rows_are_valid"]
    assert not check.passed
    assert check.severity == dg.AssetCheckSeverity.ERROR
    assert check.description.startswith(f"{keys[1]}: ")
    assert "1 of 3 rows are invalid" in check.description
    assert "line 2, field 'value': Input should be a valid number" in check.description
    (record,) = check.metadata["violations"].value.records
    assert (record.data["partition"], record.data["line"]) == (keys[1], 2)
    assert record.data["field"] == "value"
    assert record.data["got"] == "'two'"
    assert check.metadata["files_checked"].value == 3
    assert evaluations(result)["order_is_kept"].description == "2 rows in 2 files"


def test_a_red_check_stands_at_its_day_where_one_asks_for_it(tmp_path):
    project = Project(tmp_path, DAYS, {"fail_on": 7}, on_error="record", checks_by_partition=True)
    keys = DAYS.get_partition_keys()[:4]
    for key, values in zip(keys, ([1], [1, "two"], [7], [1]), strict=True):
        project.write(key, values)

    def red(check: str) -> dict[str | None, bool]:
        known = project.instance.event_log_storage.get_asset_check_partition_info(
            [dg.AssetCheckKey(KEY, check)]
        )
        ended = [k for k in known if k.latest_execution_status.value != "PLANNED"]
        assert all(k.is_current for k in ended)
        return {k.partition_key: k.latest_execution_status.value == "FAILED" for k in ended}

    first = project.run(keys[0], keys[3], only=True)

    # The sum over the range stands at no day.
    assert evaluations(first)["input_rows_are_valid"].partition is None
    assert red("input_rows_are_valid") == {
        **dict.fromkeys((None, keys[1]), True),
        **dict.fromkeys((keys[0], keys[2], keys[3]), False),
    }
    assert red("no_row_failed") == {None: True, keys[0]: False, keys[2]: True, keys[3]: False}
    of_day = [e for e in first.get_asset_check_evaluations() if e.partition == keys[1]]
    (bad,) = of_day
    assert "line 2, field 'value': Input should be a valid number" in str(bad.description)

    project.write(keys[1], [1, 2])
    again = project.run(keys[0], keys[3], only=True, parent=first.run_id)

    assert project.logged(again.run_id) == [keys[1]]
    assert set(red("input_rows_are_valid").values()) == {False}
    assert red("no_row_failed") == {
        **dict.fromkeys((None, keys[2]), True),
        **dict.fromkeys((keys[0], keys[1], keys[3]), False),
    }

    project.write(keys[2], [2])
    project.run(key=keys[2], only=True)

    assert red("no_row_failed")[keys[2]] is False


def test_a_row_that_the_model_fails_on_is_named_by_its_check(tmp_path):
    project = Project(tmp_path, backend_kwargs={"fail_on": 2})
    project.write("all", [1, 2, 3])

    result = project.run()

    check = evaluations(result)["no_row_failed"]
    assert not check.passed
    assert "line 2" in check.description
    assert "cannot double 2" in check.description


@pytest.mark.parametrize(
    ("severity", "downstream_runs"),
    [(dg.AssetCheckSeverity.WARN, True), (dg.AssetCheckSeverity.ERROR, False)],
)
def test_severity_decides_whether_downstream_waits(tmp_path, severity, downstream_runs):
    project = Project(
        tmp_path,
        backend_kwargs={"fail_on": 2},
        on_error="record",
        check_severities={"no_row_failed": severity},
        retry_policy=dg.RetryPolicy(max_retries=1),
    )
    project.write("all", [1, 2, 3])

    result = project.run()

    assert evaluations(result)["no_row_failed"].severity == severity
    assert evaluations(result)["no_row_failed"].description == "1 of 3 rows failed"
    assert result.success == downstream_runs
    assert bool(project.downstream_ran) == downstream_runs
    assert len(project.records()) == 1, "the file is committed either way, and not run again"


def test_a_check_that_does_not_exist_has_no_severity(tmp_path):
    with pytest.raises(sd.SpecError, match="there is no check 'order'; known: input_rows_"):
        Project(tmp_path, check_severities={"order": dg.AssetCheckSeverity.WARN})
