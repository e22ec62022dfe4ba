"""Jobs in every compute mode: order, content, validation first, failures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from threading import Event

import pytest

import sheaf_dagster as sd
from sheaf_dagster import BatchRunner, BatchSpec, ClusterConfig, ModelSpec
from tests.conftest import ROOT, read_rows
from tests.toys import doubler

MODES = [
    pytest.param({"compute": "local"}, id="local"),
    pytest.param({"compute": "tasks"}, id="tasks", marks=pytest.mark.ray),
    pytest.param({"compute": "actors", "num_actors": 2}, id="actors", marks=pytest.mark.ray),
]


@pytest.fixture(params=MODES)
def mode(request) -> dict:
    if request.param["compute"] != "local":
        request.getfixturevalue("ray_cluster")
    return request.param


def spec(source, tmp_path, **fields) -> BatchSpec:
    return BatchSpec(source=str(source), sink=str(tmp_path / "out" / "out.jsonl"), **fields)


def leftovers(tmp_path: Path) -> list[str]:
    return sorted(os.listdir(tmp_path / "out")) if (tmp_path / "out").exists() else []


def test_order_is_kept_with_uneven_latencies(mode, write_rows, tmp_path):
    source = write_rows(list(range(500)))

    result = BatchRunner(doubler(jitter=True)).run(spec(source, tmp_path, batch_size=4, **mode))

    rows = read_rows(result.sink)
    assert [r["value"] for r in rows] == [2.0 * i for i in range(500)]
    assert set(rows[0]) == {
        "request_id",
        "model_type",
        "model_name",
        "metadata",
        "value",
        "batch",
        "note",
    }
    assert (result.rows, result.chunks) == (500, 125)
    assert leftovers(tmp_path) == ["out.jsonl"]


@pytest.mark.ray
def test_all_modes_write_the_same_bytes(ray_cluster, write_rows, tmp_path):
    source = write_rows([float(i % 13) for i in range(700)])
    outputs = []
    for engine, mode in (
        ("auto", {"compute": "local"}),
        ("ray_data", {"compute": "tasks"}),
        ("ray_core", {"compute": "tasks"}),
        ("ray_data", {"compute": "actors", "num_actors": 3}),
        ("ray_core", {"compute": "actors", "num_actors": 3}),
    ):
        fields = {"batch_size": 8, "bucket_by": "value", **mode}
        runner = BatchRunner(doubler(num_cpus=0.5), ClusterConfig(engine=engine))
        result = runner.run(spec(source, tmp_path, **fields))
        outputs.append(Path(result.sink).read_bytes())
    assert len(outputs[0].splitlines()) == 700
    assert outputs == outputs[:1] * 5


def test_missing_request_ids_are_the_same_at_every_run(write_rows, tmp_path):
    source = write_rows([1, 1, 2])
    run = lambda: read_rows(
        BatchRunner(doubler()).run(spec(source, tmp_path, compute="local")).sink
    )  # noqa: E731
    first, second = run(), run()
    ids = [r["request_id"] for r in first]
    assert first == second
    assert len(set(ids)) == 3
    assert all(i[14] == "5" for i in ids)


@pytest.mark.ray
@pytest.mark.parametrize("compute", ["tasks", "actors"])
def test_the_model_is_loaded_once_per_worker(ray_cluster, write_rows, tmp_path, compute):
    log = tmp_path / "loads"
    source = write_rows(list(range(400)))
    model = doubler(load_log=str(log), batch_seconds=0.002)

    result = BatchRunner(model).run(
        spec(
            source,
            tmp_path,
            batch_size=4,
            compute=compute,
            num_actors=2 if compute == "actors" else None,
        )
    )

    loads = log.read_text().split()
    assert len(loads) == len(set(loads)), "no process loaded it twice"
    assert result.workers <= len(loads) < result.chunks / 2
    if compute == "actors":
        assert len(loads) <= 2  # on a slow machine one has done it all before the other is up


@pytest.mark.ray
def test_tasks_of_a_second_job_find_the_model_loaded(ray_cluster, write_rows, tmp_path):
    log = tmp_path / "loads"
    model = doubler(load_log=str(log), batch_seconds=0.002)
    fields = {"batch_size": 4, "compute": "tasks"}
    BatchRunner(model).run(spec(write_rows(list(range(200))), tmp_path, **fields))
    first = log.read_text().split()

    BatchRunner(model).run(spec(write_rows(list(range(7, 200))), tmp_path, **fields))

    again = log.read_text().split()
    # How many processes serve a job's tasks is Ray's choice; that one is asked twice is not.
    assert len(again) == len(set(again)), "no process loaded it twice"
    assert len(again) <= len(first) + 2


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


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"drop_last": True},
            r"lines 1–4: Doubler.batch_predict returned 3 responses for 4 requests",
        ),
        ({"reverse": True}, r"line 1: Doubler answered request .* in place of"),
    ],
)
def test_wrong_responses_are_refused(mode, write_rows, tmp_path, kwargs, message):
    source = write_rows([1, 2, 3, 4])
    with pytest.raises(sd.ResponseMismatchError, match=message):
        BatchRunner(doubler(**kwargs)).run(spec(source, tmp_path, batch_size=4, **mode))
    assert "out.jsonl" not in leftovers(tmp_path)


def test_a_failing_row_is_named_with_the_backends_own_error(mode, write_rows, tmp_path):
    source = write_rows(list(range(64)))
    with pytest.raises(sd.PredictError, match=r"in.jsonl, line 42: .*ValueError: cannot double 41"):
        BatchRunner(doubler(fail_on=41)).run(spec(source, tmp_path, batch_size=16, **mode))
    assert "out.jsonl" not in leftovers(tmp_path)


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
@pytest.mark.parametrize(("compute", "engine"), [("tasks", "ray_data"), ("actors", "ray_core")])
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
@pytest.mark.parametrize("engine", ["ray_core", "ray_data"])
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

    ray.get(others[0].is_set.remote(), timeout=60)
    ray.kill(others[0])
    assert (tmp_path / "died").exists()
    assert [r["value"] for r in read_rows(result.sink)] == [2 * i for i in range(400)]


@pytest.mark.ray
@pytest.mark.parametrize(("compute", "engine"), [("tasks", "ray_core"), ("actors", "ray_data")])
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


@pytest.mark.ray
def test_gpus_that_fit_run(ray_cluster, write_rows, tmp_path):
    result = BatchRunner(doubler(num_cpus=0.5, num_gpus=2)).run(
        spec(write_rows(list(range(50))), tmp_path, batch_size=4, compute="actors", num_actors=2)
    )
    assert result.rows == 50


@pytest.mark.parametrize("text", ["", "\n\n \n"])
def test_an_empty_file_gives_an_empty_file(mode, tmp_path, text):
    (tmp_path / "in.jsonl").write_text(text)
    result = BatchRunner(doubler()).run(spec(tmp_path / "in.jsonl", tmp_path, **mode))
    assert (result.rows, Path(result.sink).read_bytes()) == (0, b"")


def test_unicode_optional_fields_and_non_finite_numbers(write_rows, tmp_path):
    source = write_rows([1, 1e308], note="Ünïcode \u2028 ☃")
    with open(source, "a") as f:
        f.write('{"model_name": "m", "value": NaN}\r\n')
    result = BatchRunner(doubler()).run(spec(source, tmp_path, compute="local"))
    rows = read_rows(result.sink)
    assert rows[0]["note"] == "Ünïcode \u2028 ☃"
    assert [r["value"] for r in rows] == [2.0, None, None]
    assert result.non_finite == 2


def test_error_rows_and_lost_numbers_keep_their_lines_among_buckets(write_rows, tmp_path):
    values = [1, 6, 1e308, 3, 6, -1e308, 5, 6]
    source = write_rows(values)

    result = BatchRunner(doubler(fail_on=6)).run(
        spec(source, tmp_path, compute="local", batch_size=2, bucket_by="value", on_error="record")
    )

    rows = read_rows(result.sink)
    assert ["error" in r for r in rows] == [v == 6 for v in values]
    assert [r.get("value") for r in rows] == [2, None, None, 6, None, None, 10, None]
    assert (result.error_rows, result.non_finite) == (3, 2)


def test_several_files_are_one_source_in_their_order(write_rows, tmp_path):
    files = [write_rows([i, i + 0.5], name=f"{i}.jsonl") for i in (3, 1, 2)]
    result = BatchRunner(doubler()).run(
        BatchSpec(source=files, sink=str(tmp_path / "out.jsonl"), compute="local")
    )
    assert [r["value"] for r in read_rows(result.sink)] == [6, 7, 2, 3, 4, 5]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_sources_and_sinks(mode, write_rows, tmp_path, suffix):
    import pyarrow as pa

    plain = Path(write_rows(list(range(300))))
    packed = tmp_path / f"in.jsonl{suffix}"
    with pa.CompressedOutputStream(str(packed), {".gz": "gzip", ".zst": "zstd"}[suffix]) as f:
        f.write(plain.read_bytes())
    sink = tmp_path / "out" / f"out.jsonl{suffix}"

    BatchRunner(doubler()).run(BatchSpec(source=str(packed), sink=str(sink), batch_size=16, **mode))

    with pa.CompressedInputStream(str(sink), {".gz": "gzip", ".zst": "zstd"}[suffix]) as f:
        rows = [json.loads(line) for line in f.read().splitlines()]
    assert [r["value"] for r in rows] == [2 * i for i in range(300)]
    assert leftovers(tmp_path) == [sink.name]


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


def test_one_bad_file_never_costs_the_others(mode, write_rows, tmp_path):
    values = [[1, 2], ["x"], [3], [41], [5, 6, 7]]
    specs = [
        BatchSpec(
            source=write_rows(v, name=f"in/{i}.jsonl"),
            sink=str(tmp_path / f"out/{i}.jsonl"),
            **mode,
        )
        for i, v in enumerate(values)
    ]
    specs.insert(
        2, BatchSpec(source=str(tmp_path / "no.jsonl"), sink=str(tmp_path / "out/no.jsonl"), **mode)
    )
    same = write_rows([1], name="in/same.jsonl")
    alias = str(tmp_path / "in" / ".." / "in" / "same.jsonl")
    specs.insert(0, BatchSpec(source=same, sink=alias, **mode))

    outcomes = {
        Path(o.spec.sink).stem: o for o in BatchRunner(doubler(fail_on=41)).run_many(iter(specs))
    }

    assert {k for k, o in outcomes.items() if o.ok} == {"0", "2", "4"}
    assert isinstance(outcomes["1"].error, sd.InputValidationError)
    assert isinstance(outcomes["3"].error, sd.PredictError)
    assert isinstance(outcomes["no"].error, sd.SourceNotFoundError)
    assert "source and sink are the same file" in str(outcomes["same"].error)
    assert [r["value"] for r in read_rows(tmp_path / "out/4.jsonl")] == [10, 12, 14]


@pytest.mark.ray
def test_many_small_files_share_workers_that_load_once(ray_cluster, write_rows, tmp_path):
    log = tmp_path / "loads"
    specs = [
        BatchSpec(
            source=write_rows([i, i], name=f"in/{i}.jsonl"),
            sink=str(tmp_path / f"out/{i}.jsonl"), compute="actors", num_actors=2,
        )
        for i in range(60)
    ]  # fmt: skip
    outcomes = list(BatchRunner(doubler(load_log=str(log))).run_many(specs))
    assert all(o.ok for o in outcomes)
    assert len(outcomes) == 60
    assert 1 <= len(log.read_text().split()) <= 2, "once an actor; one may do it all alone"


KILLED = """
import os, sys, threading, time
from sheaf_dagster import BatchRunner, BatchSpec
from tests.toys import doubler
def die():
    time.sleep({after}); os._exit(9)
