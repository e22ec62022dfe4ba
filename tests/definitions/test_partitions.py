"""Assets of any partitions: which files a key names, and which keys are refused."""

from __future__ import annotations

import dagster as dg
import pytest

import sheaf_dagster as sd
from tests.conftest import read_rows
from tests.definitions.project import DAYS, Project, failure


def test_partitions_that_would_share_a_file_do_not_overwrite_each_other(tmp_path):
    grid = dg.MultiPartitionsDefinition(
        {
            "a": dg.StaticPartitionsDefinition(["x", "xy"]),
            "b": dg.StaticPartitionsDefinition(["yz", "z"]),
        }
    )
    project = Project(
        tmp_path, grid, source="{root}/in/{a}-{b}.jsonl", sink="{root}/out/{a}{b}.jsonl"
    )
    for value, key in enumerate(["x-yz", "x-z", "xy-yz", "xy-z"]):
        project.write(key, [value])
    keys = grid.get_partition_keys()

    result = project.run(keys[0], keys[-1])

    assert "partitions x|yz and xy|z have the same sink" in failure(result)
    assert [r["value"] for r in read_rows(tmp_path / "out/xyz.jsonl")] == [0]
    assert len(project.logged(result.run_id)) == 3


def test_without_partitions(tmp_path):
    project = Project(tmp_path)
    project.write("all", [1, 2, 3])
    result = project.run()
    assert result.success
    md = project.records()[0].asset_materialization.metadata
    assert md["dagster/row_count"].value == 3
    assert project.downstream_ran == [[]]


def test_static_dynamic_and_multi_dimensional_partitions(tmp_path):
    static = Project(tmp_path / "s", dg.StaticPartitionsDefinition(["eu", "us"]))
    for key in ("eu", "us"):
        (tmp_path / "s").mkdir(exist_ok=True)
        static.write(key, [1])
    assert static.logged(static.run("eu", "us").run_id) == ["eu", "us"]

    (tmp_path / "d").mkdir()
    dynamic = Project(tmp_path / "d", dg.DynamicPartitionsDefinition(name="files"))
    dynamic.instance.add_dynamic_partitions("files", ["b", "a", "c"])
    for key in "abc":
        dynamic.write(key, [1])
    assert dynamic.logged(dynamic.run("b", "c").run_id) == ["b", "a", "c"]

    (tmp_path / "m").mkdir()
    multi = Project(
        tmp_path / "m",
        dg.MultiPartitionsDefinition(
            {"date": DAYS, "region": dg.StaticPartitionsDefinition(["eu", "us"])}
        ),
        source="{root}/in/{region}-{date}.jsonl",
        sink="{root}/out/{region}/{date}.jsonl",
    )
    multi.write("us-2026-01-02", [1])
    key = dg.MultiPartitionKey({"date": "2026-01-02", "region": "us"})
    result = multi.run(key=key)
    assert result.success
    assert (tmp_path / "m/out/us/2026-01-02.jsonl").exists()
    assert multi.records()[0].partition_key == key


def test_a_range_of_two_dimensions_is_one_run(tmp_path):
    regions = dg.StaticPartitionsDefinition(["eu", "us"])
    project = Project(
        tmp_path, dg.MultiPartitionsDefinition({"date": DAYS, "region": regions}), batch_size=1
    )
    keys = project.partitions_def.get_partition_keys()[:4]
    for key in keys:
        project.write(key, [1])

    result = project.run(keys[0], keys[-1])

    assert result.success
    assert project.logged(result.run_id) == keys
    assert {k[:10] for k in keys} == {"2026-01-01", "2026-01-02"}


def test_partitions_whose_files_would_be_the_same_are_refused(tmp_path):
    dimensions = {
        "a": dg.StaticPartitionsDefinition(["x", "x-y"]),
        "b": dg.StaticPartitionsDefinition(["z", "y-z"]),
    }
    project = Project(
        tmp_path, dg.MultiPartitionsDefinition(dimensions), sink="{root}/out/{a}-{b}.jsonl"
    )
    keys = project.partitions_def.get_partition_keys()
    for key in keys:
        project.write(key, [1])

    result = project.run(keys[0], keys[-1])

    assert "1 of 4 partitions failed" in failure(result)
    assert "partitions x|y-z and x-y|z have the same sink" in failure(result)
    assert project.logged(result.run_id) == [k for k in keys if k != "x-y|z"]


def test_a_file_may_be_the_source_of_several_partitions_and_the_sink_of_one(tmp_path):
    grid = dg.MultiPartitionsDefinition(
        {"date": DAYS, "variant": dg.StaticPartitionsDefinition(["large", "small"])}
    )
    project = Project(tmp_path, grid, source="{root}/in/{date}.jsonl")
    project.write("2026-01-01", [1, 2])

    result = project.run("2026-01-01|large", "2026-01-01|small")

    assert result.success
    assert project.logged(result.run_id) == ["2026-01-01|large", "2026-01-01|small"]
    with pytest.raises(sd.SpecError, match="differ in variant only; put {variant} into it"):
        Project(tmp_path, grid, sink="{root}/out/{date}.jsonl")
    with pytest.raises(sd.SpecError, match="differ in date and variant only"):
        Project(tmp_path, grid, source="{root}/in.jsonl")


def test_a_sink_that_is_the_source_is_refused_where_it_is_written():
    both = "{root}/{partition_key}.jsonl"

    with pytest.raises(sd.SpecError, match="source and sink are the same file"):
        sd.build_batch_inference_asset("a", source=both, sink=both, partitions_def=DAYS)


