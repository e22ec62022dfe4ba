"""What the check of a source finds, before anything runs."""

from __future__ import annotations

import json

import pytest

import sheaf_dagster as sd
from sheaf_dagster import BatchRunner, ModelSpec
from tests.batch.jobs import leftovers, spec
from tests.toys import doubler


def test_a_row_of_another_model_type_is_named(write_rows, tmp_path):
    source = write_rows([1])
    with open(source, "a") as f:
        f.write('{"model_type": "embedding", "model_name": "m", "value": 1}\n')
    with pytest.raises(
        sd.InputValidationError,
        match="line 2, field 'model_type': is 'embedding', but the model serves 'number'",
    ):
        BatchRunner(doubler()).run(spec(source, tmp_path, compute="local"))


def test_all_violations_are_counted_and_the_first_hundred_shown(write_rows, tmp_path):
    report = BatchRunner(doubler()).validate(spec(write_rows(["x"] * 250), tmp_path))
    assert (len(report.violations), report.total_violations, report.ok) == (100, 250, False)
    assert leftovers(tmp_path) == []


def test_one_bad_element_of_a_union_is_one_violation(tmp_path):
    path = tmp_path / "in.jsonl"
    row = {"model_type": "time_series", "model_name": "m", "horizon": 1, "frequency": "1d"}
    path.write_text(json.dumps({**row, "history": [1, 2, "x", *range(50)]}) + "\n")
    model = ModelSpec(name="m", model_type="time_series", backend="statsforecast")
    (violation,) = BatchRunner(model).validate(spec(path, tmp_path)).violations
    assert (violation.field, violation.excerpt) == ("history.2", "'x'")


def test_redaction_keeps_values_out(write_rows, tmp_path):
    runner = BatchRunner(doubler(), redact_rows=True)
    report = runner.validate(spec(write_rows(["secret-name"]), tmp_path))
    assert "secret" not in report.summary()


def test_limits_of_a_cluster_are_no_matter_where_nothing_is_run(write_rows, tmp_path):
    limits = sd.ClusterConfig(gpu_limit=0, cpu_limit=0.5)
    runner = BatchRunner(doubler(num_gpus=2), limits)

    report = runner.validate(
        spec(write_rows([1, 2]), tmp_path, compute="actors", num_actors=64, batch_size=1)
    )

    assert (report.ok, report.rows) == (True, 2)
    with pytest.raises(sd.ClusterCapacityError):
        runner.run(spec(write_rows([1, 2]), tmp_path))
