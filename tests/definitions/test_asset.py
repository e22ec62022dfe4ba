"""Assets on a real instance: ranges with a bad day, run config, resources, arguments."""

from __future__ import annotations

import os

import dagster as dg
import pytest

import sheaf_dagster as sd
from tests.conftest import read_rows
from tests.definitions.project import DAYS, KEY, Project, checks, failed_step, failure
from tests.toys import doubler


def test_a_range_is_one_run_with_one_materialisation_a_partition(year):
    keys = DAYS.get_partition_keys()

    result = year.run(keys[0], keys[-1])

    assert result.success
    assert year.logged(result.run_id) == keys
    assert year.downstream_ran == [keys]
    assert set(checks(result).values()) == {True}
    assert len(checks(result)) == 7
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


def test_of_many_failed_partitions_the_first_are_told_and_the_others_counted(tmp_path):
    keys = [f"p{i:02}" for i in range(23)]
    project = Project(tmp_path, dg.StaticPartitionsDefinition(keys))
    for key in keys[:-1]:
        project.write(key, ["x" * 9000] * 9)
    project.write(keys[-1], [1])

    result = project.run(keys[0], keys[-1], only=True)

    message, told = failure(result), failed_step(result).user_failure_data.metadata
    assert "22 of 23 partitions failed; the others are materialised:\np00: " in message
    assert "\n… and 2 more: this run's log has an error for each" in message
    assert [key for key in keys if f"\n{key}: " in message] == keys[:20]
    assert len(message) < 50_000
    assert list(told["failed_partitions"].value) == keys[:20]
    assert told["failed_partitions_count"].value == 22
    (check,) = [c for c in result.get_asset_check_evaluations() if not c.passed]
    assert check.description.startswith("22 partitions, first of them p00: line 1, field 'value'")
    assert list(check.metadata["failing"].value) == keys[:20]
    assert check.metadata["failing_count"].value == 22
    assert project.logged(result.run_id) == [keys[-1]]


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


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"batch_size": -3}, "ops.predictions.config.batch_size: Input should be greater than 0 (got -3)"),
        ({"batch_timeout": 0.0}, "ops.predictions.config.batch_timeout: Input should be greater than 0 (got 0.0)"),
        ({"max_error_fraction": 1.0}, "ops.predictions.config.max_error_fraction: Input should be less than 1 (got 1.0)"),
        ({"batch_timeout": float("inf")}, "ops.predictions.config: batch_timeout: Input should be a finite number"),
        ({"compute": "actors"}, "ops.predictions.config: spec: compute='actors' needs num_actors"),
    ],
)  # fmt: skip
def test_values_of_a_run_config_that_cannot_work_end_the_run_once(tmp_path, config, message):
    project = Project(tmp_path, DAYS, retry_policy=dg.RetryPolicy(max_retries=2))
    keys = DAYS.get_partition_keys()

    result = project.run(keys[0], keys[1], only=True, config=config)

    assert failure(result).startswith(
        f"dagster._core.definitions.events.Failure: run config, {message}"
    )
    assert failure(result).count("ops.predictions") == 1, "not once a partition"
    assert not [e for e in result.all_events if e.event_type_value == "STEP_UP_FOR_RETRY"]


def test_a_run_config_may_be_written_in_python(tmp_path):
    project = Project(tmp_path, DAYS)
    project.write("2026-01-01", [1, 2, 3])

    result = dg.materialize(
        [project.asset],
        partition_key="2026-01-01",
        resources=project.defs.resources,
        run_config=dg.RunConfig({"predictions": sd.BatchConfig(row_limit=2, compute="local")}),
    )

    assert result.success
    assert len(read_rows(tmp_path / "out/2026-01-01.jsonl")) == 2


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
    with pytest.raises(ValueError, match='Ray Data does not run over Ray Client. Use "auto"'):
        sd.RayClusterResource(address="ray://head:10001")


def test_rows_can_be_kept_out_of_what_is_shown(tmp_path):
    project = Project(tmp_path, redact_rows=True)
    project.write("all", ["secret-name"])
    result = project.run()
    assert "secret-name" not in str(list(result.all_events))
    project.write("all", [1])
    project.run()
    assert "preview" not in project.records()[-1].asset_materialization.metadata
