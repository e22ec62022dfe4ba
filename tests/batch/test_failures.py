"""Jobs that fail in every compute mode: with what error, and what they leave."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Event

import pytest

import sheaf_dagster as sd
from sheaf_dagster import BatchRunner, ClusterConfig
from sheaf_dagster.batch.rows.chunk_validation import validate_chunks
from sheaf_dagster.batch.validation import validate_source
from sheaf_dagster.batch.worker.loading import ModelContext
from sheaf_dagster.storage import Location, scan_source
from tests.batch.jobs import here_and_in_workers, leftovers, spec
from tests.conftest import read_rows
from tests.toys import doubler


@here_and_in_workers
def test_a_bad_line_is_named_before_the_model_loads(mode, write_rows, tmp_path):
    log = tmp_path / "loads"
    source = write_rows([1, 2, "three", 4, None])
    Path(source).write_text("\n\n" + Path(source).read_text() + "[1]\n{oops\n")

    with pytest.raises(sd.InputValidationError) as caught:
        BatchRunner(doubler(load_log=str(log))).run(spec(source, tmp_path, **mode))

    report = caught.value.report
    assert [(v.line, v.field) for v in report.violations] == [
        (5, "value"),
        (7, "value"),
        (8, ""),
        (9, ""),
    ]
    assert (report.rows, report.invalid_rows) == (7, 4)
    assert "line 5, field 'value': Input should be a valid number" in str(caught.value)
    assert not log.exists()
    assert leftovers(tmp_path) == []


@here_and_in_workers
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"drop_last": True},
            r"lines 1–4: Doubler.batch_predict returned 3 responses for 4 requests",
        ),
        ({"reverse": True}, r"line 1: Doubler answered request .* instead of"),
    ],
)
def test_wrong_responses_are_refused(mode, write_rows, tmp_path, kwargs, message):
    source = write_rows([1, 2, 3, 4])
    with pytest.raises(sd.ResponseMismatchError, match=message):
        BatchRunner(doubler(**kwargs)).run(spec(source, tmp_path, batch_size=4, **mode))
    assert "out.jsonl" not in leftovers(tmp_path)


def test_a_source_rewritten_between_scan_and_validation_is_an_error_even_if_it_looks_the_same(
    tmp_path,
):
    path = tmp_path / "in.jsonl"
    path.write_text('{"model_type": "number", "model_name": "m", "value": 1000}\n' * 20)
    before = path.stat()
    source = scan_source([Location.of(str(path))], 5)
    text = path.read_text()
    with path.open("r+") as f:  # one row less, but size, time and inode as they were
        f.write(text[: -len(text) // 20].ljust(len(text) - 1) + "\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    contract = ModelContext.of(doubler()).rows

    checks = validate_chunks(contract, [f.text for f in source.files], source.chunks)

    source.check_unchanged()
    with pytest.raises(sd.SourceChangedError, match=r"in.jsonl changed .* \(from line 16\)"):
        validate_source(source, checks)


@here_and_in_workers
def test_a_failing_row_is_named_with_the_backends_own_error(mode, write_rows, tmp_path):
    source = write_rows(list(range(64)))
    with pytest.raises(sd.PredictError, match=r"in.jsonl, line 42: .*ValueError: cannot double 41"):
        BatchRunner(doubler(fail_on=41)).run(spec(source, tmp_path, batch_size=16, **mode))
    assert "out.jsonl" not in leftovers(tmp_path)


@here_and_in_workers
def test_failing_rows_are_recorded_in_place(mode, write_rows, tmp_path):
    calls = tmp_path / "calls"
    values = list(range(256))
    model = doubler(fail_on=100, call_log=str(calls))

    result = BatchRunner(model).run(
        spec(write_rows(values), tmp_path, batch_size=64, on_error="record", **mode)
    )

    rows = read_rows(result.sink)
    assert result.error_rows == 1
    assert rows[100]["error"] == {"type": "ValueError", "message": "cannot double 100"}
    assert [r["value"] for i, r in enumerate(rows) if i != 100] == [
        2 * v for v in values if v != 100
    ]
    assert len(calls.read_text().split()) <= 4 + 2 * 6 + 1


def test_out_of_memory_halves_the_batch(write_rows, tmp_path):
    result = BatchRunner(doubler(memory_rows=10)).run(
        spec(write_rows(list(range(64))), tmp_path, batch_size=32, compute="local")
    )
    assert [r["value"] for r in read_rows(result.sink)] == [2 * i for i in range(64)]
    assert result.halved_batches == 6


def test_a_load_that_fails_ends_the_job_with_its_error(mode, write_rows, tmp_path):
    with pytest.raises(
        sd.BackendLoadError, match=r"load\(\) of backend .* failed.*OSError: weights are gone"
    ):
        BatchRunner(doubler(fail_load=True)).run(spec(write_rows([1, 2]), tmp_path, **mode))


@pytest.mark.ray
@pytest.mark.parametrize(
    ("compute", "engine"),
    # Tasks of ray_core: test_poison_rows. A worker of ray_data that dies once: test_crashes.
    [pytest.param("tasks", "ray_data", marks=pytest.mark.long), ("actors", "ray_core")],
)
def test_rows_that_kill_their_worker_are_reported_not_retried_for_ever(
    ray_cluster, write_rows, tmp_path, compute, engine
):
    fields = {"batch_size": 4, "compute": compute, "num_actors": 1 if compute == "actors" else None}
    with pytest.raises(
        sd.WorkerCrashError, match=r"in.jsonl, the 4 rows from line 9: .*died 4 times"
    ):
        BatchRunner(doubler(exit_on=9), ClusterConfig(engine=engine)).run(
            spec(write_rows(list(range(40))), tmp_path, **fields)
        )


@pytest.mark.ray
@pytest.mark.parametrize("engine", ["ray_core", pytest.param("ray_data", marks=pytest.mark.long)])
def test_a_worker_whose_place_is_taken_when_it_dies_comes_back(
    ray_cluster, write_rows, tmp_path, engine
):
    import ray

    def is_running(progress) -> None:
        # Waits for a CPU, and has the first one that is free.
        if progress.rows_done and not others:
            others.append(ray.remote(num_cpus=1)(Event).remote())

    others: list = []
    model = doubler(batch_seconds=0.02, exit_on=380, exit_once=str(tmp_path / "died"))
    runner = BatchRunner(model, ClusterConfig(engine=engine), is_running)

    result = runner.run(spec(write_rows(list(range(400))), tmp_path, batch_size=4))

    ray.get(others[0].is_set.remote(), timeout=300)
    ray.kill(others[0])
    assert (tmp_path / "died").exists()
    assert [r["value"] for r in read_rows(result.sink)] == [2 * i for i in range(400)]


@pytest.mark.ray
@pytest.mark.parametrize(
    ("compute", "engine"),
    [("tasks", "ray_core"), pytest.param("actors", "ray_data", marks=pytest.mark.long)],
)
def test_a_worker_that_dies_once_costs_nothing(ray_cluster, write_rows, tmp_path, compute, engine):
    fields = {"batch_size": 4, "compute": compute, "num_actors": 2 if compute == "actors" else None}
    model = doubler(exit_on=50, exit_once=str(tmp_path / "died"))
    runner = BatchRunner(model, ClusterConfig(engine=engine))
    result = runner.run(spec(write_rows(list(range(200))), tmp_path, **fields))
    assert [r["value"] for r in read_rows(result.sink)] == [2 * i for i in range(200)]
    assert (tmp_path / "died").exists()


@pytest.mark.ray
@pytest.mark.parametrize(
    ("gpus", "actors", "limit", "message"),
    [
        (1, 3, 2, r"3 actors × 1 GPU = 3 GPUs, but the limit \(gpu_limit\) is 2"),
        (2, 3, None, r"3 actors × 2 GPU = 6 GPUs, but the Ray cluster has 4"),
        (0.75, 6, None, r"6 actors × 0.75 GPU = 4.5 GPUs"),
    ],
)
def test_too_many_gpus_are_refused_with_the_sum(
    ray_cluster, tmp_path, gpus, actors, limit, message
):
    runner = BatchRunner(doubler(num_cpus=0, num_gpus=gpus), sd.ClusterConfig(gpu_limit=limit))
    # The source does not even exist: the sum is checked before anything is read.
    with pytest.raises(sd.ClusterCapacityError, match=message):
        runner.run(spec("nowhere.jsonl", tmp_path, compute="actors", num_actors=actors))


def test_a_source_that_changes_meanwhile_is_an_error(write_rows, tmp_path):
    source = write_rows(list(range(50)))
    outcomes = BatchRunner(doubler(batch_seconds=0.01)).run_many(
        [spec(source, tmp_path, batch_size=5, compute="local")]
    )
    runner = BatchRunner(
        doubler(batch_seconds=0.01), on_progress=lambda p: open(source, "a").write("{}\n")
    )
    del outcomes
    with pytest.raises(sd.SourceChangedError, match="changed while the job ran"):
        runner.run(spec(write_rows(list(range(800))), tmp_path, batch_size=5, compute="local"))
    assert "out.jsonl" not in leftovers(tmp_path)