def test_where_all_partitions_failed_none_is_said_to_be_there(tmp_path):
    project = Project(tmp_path, DAYS)
    for key in ("2026-01-01", "2026-01-02"):
        project.write(key, ["none"])

    one = project.run(key="2026-01-01")
    both = project.run("2026-01-01", "2026-01-02")

    assert "Failure: 2026-01-01: " in failure(one)
    assert "1 of 1 rows are invalid (1 violation)" in failure(one)
    assert "2 of 2 partitions failed:\n2026-01-01: " in failure(both)


def test_keys_may_hold_whatever_a_file_name_may(tmp_path):
    keys = ["two words", "Köln-東京-🙂", "é", "e\u0301", "12:30", "a::b", "file::c", "50%25", "#7"]
    keys += ["why?", "all*", "[ab]", "{root}", "$HOME", 'it\'s "so"', "a|b", "-v", "..x", "x.."]
    project = Project(tmp_path, dg.DynamicPartitionsDefinition(name="files"))
    project.instance.add_dynamic_partitions("files", keys)
    for i, key in enumerate(keys):
        project.write(key, [i])

    result = project.run(keys[0], keys[-1])

    assert result.success, failure(result)
    assert project.logged(result.run_id) == keys
    written = [read_rows(tmp_path / "out" / f"{k}.jsonl")[0]["value"] for k in keys]
    assert written == [2 * i for i in range(len(keys))]


REFUSED = ["..", "a/b", "/etc", "a\\b", "~root", "tab\there", "c1\x85", " blank "]


@pytest.mark.parametrize(
    ("key", "launch"),
    [*((key, "step") for key in REFUSED), ("..", "ray_job"), ("a/b", "ray_job")],
)
def test_keys_that_could_leave_the_root_are_refused(tmp_path, key, launch):
    project = Project(tmp_path, dg.DynamicPartitionsDefinition(name="files"), launch=launch)
    # Nothing listens there: a job that were submitted would be another failure.
    project.defs.resources["ray_cluster"] = sd.RayClusterResource(dashboard="http://127.0.0.1:1")
    project.instance.add_dynamic_partitions("files", [key])
    result = project.run(key=key)
    assert not result.success
    assert "could lead out of the storage root" in failure(result)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dagster"]


def test_hourly_files_make_a_daily_asset(tmp_path):
    hours = dg.HourlyPartitionsDefinition("2026-01-01-00:00")
    project = Project(tmp_path, DAYS, source_partitions=sd.SourcePartitions(hours))
    for h in range(24):
        project.write(f"2026-01-02-{h:02}:00", [h])
    result = project.run(key="2026-01-02")
    assert result.success
    assert [r["value"] for r in read_rows(tmp_path / "out/2026-01-02.jsonl")] == [
        2 * h for h in range(24)
    ]


WEEKDAYS = dg.TimeWindowPartitionsDefinition(
    start="2024-01-01", end="2024-02-26", fmt="%Y-%m-%d", cron_schedule="0 0 * * 1-5"
)


@pytest.mark.parametrize(
    ("upstream", "sinks"),
    [
        (WEEKDAYS, dg.WeeklyPartitionsDefinition("2023-12-31", end_date="2024-02-25")),
        (
            WEEKDAYS,
            dg.WeeklyPartitionsDefinition("2024-01-01", day_offset=1, end_date="2024-02-26"),
        ),
        (WEEKDAYS, dg.MonthlyPartitionsDefinition("2024-01-01", end_date="2024-03-01")),
        (
            dg.WeeklyPartitionsDefinition("2023-12-31", end_date="2024-02-25"),
            dg.MonthlyPartitionsDefinition("2023-12-01", end_date="2024-03-01"),
        ),
        (
            dg.HourlyPartitionsDefinition(
                "2024-03-30-00:00", end_date="2024-04-02-00:00", timezone="Europe/Berlin"
            ),
            dg.DailyPartitionsDefinition(
                "2024-03-30", end_date="2024-04-02", timezone="Europe/Berlin"
            ),
        ),
    ],
)
def test_each_source_file_is_in_one_sink(upstream, sinks, tmp_path):
    source = sd.SourcePartitions(upstream)
    with dg.DagsterInstance.ephemeral() as instance:
        read = [k for p in sinks.get_partition_keys() for k in source.keys_for(p, sinks, instance)]

    assert read == upstream.get_partition_keys()


def test_a_day_in_which_no_source_file_begins_says_so_and_how_to_take_those_that_overlap():
    days = dg.DailyPartitionsDefinition("2024-01-01")
    with dg.DagsterInstance.ephemeral() as instance:
        with pytest.raises(sd.SpecError, match="no window of source_partitions begins in it"):
            sd.SourcePartitions(WEEKDAYS).keys_for("2024-01-06", days, instance)
        overlapping = sd.SourcePartitions(WEEKDAYS, dg.TimeWindowPartitionMapping())

        assert overlapping.keys_for("2024-01-06", days, instance) == ["2024-01-05"]


def test_a_source_whose_files_belong_to_no_time_window_needs_a_mapping(tmp_path):
    static = dg.StaticPartitionsDefinition(["b", "a"])

    with pytest.raises(sd.SpecError, match="give SourcePartitions a mapping, such as"):
        Project(tmp_path, static, source_partitions=sd.SourcePartitions(static))

    project = Project(
        tmp_path,
        dg.StaticPartitionsDefinition(["all"]),
        source_partitions=sd.SourcePartitions(static, dg.AllPartitionMapping()),
    )
    project.write("a", [1])
    project.write("b", [2])
    assert project.run(key="all").success
    assert [r["value"] for r in read_rows(tmp_path / "out/all.jsonl")] == [4, 2]
