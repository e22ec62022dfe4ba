"""The command line: what it says, on which stream, and with which exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from sheaf_dagster.batch.job_file import JobFile
from sheaf_dagster.cli import main
from sheaf_dagster.errors import SpecError
from tests.conftest import ROOT, read_rows

MODULE = '''
import os
import signal

import sheaf_dagster as sd


class WordRequest(sd.BaseRequest):
    model_type: str = "word"
    word: str


class WordResponse(sd.BaseResponse):
    model_type: str = "word"
    shout: str


sd.register_contract("word", WordRequest, WordResponse)


@sd.register_backend("shouter")
class Shouter(sd.ModelBackend):
    """Says it louder."""

    model_type = "word"

    def load(self):
        pass

    def predict(self, request):
        if request.word == "fail":
            raise ValueError("lost its voice")
        if request.word == "stop" and os.path.exists("stop"):
            name = open("stop").read()
            os.unlink("stop")
            os.kill(os.getpid(), getattr(signal, name))
        return WordResponse(
            request_id=request.request_id, model_name="m", shout=request.word.upper()
        )


@sd.register_backend("of few words")
class Wordless(Shouter):
    pass
'''


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Path:
    """A folder with a module of a user's own, a spec and rows."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shouting.py").write_text(MODULE)
    write_spec()
    write_words("in.jsonl", ["a", "b", "c"])
    return tmp_path


def write_words(path: str, words: list) -> None:
    Path(path).write_text("".join(json.dumps({"model_name": "m", "word": w}) + "\n" for w in words))


def write_spec(**batch) -> None:
    spec = {
        "imports": ["shouting"],
        "model": {"name": "loud", "model_type": "word", "backend": "shouting:Shouter"},
        "batch": {"source": "in.jsonl", "sink": "out.jsonl", "compute": "local", "batch_size": 2}
        | batch,
    }
    Path("spec.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))


def call(*args: str) -> Result:
    return CliRunner().invoke(main, list(args))


def process(*args: str, signal_name: str | None = None) -> subprocess.CompletedProcess:
    if signal_name:
        Path("stop").write_text(signal_name)
    return subprocess.run(
        [sys.executable, "-m", "sheaf_dagster", *args],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        # A shell starts what it runs in the background deaf to Ctrl-C; so might be a CI's.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.fixture
def numbers(tmp_path) -> str:
    path = tmp_path / "numbers.jsonl"
    rows = [{"model_name": "m", "value": v} for v in (1, "x", 2)] + [{"model_name": "m"}]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def test_validate_names_each_bad_line(numbers):
    done = call("validate", numbers, "--model-type", "number", "--import", "tests.toys")

    assert done.exit_code == 3
    assert "2 of 4 rows are invalid" in done.stdout
    assert "line 2, field 'value'" in done.stdout
    assert "line 4, field 'value': Field required" in done.stdout


def test_validate_writes_json_for_scripts(numbers):
    done = call(
        "validate", numbers, numbers, "--model-type", "number", "--json", "--row-limit", "1"
    )

    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.exit_code == 0
    assert [(r["ok"], r["rows"]) for r in reports] == [(True, 1), (True, 1)]


def test_validate_can_keep_values_to_itself(numbers):
    done = call("validate", numbers, "--model-type", "number", "--redact")

    assert done.exit_code == 3
    assert "'x'" not in done.output


@pytest.mark.s3
def test_validate_reads_from_s3(s3, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.options()["key"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.options()["secret"])
    uri = s3.put("in.jsonl", b'{"model_name": "m", "value": 1}\n')

    done = call("validate", uri, "--model-type", "number", "-o", f"endpoint_url={s3.endpoint}")

    assert done.exit_code == 0, done.output
    assert f"{uri}: all 1 rows are valid" in done.stdout


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["validate", "in.jsonl"], 2, "Missing option '--model-type'"),
        (["validate", "in.jsonl", "--model-type", "nonsense"], 2, "no contract is registered"),
        (["validate", "gone.jsonl", "--model-type", "number"], 1, "does not exist"),
        (["validate", "x", "--model-type", "number", "--import", "no_such"], 2, "no_such can't be"),
        (["validate", "x", "--model-type", "number", "-o", "key"], 2, "NAME=VALUE"),
        (["run", "gone.yaml"], 2, "gone.yaml can't be read"),
        (["run", "spec.yaml", "--set", "batch.batch_size=0"], 2, "batch.batch_size: Input should"),
        (["run", "spec.yaml", "--set", "model.backend=nonsense"], 2, "unknown backend 'nonsense'"),
        (["run", "spec.yaml", "--set", "batch.source=gone.jsonl"], 1, "gone.jsonl does not exist"),
        (["contracts", "nonsense"], 2, "no contract is registered"),
    ],
)  # fmt: skip
def test_what_is_wrong_has_its_exit_code(args, code, message, workspace):
    done = call(*args)

    assert done.exit_code == code, done.output
    assert message in done.stderr
    assert done.stdout == ""


