"""Assets on a real instance: any partitions, ranges with a bad day, retries, run config."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import pytest

import sheaf_dagster as sd
from tests.conftest import ROOT, read_rows
from tests.toys import doubler

KEY = dg.AssetKey("predictions")
DAYS = dg.DailyPartitionsDefinition("2026-01-01", end_date="2026-01-11")


class Project:
    """A source folder, an asset, one downstream asset, an instance."""

    def __init__(self, root: Path, partitions_def=None, backend_kwargs=None, **fields) -> None:
        self.root = root
        self.partitions_def = partitions_def
        self.downstream_ran: list[list[str]] = []
        name = "{partition_key}" if partitions_def else "all"
        self.asset = sd.build_batch_inference_asset(
            KEY,
            **{
                "source": f"{{root}}/in/{name}.jsonl",
                "sink": f"{{root}}/out/{name}.jsonl",
                "partitions_def": partitions_def,
                "compute": "local",
                "batch_size": 4,
                **fields,
            },
        )

        @dg.asset(
            deps=[KEY],
            partitions_def=partitions_def,
            backfill_policy=dg.BackfillPolicy.single_run() if partitions_def else None,
        )
        def downstream(context) -> None:
            self.downstream_ran.append(list(context.partition_keys) if partitions_def else [])

        self.defs = dg.Definitions(
            assets=[self.asset, downstream],
            resources={
                "model": sd.ModelResource.from_spec(doubler(**(backend_kwargs or {}))),
                "ray_cluster": sd.RayClusterResource(),
                "storage": sd.StorageResource(root=str(root)),
            },
        )
        (root / "dagster").mkdir(parents=True, exist_ok=True)
        self.instance = dg.DagsterInstance.local_temp(str(root / "dagster"))

    def write(self, key: str, values: list) -> None:
        path = self.root / "in" / f"{key}.jsonl"
        path.parent.mkdir(exist_ok=True)
        rows = [{"model_name": "m", "value": v} for v in values]
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))

    def run(self, first=None, last=None, *, key=None, config=None, only=None, parent=None):
        tags = {}
        if first:
            tags["dagster/asset_partition_range_start"] = first
            tags["dagster/asset_partition_range_end"] = last
        if parent:
            tags |= {"dagster/parent_run_id": parent, "dagster/root_run_id": parent}
        job = self.defs.resolve_implicit_global_asset_job_def()
        return job.execute_in_process(
            instance=self.instance,
            tags=tags,
            partition_key=key,
            raise_on_error=False,
            run_config={"ops": {"predictions": {"config": config or {}}}},
            asset_selection=[KEY] if only else None,
        )

    def records(self):
        found = self.instance.fetch_materializations(
            dg.AssetRecordsFilter(asset_key=KEY), limit=999
        )
        return list(reversed(found.records))

    def logged(self, run_id: str) -> list[str]:
        return [str(r.partition_key) for r in self.records() if r.run_id == run_id]


def checks(result) -> dict[str, bool]:
    return {
        e.event_specific_data.check_name: e.event_specific_data.passed
        for e in result.all_events
        if e.event_type_value == "ASSET_CHECK_EVALUATION"
    }


def failure(result) -> str:
    return next(
        e.event_specific_data.error.message
        for e in result.all_events
        if e.event_type_value == "STEP_FAILURE"
    )


@pytest.fixture
def year(tmp_path) -> Project:
    project = Project(tmp_path, DAYS)
    for i, key in enumerate(DAYS.get_partition_keys()):
        project.write(key, [i, i + 1, i + 2])
    return project


def test_a_range_is_one_run_with_one_materialisation_a_partition(year):
    keys = DAYS.get_partition_keys()

    result = year.run(keys[0], keys[-1])

    assert result.success
    assert year.logged(result.run_id) == keys
    assert year.downstream_ran == [keys]
    assert set(checks(result).values()) == {True}
    assert len(checks(result)) == 5
    md = year.records()[4].asset_materialization.metadata
    assert md["dagster/partition_row_count"].value == 3
    assert md["dagster/uri"].value.endswith("/out/2026-01-05.jsonl")
    assert "| request | response |" in md["preview"].value
    versions = {r.asset_materialization.tags["dagster/data_version"] for r in year.records()}
    assert len(versions) == 10


def test_a_bad_day_costs_a_day(year):
    keys = DAYS.get_partition_keys()
    year.write(keys[4], [1, "x"])
    os.unlink(year.root / "in" / f"{keys[7]}.jsonl")

    result = year.run(keys[0], keys[-1])

    good = [k for k in keys if k not in (keys[4], keys[7])]
    assert not result.success
    assert year.logged(result.run_id) == good
    assert year.downstream_ran == []
    message = failure(result)
    assert "2 of 10 partitions failed" in message
    assert "2026-01-05: " in message
    assert "line 2, field 'value'" in message
    assert "2026-01-08.jsonl does not exist" in message
    assert checks(result)["input_rows_are_valid"] is False
    assert not (year.root / "out" / f"{keys[4]}.jsonl").exists()

    year.write(keys[4], [1])
    year.write(keys[7], [2])
    again = year.run(keys[0], keys[-1], parent=result.run_id)

    assert again.success
    assert year.logged(again.run_id) == [keys[4], keys[7]], "done ones are passed over"
    assert len(year.downstream_ran) == 1


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


def test_a_model_resource_that_cannot_work_is_no_matter_for_retries(tmp_path):
    project = Project(tmp_path, retry_policy=dg.RetryPolicy(max_retries=2))
    project.write("all", [1])
    project.defs.resources["model"] = sd.ModelResource(
        name="m", model_type="number", backend="tests.toys:Doubler", num_gpus=1.5
    )

    result = project.run()

    assert "model 'm': num_gpus: num_gpus=1.5: a worker reserves a fraction" in failure(result)
    assert not [e for e in result.all_events if e.event_type_value == "STEP_UP_FOR_RETRY"]


def test_dagster_sees_whether_an_upstream_partition_has_changed_since(tmp_path):
    from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
    from dagster._core.loader import LoadingContextForTest

    project = Project(tmp_path, DAYS, deps=["upstream"])
    keys = DAYS.get_partition_keys()[:3]
    upstream = dg.AssetKey("upstream")
    writer = dg.asset(name="upstream", partitions_def=DAYS)(lambda: None)

    def write(key: str, value: int) -> None:
        project.write(key, [value])
        project.instance.report_runless_asset_event(
            dg.AssetMaterialization(
                upstream, partition=key, tags={"dagster/data_version": f"v{value}"}
            )
        )

    def status(key: str) -> StaleStatus:
        graph = dg.Definitions(
            assets=[project.asset, writer],
            resources=project.defs.resources,
        ).resolve_asset_graph()
        loading = LoadingContextForTest(project.instance)
        resolver = CachingStaleStatusResolver(project.instance, graph, loading)
        return resolver.get_status(KEY, key)

    for key in keys:
        write(key, 1)
    assert project.run(keys[0], keys[-1]).success
    assert [status(k) for k in keys] == [StaleStatus.FRESH] * 3

    write(keys[1], 2)

    assert [status(k) for k in keys] == [StaleStatus.FRESH, StaleStatus.STALE, StaleStatus.FRESH]


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


def test_run_config_changes_one_materialisation(tmp_path):
    project = Project(tmp_path, backend_kwargs={"fail_on": 3})
    project.write("all", list(range(10)))
    config = {"batch_size": 5, "on_error": "record", "row_limit": 7}
    result = project.run(config=config)
    assert result.success
    rows = read_rows(tmp_path / "out/all.jsonl")
    assert len(rows) == 7
    assert rows[0]["batch"] <= 5
    assert rows[3]["error"]["message"] == "cannot double 3"
    assert checks(result)["no_row_failed"] is False
    assert project.records()[-1].asset_materialization.metadata["row_limit"].value == 7
    with pytest.raises(dg.DagsterInvalidConfigError, match="batch_sise"):
        project.run(config={"batch_sise": 5})


@pytest.mark.ray
def test_actors_beyond_the_limit_fail_with_the_sum_before_a_row_is_read(tmp_path, ray_cluster):
    project = Project(tmp_path, compute="actors", num_actors=3)
    project.defs.resources["model"] = sd.ModelResource.from_spec(doubler(num_gpus=1))
    project.defs.resources["ray_cluster"] = sd.RayClusterResource(gpu_limit=2)
    result = project.run()
    assert "3 actors × 1 GPU = 3 GPUs, but the limit (gpu_limit) is 2" in failure(result)


@pytest.mark.ray
def test_a_range_on_actors(tmp_path, ray_cluster):
    project = Project(
        tmp_path, DAYS, {"load_log": str(tmp_path / "loads")}, compute="actors", num_actors=2
    )
    keys = DAYS.get_partition_keys()
    for k in keys:
        project.write(k, [1, 2, 3, 4, 5])
    result = project.run(keys[0], keys[-1])
    assert sorted(project.logged(result.run_id)) == keys
    loads = (tmp_path / "loads").read_text().split()
    assert 1 <= len(loads) <= 2, "once an actor; one may do it all alone"
    assert len(loads) == len(set(loads))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sink": "{root}/out.jsonl"}, "same for every partition"),
        (
            {"source": "{base}/{partition_key}"},
            r"unknown placeholder \{base\}; known here: \{root\}",
        ),
        ({"compute": "actors"}, "asset predictions: .*needs num_actors"),
        ({"batch_size": 0}, "batch_size: Input should be greater than 0"),
    ],
)
def test_arguments_that_cannot_work_are_refused_at_definition(tmp_path, fields, message):
    with pytest.raises(sd.SpecError, match=message):
        Project(tmp_path, DAYS, **fields)


def test_resources_convert_both_ways_and_refuse_ray_client():
    spec = doubler(num_gpus=0.5, jitter=True)
    assert sd.ModelResource.from_spec(spec).to_spec() == spec
    with pytest.raises(ValueError, match="load_log is None, which Dagster's config can't hold"):
        sd.ModelResource.from_spec(doubler(load_log=None))
    with pytest.raises(ValueError, match='over which Ray Data does not run. Use "auto"'):
        sd.RayClusterResource(address="ray://head:10001")


def test_rows_can_be_kept_out_of_what_is_shown(tmp_path):
    project = Project(tmp_path, redact_rows=True)
    project.write("all", ["secret-name"])
    result = project.run()
    assert "secret-name" not in str(list(result.all_events))
    project.write("all", [1])
    project.run()
    assert "preview" not in project.records()[-1].asset_materialization.metadata


CHILD = """
import sys
from pathlib import Path
from tests.definitions.test_asset import DAYS, Project
import dagster as dg
project = Project(Path(sys.argv[1]), DAYS, {"batch_seconds": 0.15})
keys = DAYS.get_partition_keys()
project.run(keys[0], keys[-1], only=True)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_or_interrupted_run_keeps_what_is_done(tmp_path, how):
    keys = DAYS.get_partition_keys()
    project = Project(tmp_path, DAYS, {"batch_seconds": 0.15})
    for k in keys:
        project.write(k, list(range(12)))
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path)], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while len(project.records()) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(how)
    child.wait(timeout=20)

    done = [r.partition_key for r in project.records()]
    assert 3 <= len(done) < 10
    assert sorted(done) == sorted(set(done))
    (run,) = {r.run_id for r in project.records()}
    rest = project.run(keys[0], keys[-1], parent=run)
    assert rest.success
    assert sorted(project.logged(rest.run_id)) == sorted(set(keys) - set(done))
    assert sorted(os.listdir(tmp_path / "out")) == [f"{k}.jsonl" for k in keys]
