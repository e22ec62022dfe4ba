"""The factory's groups of arguments, and the one declaration of how a job runs."""

from __future__ import annotations

import inspect

import dagster as dg
import pytest

import sheaf_dagster as sd
from tests.definitions.project import Project

FILES = {"source": "{root}/in.jsonl", "sink": "{root}/out.jsonl"}
DAYS = dg.DailyPartitionsDefinition("2026-01-01")
FILES_BY_DAY = {"source": "{root}/in/{partition_key}.jsonl", "sink": "{root}/{partition_key}.jsonl"}


def test_the_factory_takes_few_arguments():
    assert len(inspect.signature(sd.build_batch_inference_asset).parameters) <= 16


def test_what_any_asset_has_comes_by_its_spec():
    given = dg.AssetSpec(
        ["demand", "forecasts"],
        deps=["history"],
        group_name="demand",
        owners=["team:planning"],
        tags={"tier": "1"},
        kinds={"chronos"},
        metadata={"runbook": "https://example.com", "sheaf_dagster/sink": "elsewhere"},
        code_version="7",
        automation_condition=dg.AutomationCondition.eager(),
        partitions_def=DAYS,
    )

    (spec,) = sd.build_batch_inference_asset(
        given, **FILES_BY_DAY, deps=["calendar"], model_asset="forecaster"
    ).specs

    assert spec.key == given.key
    assert [d.asset_key.to_user_string() for d in spec.deps] == [
        "history",
        "calendar",
        "forecaster",
    ]
    assert (spec.group_name, spec.owners) == ("demand", ["team:planning"])
    assert (spec.code_version, spec.partitions_def) == ("7", DAYS)
    assert spec.automation_condition == given.automation_condition
    assert spec.kinds == {"ray", "chronos"}
    assert spec.tags["tier"] == "1"
    assert spec.metadata["runbook"] == given.metadata["runbook"]
    assert spec.metadata["sheaf_dagster/sink"] == "elsewhere"
    assert "One answer to each row" in spec.description


def test_what_dagster_does_with_the_step_comes_by_step_options():
    retries = dg.RetryPolicy(max_retries=4)
    step = sd.StepOptions(
        retry_policy=retries,
        pool="gpus",
        op_tags={"dagster/priority": "3"},
        backfill_policy=dg.BackfillPolicy.multi_run(5),
    )

    asset = sd.build_batch_inference_asset("a", **FILES_BY_DAY, partitions_def=DAYS, step=step)

    assert asset.op.retry_policy == retries
    assert asset.op.pool == "gpus"
    assert asset.op.tags["dagster/priority"] == "3"
    assert asset.backfill_policy == dg.BackfillPolicy.multi_run(5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 4, "batch": sd.BatchOptions(batch_size=8)}, "a: batch_size is an argument and"),
        ({"compute": "actors"}, "a: .*compute='actors' needs num_actors"),
        ({"batch": sd.BatchOptions(on_error="record"), "batch_size": 0}, "a: batch_size: Input should"),
    ],
)  # fmt: skip
def test_options_that_cannot_work_together_are_named(fields, message):
    with pytest.raises(sd.SpecError, match=message):
        sd.build_batch_inference_asset("a", **FILES, **fields)


def test_partitions_are_given_once():
    with pytest.raises(
        sd.SpecError,
        match="partitions_def is given as an argument and in the AssetSpec; give it once",
    ):
        sd.build_batch_inference_asset(
            dg.AssetSpec("a", partitions_def=DAYS), **FILES_BY_DAY, partitions_def=DAYS
        )


def test_a_launch_that_there_is_not_is_refused():
    with pytest.raises(sd.SpecError, match="launch='job': must be 'step' or 'ray_job'"):
        sd.StepOptions(launch="job")


def test_a_run_may_change_each_option():
    known = sd.BatchConfig.model_fields

    assert set(sd.BatchOptions.model_fields) <= set(known)
    for name, field in sd.BatchOptions.model_fields.items():
        assert known[name].description == field.description
    assert sd.BatchConfig(auto_batch_size=True, strict=True).changes() == {
        "batch_size": "auto",
        "strict": True,
    }


def test_a_component_takes_each_option_but_the_one_of_trying_out():
    taken = set(sd.BatchInferenceComponent.model_fields)

    assert set(sd.BatchOptions.model_fields) - taken == {"row_limit"}


def test_strict_refuses_a_misspelt_field_by_option_and_by_run_config(tmp_path):
    lenient, strict = Project(tmp_path / "a"), Project(tmp_path / "b", strict=True)
    for project in (lenient, strict):
        (project.root / "in").mkdir()
        (project.root / "in/all.jsonl").write_text('{"model_name":"m","value":1,"valeu":2}\n')

    counted = lenient.run()
    refused = [strict.run(), lenient.run(config={"strict": True})]

    assert counted.success
    assert not any(r.success for r in refused)
    assert strict.run(config={"strict": False}).success