def test_run_says_what_it_wrote(workspace):
    done = call("run", "spec.yaml")

    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"{workspace / 'out.jsonl'}: 3 rows in ")
    assert [r["shout"] for r in read_rows("out.jsonl")] == ["A", "B", "C"]


def test_run_checks_rows_without_running(workspace):
    write_words("in.jsonl", ["a", 5])

    checked = call("run", "spec.yaml", "--check")
    ran = call("run", "spec.yaml", "--json")

    assert (checked.exit_code, ran.exit_code) == (3, 3)
    assert "line 2, field 'word'" in checked.stdout
    told = json.loads(ran.stdout)
    assert told["error"]["type"] == "InputValidationError"
    assert told["validation"]["violations"][0]["line"] == 2
    assert not Path("out.jsonl").exists()


def test_invalid_rows_that_are_recorded_are_no_obstacle_to_an_estimate(workspace):
    write_words("in.jsonl", ["a", 5])

    kept_from_running = call("estimate", "spec.yaml")
    recorded = call("estimate", "spec.yaml", "--set", "batch.on_invalid=record")

    assert (kept_from_running.exit_code, recorded.exit_code) == (3, 0)
    assert "error rows" in recorded.stdout and "1 (invalid rows)" in recorded.stdout


def test_run_mends_the_rows_that_failed(workspace):
    write_spec(on_error="record")
    write_words("in.jsonl", ["a", "fail", "c"])
    call("run", "spec.yaml")
    write_words("in.jsonl", ["a", "b", "c"])

    mended = call("run", "spec.yaml", "--only", "failed")
    done = call("run", "spec.yaml", "--only", "failed")
    told = call("run", "spec.yaml", "--set", "batch.only=failed", "--json")
    gone = call("run", "spec.yaml", "--only", "failed", "--set", "batch.sink=none.jsonl")

    assert "3 rows in" in mended.stdout and "2 kept" in mended.stdout
    assert [r["shout"] for r in read_rows("out.jsonl")] == ["A", "B", "C"]
    assert done.stdout == "out.jsonl: no failed rows, nothing to run\n"
    assert json.loads(told.stdout) == {"ok": True, "sink": "out.jsonl", "unchanged": True}
    assert (mended.exit_code, done.exit_code, gone.exit_code) == (0, 0, 1)


def test_run_takes_the_answers_of_unchanged_rows(workspace):
    call("run", "spec.yaml", "--reuse", "previous")
    write_words("in.jsonl", ["c", "d", "a"])

    again = call("run", "spec.yaml", "--reuse", "previous", "--set", "batch.reuse_from=none.jsonl")
    other = call("run", "spec.yaml", "--reuse-from", "out.jsonl", "--set", "batch.sink=other.jsonl")
    both = call("run", "spec.yaml", "--reuse", "previous", "--reuse-from", "out.jsonl")
    nowhere = call("run", "spec.yaml", "--reuse-from", "")

    assert "2 kept" in again.stdout and "3 kept" in other.stdout
    assert [r["shout"] for r in read_rows("out.jsonl")] == ["C", "D", "A"]
    assert [r["shout"] for r in read_rows("other.jsonl")] == ["C", "D", "A"]
    assert "leave one of them out" in both.stderr and "reuse_from" in nowhere.stderr
    assert (again.exit_code, other.exit_code, both.exit_code, nowhere.exit_code) == (0, 0, 2, 2)


