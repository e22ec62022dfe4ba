"""What the check of a source finds, before anything runs."""

from __future__ import annotations

import json
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import sheaf_dagster as sd
from sheaf_dagster import BatchRunner, BatchSpec, ModelSpec
from tests.batch.jobs import leftovers, spec
from tests.conftest import read_rows
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


def rows_with_ids(path, *numbers: int | None) -> str:
    """Writes rows whose ids end in these numbers; None for a row without."""
    path.write_text(
        "".join(
            json.dumps(
                {"model_type": "number", "model_name": "m", "value": i}
                | ({} if number is None else {"request_id": str(UUID(int=number))})
            )
            + "\n"
            for i, number in enumerate(numbers)
        )
    )
    return str(path)


def test_rows_that_share_an_id_are_counted_and_warned_of(tmp_path, caplog):
    source = rows_with_ids(tmp_path / "in.jsonl", 7, None, None, 8, 7, 8, 7)

    result = BatchRunner(doubler()).run(spec(source, tmp_path, compute="local"))

    assert (result.validation.duplicate_ids, result.validation.ok) == (3, True)
    assert [row["value"] for row in read_rows(result.sink)] == [0, 2, 4, 6, 8, 10, 12]
    said = "3 rows have the id of an earlier row (line 5 has the 'request_id' of line 1)"
    assert said in caplog.text
    assert said in result.validation.summary()


def test_rows_of_several_files_that_share_an_id_are_told_by_their_files(tmp_path):
    files = [rows_with_ids(tmp_path / f"{n}.jsonl", n, 9) for n in range(2)]
    job = BatchSpec(source=files, sink=str(tmp_path / "out.jsonl"))

    report = BatchRunner(doubler()).validate(job)

    assert report.duplicate_ids == 1
    assert report.first_duplicate == f"line 2 has the 'request_id' of line 2 of {files[0]}"


def test_a_strict_job_refuses_rows_that_share_an_id(tmp_path):
    source = rows_with_ids(tmp_path / "in.jsonl", 7, 8, None, 7)
    job = spec(source, tmp_path, strict=True, compute="local")

    with pytest.raises(sd.InputValidationError, match=r"line 4, field 'request_id': .* line 1"):
        BatchRunner(doubler()).run(job)
    recorded = BatchRunner(doubler()).run(job.model_copy(update={"on_invalid": "record"}))

    assert recorded.error_rows == recorded.validation.invalid_rows == 1
    assert recorded.validation.duplicate_ids == 0
    assert "same" in read_rows(recorded.sink)[3]["error"]["message"]


@pytest.mark.parametrize("odd", [False, True], ids=["columns", "lines"])
def test_rows_of_a_table_that_share_an_id_are_counted_too(odd, tmp_path):
    ids = [str(UUID(int=n)) if n else None for n in (7, 0, 8, 7, 0)]
    table = pa.table({"model_name": ["m"] * 5, "value": [1.0] * 5, "request_id": ids})
    if odd:  # a column that no contract knows, of a kind that is read as lines
        table = table.append_column("more", pa.array([float("nan")] * 5))
    pq.write_table(table, tmp_path / "in.parquet")
    job = spec(tmp_path / "in.parquet", tmp_path)

    report = BatchRunner(doubler()).validate(job)
    strict = BatchRunner(doubler()).validate(job.model_copy(update={"strict": True}))

    assert report.ok
    assert report.first_duplicate == "row 4 has the 'request_id' of row 1"
    assert "request_id" in [v.field for v in strict.violations if v.line == 4]
