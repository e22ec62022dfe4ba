"""Jobs in every compute mode: order, content, how often the model is loaded, progress."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sheaf_dagster import BatchRunner, BatchSpec, ClusterConfig
from tests.batch.jobs import here_and_in_workers, leftovers, spec
from tests.conftest import read_rows
from tests.toys import doubler


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


def test_a_local_job_says_that_it_reserves_nothing(write_rows, tmp_path, caplog):
    specs = [
        BatchSpec(source=write_rows([1], f"{i}.jsonl"), sink=f"{tmp_path}/{i}", compute="local")
        for i in range(2)
    ]

    outcomes = list(BatchRunner(doubler(num_gpus=0.5, num_cpus=3)).run_many(specs))
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]

    assert all(o.ok for o in outcomes)
    assert "model 'doubler' asks for 0.5 GPUs, but compute='local' reserves nothing" in warning
    assert "To reserve it, use compute='tasks' or 'actors'" in warning


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


@pytest.mark.ray
def test_gpus_that_fit_run(ray_cluster, write_rows, tmp_path):
    result = BatchRunner(doubler(num_cpus=0.5, num_gpus=2)).run(
        spec(write_rows(list(range(50))), tmp_path, batch_size=4, compute="actors", num_actors=2)
    )
    assert result.rows == 50


@here_and_in_workers
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


@here_and_in_workers
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


def test_progress_is_reported(mode, write_rows, tmp_path):
    seen = []
    BatchRunner(doubler(batch_seconds=0.02), on_progress=seen.append).run(
        spec(write_rows(list(range(400))), tmp_path, batch_size=5, **mode)
    )
    assert seen
    assert (seen[-1].rows_done, seen[-1].files_done) == (400, 1)
    assert all(a.rows_done <= b.rows_done for a, b in zip(seen, seen[1:], strict=False))


@pytest.mark.ray
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