spec = BatchSpec(source={source!r}, sink={sink!r}, batch_size=5, compute="local")
runner = BatchRunner(doubler(batch_seconds=0.02), on_progress=lambda p: os._exit(9) if p.rows_done > 150 else None)
runner.run(spec)
"""


def test_a_killed_run_resumes_and_writes_the_same_bytes(write_rows, tmp_path):
    source = write_rows(list(range(600)))
    job = spec(source, tmp_path, batch_size=5, compute="local")
    code = KILLED.format(after=1, source=source, sink=job.sink)
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert killed.returncode == 9
    assert "out.jsonl" not in leftovers(tmp_path)
    calls = tmp_path / "calls"

    # What only logs calls is part of the model's arguments, so resume with the same ones.
    result = BatchRunner(doubler(batch_seconds=0.02)).run(job)

    assert result.resumed_rows > 150
    assert result.resumed_rows % 5 == 0
    assert not calls.exists()
    fresh = BatchRunner(doubler()).run(job.model_copy(update={"sink": str(tmp_path / "b.jsonl")}))
    assert Path(result.sink).read_bytes() == Path(fresh.sink).read_bytes()
    assert leftovers(tmp_path) == ["out.jsonl"]


def test_parts_of_a_changed_source_or_model_are_not_reused(write_rows, tmp_path):
    source = write_rows(list(range(100)))
    job = spec(source, tmp_path, batch_size=5, compute="local")
    with pytest.raises(sd.PredictError):
        BatchRunner(doubler(fail_on=90)).run(job)
    assert leftovers(tmp_path) == [".out.jsonl.sheaf"]

    other = BatchRunner(doubler(fail_on=91)).run(job.model_copy(update={"on_error": "record"}))

    assert other.resumed_rows == 0
    assert leftovers(tmp_path) == ["out.jsonl"]


def test_the_fingerprint_tells_whether_a_rerun_would_differ(write_rows, tmp_path):
    job = spec(write_rows([1, 2]), tmp_path, compute="local")
    runner = BatchRunner(doubler())
    result = runner.run(job)
    assert runner.fingerprint(job) == result.fingerprint
    assert runner.fingerprint(job.model_copy(update={"batch_size": 7})) != result.fingerprint
    assert BatchRunner(doubler(jitter=True)).fingerprint(job) != result.fingerprint


def test_progress_is_reported(mode, write_rows, tmp_path):
    seen = []
    BatchRunner(doubler(batch_seconds=0.02), on_progress=seen.append).run(
        spec(write_rows(list(range(400))), tmp_path, batch_size=5, **mode)
    )
    assert seen
    assert (seen[-1].rows_done, seen[-1].files_done) == (400, 1)
    assert all(a.rows_done <= b.rows_done for a, b in zip(seen, seen[1:], strict=False))


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"backend": "nope"}, sd.UnknownBackendError, "unknown backend 'nope'; known: chronos2"),
        ({"backend": "tests.toys:Nope"}, sd.UnknownBackendError, "can't be imported"),
        ({"backend": "os:path"}, sd.SpecError, "no subclass of ModelBackend"),
        ({"model_type": "horoscope"}, sd.UnknownContractError, "'horoscope'"),
        ({"model_type": "embedding"}, sd.SpecError, "serves model type 'number'"),
    ],
)
def test_specs_that_cannot_work_are_refused(fields, error, message):
    model = ModelSpec(**{**doubler().model_dump(), **fields})
    with pytest.raises(error, match=message):
        BatchRunner(model)


def test_batch_specs_say_what_is_wrong(write_rows, tmp_path):
    with pytest.raises(ValueError, match="compute='actors' needs num_actors"):
        BatchSpec(source="a", sink="b", compute="actors")
    with pytest.raises(ValueError, match="Extra inputs"):
        BatchSpec(source="a", sink="b", batchsize=3)
    with pytest.raises(sd.SpecError, match="same file"):
        BatchRunner(doubler()).run(BatchSpec(source="x/../a.jsonl", sink="a.jsonl"))
    with pytest.raises(sd.SpecError, match="bucket_by='colour' is no field of NumberRequest"):
        BatchRunner(doubler()).run(BatchSpec(source="a", sink="b", bucket_by="colour"))


def test_specs_round_trip_through_json():
    model = doubler(num_gpus=0.5, jitter=True)
    job = BatchSpec(source=["a", "b"], sink="c", compute="actors", num_actors=2, row_limit=5)
    assert ModelSpec.model_validate_json(model.model_dump_json()) == model
    assert BatchSpec.model_validate_json(job.model_dump_json()) == job


def test_a_backend_and_contract_of_ones_own_need_no_package(tmp_path):
    script = tmp_path / "mine.py"
    script.write_text(
        """
import json, ray
import sheaf_dagster as sd

class Ask(sd.BaseRequest):
    model_type: str = "mine"
    text: str

class Answer(sd.BaseResponse):
    model_type: str = "mine"
    text: str

sd.register_contract("mine", Ask, Answer)

@sd.register_backend("shout")
class Shout(sd.ModelBackend):
    model_type = "mine"
    def load(self): self.mark = "!"
    def predict(self, r):
        return Answer(request_id=r.request_id, model_name=r.model_name, text=r.text.upper() + self.mark)

open("in.jsonl", "w").write(json.dumps({"model_name": "m", "text": "hey"}) + "\\n")
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
model = sd.ModelSpec(name="s", model_type="mine", backend="shout")
sd.BatchRunner(model).run(sd.BatchSpec(source="in.jsonl", sink="out.jsonl"))
assert ray.is_initialized(), "a Ray that we did not start is left alone"
print(open("out.jsonl").read())
"""
    )
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert json.loads(done.stdout)["text"] == "HEY!", done.stderr