def test_one_bad_file_does_not_cost_the_others(workspace):
    write_words("bad.jsonl", ["fail"])
    spec = yaml.safe_load(Path("spec.yaml").read_text())
    spec["batch"] = [spec["batch"], {**spec["batch"], "source": "bad.jsonl", "sink": "bad.out"}]
    Path("spec.yaml").write_text(yaml.safe_dump(spec))

    done = call("run", "spec.yaml", "--json")

    good, bad = map(json.loads, done.stdout.splitlines())
    assert done.exit_code == 1
    assert (good["ok"], good["rows"], good["sink"]) == (True, 3, str(workspace / "out.jsonl"))
    assert (bad["ok"], bad["sink"], bad["exit_code"]) == (False, "bad.out", 1)
    assert "lost its voice" in bad["error"]["message"]


def test_a_busy_sink_is_worth_another_try(workspace):
    from sheaf_dagster.storage import LineWriter, Location

    with LineWriter(Location.of("out.jsonl")):
        done = call("run", "spec.yaml")

    assert done.exit_code == 4
    assert "is being written by another job" in done.stderr


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_an_interrupted_job_goes_on_where_it_was(name, code, workspace):
    write_words("in.jsonl", [*"abcdefgh", "stop", "i"])

    stopped = process("run", "spec.yaml", "--json", signal_name=name)
    nothing_visible = not Path("out.jsonl").exists()
    done = process("run", "spec.yaml", "--json")

    assert stopped.returncode == code, stopped.stderr
    assert "run the same command again" in stopped.stderr
    assert json.loads(stopped.stdout)["exit_code"] == code
    assert nothing_visible
    assert done.returncode == 0, done.stderr
    # The model has a thread of its own: rows that it did before the signal was heard are kept, too.
    assert 8 <= json.loads(done.stdout)["resumed_rows"] <= 10
    assert [r["shout"] for r in read_rows("out.jsonl")] == [*"ABCDEFGH", "STOP", "I"]


@pytest.mark.ray
def test_a_job_on_ray_finds_the_module_on_its_workers(workspace):
    done = process("run", "spec.yaml", "--set", "batch.compute=tasks", "--json", "-q")

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == 3


def test_backends_lists_those_of_a_users_module(workspace):
    plain = call("backends", "--import", "shouting")
    as_json = json.loads(call("backends", "--json").stdout)

    assert "shouter" in plain.stdout
    assert "Says it louder." in plain.stdout
    assert "of few words" in plain.stdout
    assert {"chronos2", "statsforecast"} <= {b["name"] for b in as_json}


def test_contracts_prints_the_schema_of_rows_and_answers():
    listed = call("contracts")
    row = json.loads(call("contracts", "time_series").stdout)
    answer = json.loads(call("contracts", "time_series", "--response").stdout)

    assert "TimeSeriesRequest" in listed.stdout
    assert "horizon" in row["required"]
    assert "mean" in answer["properties"]


MODEL = "model: {name: a, model_type: b, backend: c}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model:\n  name: a\n  model_type: b\n", "job.yaml:1: model.backend: Field required"),
        (
            f"{MODEL}batch:\n  source: x\n  sink: y\n  bach_size: 3\n",
            "job.yaml:5: batch.bach_size: unknown field; known: source, sink, batch_size",
        ),
        (
            f"{MODEL}batch:\n- {{source: x, sink: y}}\n- source: x\n",
            "job.yaml:4: batch.1.sink: Field required",
        ),
        (
            f"{MODEL}batch: {{source: x, sink: y, compute: actors}}\n",
            "job.yaml:2: batch: compute='actors' needs num_actors",
        ),
        ("models: {}\n", "job.yaml:1: models: unknown field; known: imports, model, batch"),
        ("- a\n", "must have 'model' and 'batch'"),
        ("a: [\n", "is not YAML"),
    ],
)
def test_what_is_wrong_in_a_spec_has_its_line(text, message):
    with pytest.raises(SpecError) as error:
        JobFile.parse(text, "job.yaml")

    assert message in str(error.value)


def test_credentials_of_a_spec_come_from_the_environment(monkeypatch):
    text = (
        "model: {name: a, model_type: b, backend: c}\n"
        "batch: {source: 's3://b/x', sink: 's3://b/y', storage_options: {key: {env: A_KEY}}}\n"
    )

    with pytest.raises(SpecError, match=r"storage_options\.key: environment variable A_KEY"):
        JobFile.parse(text, "job.yaml")
    monkeypatch.setenv("A_KEY", "value")
    job = JobFile.parse(text, "job.yaml")

    assert job.batches[0].storage_options == {"key": "value"}
