"""The arrival sensor, tick by tick, against a real instance: which files count, and when."""

from __future__ import annotations

import os
import time

import dagster as dg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sheaf_dagster as sd
from tests.definitions.inbox import DAYS, MANY, ROW, Bucket, Disk, Inbox


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
