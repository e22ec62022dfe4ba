"""What the arrival sensor asks for: which partitions, in how many runs, and that these work."""

from __future__ import annotations

import os
from datetime import UTC, datetime

import dagster as dg
from dagster._core.test_utils import freeze_time

import sheaf_dagster as sd
from tests.definitions.inbox import DAYS, MANY, ROW, Inbox

OTHER, THIRD = (ROW.replace(b'"value": 1', b'"value": %d' % n) for n in (2, 3))


def test_a_late_file_runs_its_old_partition_and_tomorrows_waits_for_tomorrow(inbox):
    box = inbox(dg.DailyPartitionsDefinition("2026-01-01"))
    box.drop("2026-01-02.jsonl")
    box.drop("2026-03-05.jsonl")
    with freeze_time(datetime(2026, 3, 5, 12, tzinfo=UTC)):
        assert box.asked() == ["2026-01-02"]
        assert box.asked() == []
    assert "no such partition (yet): 2026-03-05.jsonl" in box.reason
    with freeze_time(datetime(2026, 3, 6, 0, 1, tzinfo=UTC)):
        assert box.asked() == ["2026-03-05"]
        assert box.asked() == []


def test_new_keys_of_dynamic_partitions_are_added(inbox):
    box = inbox(MANY)
    for name in ("b", "a", "two..dots"):
        box.drop(f"{name}.jsonl")
    assert sorted(box.asked()) == ["a", "b", "two..dots"]
    assert set(box.instance.get_dynamic_partitions("files")) == {"a", "b", "two..dots"}

    for name in (" blank", "three...dots", "~home", "new\nline"):
        box.drop(f"{name}.jsonl")
    os.link(
        box.files.folder / "in/a.jsonl", os.fsencode(box.files.folder) + b"/in/latin-\xe9.jsonl"
    )
    assert box.asked() == []
    assert "4 passed over, unsafe partition key:  blank.jsonl" in box.reason
    assert "name is not UTF-8: latin-\\udce9.jsonl" in box.reason


def test_new_keys_of_a_dynamic_dimension_are_added(inbox):
    stations = dg.DynamicPartitionsDefinition(name="stations")
    both = dg.MultiPartitionsDefinition({"day": DAYS, "station": stations})
    box = inbox(both, source="{root}/in/{station}-{day}.jsonl")
    for name in ("new-york-2026-01-05", "new-york-2026-01-06", "bern-2026-09-01", "a|b-2026-01-05"):
        box.drop(f"{name}.jsonl")
    assert sorted(box.asked()) == ["2026-01-05|new-york", "2026-01-06|new-york"]
    assert box.instance.get_dynamic_partitions("stations") == ["new-york"]
    assert box.asked() == []
    assert "no such partition (yet): bern-2026-09-01.jsonl" in box.reason
    assert "unsafe partition key: a|b-2026-01-05.jsonl" in box.reason


def test_neighbours_share_a_run_up_to_the_limit(inbox):
    box = inbox(files_per_run=3)
    for day in (1, 2, 3, 4, 6, 9, 10):
        box.drop(f"2026-01-{day:02}.jsonl")
    assert box.asked() == [
        "2026-01-01..2026-01-03",
        "2026-01-04",
        "2026-01-06",
        "2026-01-09..2026-01-10",
    ]
    assert box.asked() == []


def test_dynamic_keys_that_come_together_share_a_run_of_just_these(inbox):
    box = inbox(MANY, files_per_run=10)
    box.instance.add_dynamic_partitions("files", ["before"])
    for i, name in enumerate("zmb"):
        os.utime(box.drop(f"{name}.jsonl"), (i + 1, i + 1))
    (request,) = box.tick().run_requests

    result = box.run(request)

    assert result.success
    made = box.instance.get_materialized_partitions(box.asset.key)
    assert made == {"z", "m", "b"}
    box.drop("q.jsonl")
    assert box.asked() == ["q"]


def test_of_a_file_that_has_changed_only_the_changed_rows_are_run(inbox):
    box = inbox(batch=sd.BatchOptions(reuse="previous"))
    for rows, ran in ((ROW * 3 + OTHER, 2), (OTHER + ROW + THIRD, 1)):
        box.drop("2026-01-05.jsonl", rows)
        (request,) = box.tick().run_requests
        assert box.run(request).success

        (record,) = box.instance.fetch_materializations(box.asset.key, limit=1).records
        made = record.asset_materialization.metadata
        changed = made["changed_rows"].value - made["repeated_rows"].value
        assert changed == ran


def test_a_tick_asks_for_a_bounded_number_oldest_first(inbox):
    box = inbox(max_files_per_tick=2)
    for day in range(1, 6):
        os.utime(box.drop(f"2026-01-{day:02}.jsonl"), (100 - day, 100 - day))
    assert box.asked() == ["2026-01-05", "2026-01-04"]
    assert box.asked() == ["2026-01-03", "2026-01-02"]
    assert box.asked() == ["2026-01-01"]
    assert box.asked() == []


def test_an_unpartitioned_asset_runs_when_its_file_changes(inbox):
    box = inbox(None, source=None)
    box.drop("neighbour.jsonl")
    assert box.asked() == []
    assert "passed over" not in box.reason
    box.drop("all.jsonl")
    (request,) = box.tick().run_requests
    assert box.run(request).success
    assert box.asked() == []
    box.drop("all.jsonl", ROW * 3)
    assert box.asked() == [None]


def test_the_run_reads_the_file_that_landed(files, instance):
    box = Inbox(files, instance, source="{root}/landing/{partition_key}.jsonl")
    files.put("landing/2026-01-05.jsonl", ROW)
    (request,) = box.tick().run_requests

    result = box.run(request)

    assert result.success
    assert instance.get_materialized_partitions(box.asset.key) == {"2026-01-05"}
    (event,) = result.get_asset_materialization_events()
    assert event.materialization.metadata["dagster/partition_row_count"].value == 1


def test_assets_downstream_can_run_in_the_same_run(inbox):
    @dg.asset(deps=["predictions"], partitions_def=DAYS)
    def report() -> None: ...

    box = inbox(also=[report])
    box.drop("2026-01-05.jsonl")
    (request,) = box.tick().run_requests

    assert box.run(request).success
    assert box.instance.get_materialized_partitions(report.key) == {"2026-01-05"}


def test_a_file_that_fails_validation_is_asked_for_once_more_only_when_it_changes(inbox):
    box = inbox()
    box.drop("2026-01-05.jsonl", b'{"model_name": "m", "value": "x"}\n')
    (request,) = box.tick().run_requests

    assert not box.run(request).success
    assert [box.asked() for _ in range(3)] == [[], [], []]
    box.drop("2026-01-05.jsonl")
    (request,) = box.tick().run_requests
    assert box.run(request).success
