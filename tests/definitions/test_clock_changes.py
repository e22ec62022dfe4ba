"""Hours that come twice, or never, where clocks are set back and forth."""

from __future__ import annotations

import dagster as dg

import sheaf_dagster as sd
from tests.conftest import read_rows
from tests.definitions.inbox import Disk, Inbox
from tests.definitions.project import Project

HOURS = dg.HourlyPartitionsDefinition(
    "2025-10-26-00:00", end_date="2025-10-26-05:00", timezone="Europe/Berlin"
)
"""With two hours from two to three, of which the second is 02:00+0100."""


def test_the_hour_that_comes_twice_is_asked_for_twice(tmp_path, instance):
    box = Inbox(Disk(tmp_path / "files"), instance, HOURS)
    keys = HOURS.get_partition_keys()
    for key in keys:
        box.drop(f"{key}.jsonl")

    asked = box.asked()

    assert len(keys) == 6
    assert sorted(asked) == sorted(keys)


def test_a_file_that_names_an_offset_by_mistake_waits(tmp_path, instance):
    box = Inbox(Disk(tmp_path / "files"), instance, HOURS)
    box.drop("2025-10-26-01:00+0100.jsonl")

    asked = box.asked()

    assert asked == []
    assert "2025-10-26-01:00+0100.jsonl" in box.reason


def test_a_range_over_the_change_writes_a_file_for_each_hour(tmp_path):
    project = Project(tmp_path, HOURS)
    keys = HOURS.get_partition_keys()
    for i, key in enumerate(keys):
        project.write(key, [i])

    result = project.run(keys[0], keys[-1])

    assert result.success
    written = [read_rows(tmp_path / "out" / f"{key}.jsonl")[0]["value"] for key in keys]
    assert written == [2 * i for i in range(6)]


def test_a_day_of_twenty_five_hours_reads_all_of_them():
    days = dg.DailyPartitionsDefinition("2025-10-25", timezone="Europe/Berlin")
    hours = dg.HourlyPartitionsDefinition("2025-10-25-00:00", timezone="Europe/Berlin")

    with dg.instance_for_test() as instance:
        keys = sd.SourcePartitions(hours).keys_for("2025-10-26", days, instance)

    assert len(keys) == 25
    assert "2025-10-26-02:00+0100" in keys
