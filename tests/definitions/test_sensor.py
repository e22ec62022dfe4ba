"""The arrival sensor, tick by tick, against a real instance."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.test_utils import freeze_time
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sheaf_dagster as sd
from tests.definitions.inbox import DAYS, ROW, Bucket, Disk, Inbox, MakeInbox

MANY = dg.DynamicPartitionsDefinition(name="files")


@pytest.fixture(scope="module")
def new_home(tmp_path_factory) -> Path:
    """The files of an instance in which nothing has happened: copying them is fast."""
    home = tmp_path_factory.mktemp("home")
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        instance.get_dynamic_partitions("")
        instance.get_run_records()
    return home


@pytest.fixture
def instance(tmp_path, new_home) -> Iterator[dg.DagsterInstance]:
    home = shutil.copytree(new_home, tmp_path / "home")
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        yield instance


@pytest.fixture
def inbox(tmp_path, instance) -> MakeInbox:
    return lambda *args, **kwargs: Inbox(Disk(tmp_path), instance, *args, **kwargs)


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.s3)])
def files(request, tmp_path) -> Disk | Bucket:
    return Disk(tmp_path) if request.param == "disk" else Bucket(request.getfixturevalue("s3"))


def test_each_version_of_a_file_is_asked_for_once(files, instance):
    box = Inbox(files, instance)
    assert box.asked() == []
    same_second = time.time()

    def drop(day: str) -> None:  # S3's clock has seconds; the disk's is set to one
        made = box.drop(f"2026-01-{day}.jsonl")
        if isinstance(files, Disk):
            os.utime(made, (same_second, same_second))

    drop("02")
    drop("01")
    assert sorted(box.asked()) == ["2026-01-01", "2026-01-02"]
    assert box.asked() == []
    assert "no new files among 2" in box.reason

    # A third one of the same second is not lost, and the last one seen may vanish.
    drop("03")
    files.remove("in/2026-01-02.jsonl")
    assert box.asked() == ["2026-01-03"]
    assert box.asked() == []

    box.drop("2026-01-01.jsonl", ROW * 2)
    assert box.asked() == ["2026-01-01"], "changed content runs again"
    assert box.asked() == []

    # All are gone, and the oldest comes back changed.
    for day in ("01", "03"):
        files.remove(f"in/2026-01-{day}.jsonl")
    assert box.asked() == []
    box.drop("2026-01-01.jsonl", ROW * 3)
    assert box.asked() == ["2026-01-01"]


@pytest.mark.s3
def test_an_object_is_known_by_its_content(s3, instance):
    box = Inbox(Bucket(s3), instance)
    box.drop("2026-01-01.jsonl")
    assert box.asked() == ["2026-01-01"]

    box.drop("2026-01-01.jsonl")  # the same bytes at another time
    assert box.asked() == []
    box.drop("2026-01-01.jsonl", ROW.replace(b"1}", b"2}"))  # as many others
    assert box.asked() == ["2026-01-01"]
    box.files.remove("in/2026-01-01.jsonl")
    assert box.asked() == []
    box.drop("2026-01-01.jsonl", ROW.replace(b"1}", b"2}"))
    assert box.asked() == [], "back as it was"


@pytest.mark.s3
def test_only_files_of_the_prefix_count(s3, instance):
    both = dg.MultiPartitionsDefinition(
        {"day": DAYS, "station": dg.StaticPartitionsDefinition(["north", "south"])}
    )
    box = Inbox(Bucket(s3), instance, both, source="{root}/in/{day}/{station}.jsonl")
    for name in ("", "2026-01-01/", "2026-01-01/.hidden.jsonl", "2026-01-01/deep/er.jsonl"):
        box.drop(name, b"" if name.endswith("/") else ROW)
    s3.put("data/inner/2026-01-01/north.jsonl", ROW)
    box.drop("2026-01-01/north.jsonl")

    assert box.asked() == ["2026-01-01|north"]
    assert box.asked() == []
    assert "passed over" not in box.reason


@pytest.mark.s3
def test_a_bucket_that_is_not_there_is_an_error_and_an_empty_prefix_is_not(s3, instance):
    box = Inbox(Bucket(s3), instance)
    assert box.asked() == []
    absent = Inbox(Bucket(s3), instance, source="s3://no-such-bucket/{partition_key}.jsonl")
    with pytest.raises(sd.SourceError, match="no such bucket"):
        absent.tick()


def test_run_keys_differ_by_version_and_survive_a_repeated_tick(inbox):
    box = inbox()
    box.drop("2026-01-01.jsonl")
    (first,) = box.tick().run_requests
    box.drop("2026-01-01.jsonl", ROW * 2)
    (second,) = box.tick(saved=False).run_requests
    assert first.run_key != second.run_key

    (again,) = box.tick().run_requests
    assert again.run_key == second.run_key


def test_files_that_are_not_ready_wait_and_say_why(inbox):
    box = inbox(settle_seconds=60)
    old = time.time() - 120
    for name, data in {
        "2026-01-01.jsonl.tmp": ROW,
        "2026-01-02.jsonl.part": ROW,
        ".2026-01-03.jsonl": ROW,
        "2026-01-04.jsonl": b"",
        "2026-02-04.jsonl": ROW,
        "readme.txt": b"hello",
        "2026-1-7.jsonl": ROW,
    }.items():
        os.utime(box.drop(name, data), (old, old))
    growing = box.drop("2026-01-05.jsonl")
    ahead = time.time() + 30  # the file server's clock
    os.utime(box.drop("2026-01-06.jsonl"), (ahead, ahead))

    assert box.asked() == []
    for remark in (
        "unfinished by its name: 2026-01-01.jsonl.tmp, 2026-01-02.jsonl.part",
        "empty: 2026-01-04.jsonl",
        "modified just now: 2026-01-05.jsonl, 2026-01-06.jsonl",
        "no such partition (yet): 2026-02-04.jsonl",
        "name does not fit the template: 2026-1-7.jsonl, readme.txt",
    ):
        assert remark in box.reason
    assert "2026-01-03" not in box.reason

    os.utime(growing, (old, old))
    (box.files.folder / "in/2026-01-01.jsonl.tmp").rename(box.files.folder / "in/2026-01-01.jsonl")
    os.utime(box.drop("2026-01-04.jsonl"), (old, old))
    assert sorted(box.asked()) == ["2026-01-01", "2026-01-04", "2026-01-05"]


def test_empty_files_run_where_one_says_so(inbox):
    box = inbox(run_empty=True)
    box.drop("2026-01-04.jsonl", b"")
    assert box.asked() == ["2026-01-04"]


def test_a_late_file_runs_its_old_partition_and_tomorrows_waits_for_tomorrow(inbox):
    box = inbox(dg.DailyPartitionsDefinition("2026-01-01"))
    box.drop("2026-01-02.jsonl")
    box.drop("2026-03-05.jsonl")
    with freeze_time(datetime(2026, 3, 5, 12, tzinfo=timezone.utc)):
        assert box.asked() == ["2026-01-02"]
        assert box.asked() == []
    assert "no such partition (yet): 2026-03-05.jsonl" in box.reason
    with freeze_time(datetime(2026, 3, 6, 0, 1, tzinfo=timezone.utc)):
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


def test_a_tick_asks_for_a_bounded_number_oldest_first(inbox):
    box = inbox(max_files_per_tick=2)
    for day in range(1, 6):
        os.utime(box.drop(f"2026-01-{day:02}.jsonl"), (100 - day, 100 - day))
    assert box.asked() == ["2026-01-05", "2026-01-04"]
    assert box.asked() == ["2026-01-03", "2026-01-02"]
    assert box.asked() == ["2026-01-01"]
    assert box.asked() == []


def test_a_file_that_changes_while_its_run_is_under_way_runs_after_it(inbox):
    box = inbox(files_per_run=2)
    for day in ("01", "02", "05"):
        box.drop(f"2026-01-{day}.jsonl")
    requests = box.tick().run_requests
    runs = [
        box.instance.create_run_for_job(
            box.job(), tags=dict(r.tags), status=dg.DagsterRunStatus.STARTED
        )
        for r in requests
    ]
    for day in ("02", "03", "05"):
        box.drop(f"2026-01-{day}.jsonl", ROW * 2)

    assert box.asked() == ["2026-01-03"]
    assert box.asked() == []
    held = "a run of its partition has not ended: 2026-01-02.jsonl, 2026-01-05.jsonl"
    assert held in box.reason

    box.instance.report_run_canceled(runs[0])
    assert box.asked() == ["2026-01-02"]
    box.instance.report_run_canceled(runs[1])
    assert box.asked() == ["2026-01-05"]
    assert box.asked() == []


def test_existing_files_can_be_skipped_and_a_reset_asks_for_all(inbox):
    box = inbox(skip_existing=True)
    box.drop("2026-01-01.jsonl")
    assert box.asked() == []
    box.drop("2026-01-02.jsonl")
    assert box.asked() == ["2026-01-02"]

    all_again = inbox()
    assert all_again.cursor is None
    assert sorted(all_again.asked()) == ["2026-01-01", "2026-01-02"]


def test_the_cursor_stays_small(inbox):
    box = inbox(MANY, max_files_per_tick=1000)
    for i in range(1000):
        box.drop(f"{i}.jsonl")
    assert len(box.asked()) == 1000
    assert len(box.cursor) < 20_000
    box.drop("one-more.jsonl")
    assert box.asked() == ["one-more"]
    assert len(box.cursor) < 200


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


def test_a_sensor_can_be_called_directly_as_any_other(inbox):
    box = inbox()
    box.drop("2026-01-05.jsonl")
    with dg.build_sensor_context(instance=box.instance, resources=box.files.resources) as context:
        result = box.sensor(context)
    assert [r.partition_key for r in result.run_requests] == ["2026-01-05"]


def test_mistakes_are_refused_when_the_sensor_is_made(inbox):
    asset = inbox().asset
    with pytest.raises(sd.SpecError, match=r"unknown placeholder \{day\}"):
        sd.build_jsonl_arrival_sensor(asset, "{root}/{day}.jsonl")
    with pytest.raises(sd.SpecError, match="same for every partition"):
        sd.build_jsonl_arrival_sensor(asset, "{root}/in.jsonl")
    with pytest.raises(sd.SpecError, match="at least 1"):
        sd.build_jsonl_arrival_sensor(asset, files_per_run=0)

    @dg.asset(partitions_def=DAYS)
    def other() -> None: ...

    with pytest.raises(sd.SpecError, match="doesn't say where its source is"):
        sd.build_jsonl_arrival_sensor(other)
    with pytest.raises(sd.SpecError, match="runs at most 1 partitions at a time"):
        sd.build_jsonl_arrival_sensor(other, "{root}/{partition_key}.jsonl", files_per_run=2)

    hourly = sd.build_batch_inference_asset(
        "daily",
        source="{root}/in/{partition_key}.jsonl",
        sink="{root}/out/{partition_key}.jsonl",
        partitions_def=DAYS,
        source_partitions=sd.SourcePartitions(dg.HourlyPartitionsDefinition("2026-01-01-00:00")),
    )
    with pytest.raises(sd.SpecError, match="reads several files for a partition"):
        sd.build_jsonl_arrival_sensor(hourly)


def test_a_cursor_of_another_sensor_is_refused(inbox):
    box = inbox()
    box.cursor = "from another sensor"
    with pytest.raises(sd.SpecError, match="reset it"):
        box.tick()


def test_a_template_in_the_middle_of_a_name_is_matched(inbox):
    box = inbox(source="{root}/in/{partition_key}/day-{partition_key}.v1.jsonl")
    box.drop("2026-01-05/day-2026-01-05.v1.jsonl")
    box.drop("2026-01-06/day-2026-01-07.v1.jsonl")
    assert box.asked() == ["2026-01-05"]


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from(["write", "delete"]), st.integers(0, 4)),
            st.tuples(st.sampled_from(["tick", "lost tick"]), st.just(0)),
        ),
        max_size=15,
    )
)
def test_whatever_happens_each_version_that_a_tick_can_see_is_asked_for_once(
    tmp_path_factory, instance, steps
):
    box = Inbox(Disk(tmp_path_factory.mktemp("box")), instance, MANY, max_files_per_tick=2)
    clock, asked, expected = 0, [], []
    there: dict[str, int] = {}

    def tick() -> list:
        new = [(r.partition_key, there[r.partition_key]) for r in box.tick().run_requests]
        asked.extend(new)
        return new

    for what, i in steps:
        name = f"file-{i}.jsonl"
        if what == "write":
            clock += 1
            os.utime(box.drop(name), (clock, clock))  # the same size, and another time
            there[f"file-{i}"] = clock
        elif what == "delete" and there.pop(f"file-{i}", None):
            box.files.remove(f"in/{name}")
        elif what == "tick":
            tick()
        elif what == "lost tick":
            box.tick(saved=False)
    while tick():
        pass

    expected = set(there.items())
    assert len(asked) == len(set(asked))
    assert expected <= set(asked)
