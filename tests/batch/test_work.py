"""A step's files, and what came of them, on their way to another process and back."""

from __future__ import annotations

import json
import logging

import pytest

import sheaf_dagster as sd
from sheaf_dagster.batch.logs import logs_told_to
from sheaf_dagster.batch.work import Committed, FileOutcome, FileWork, StepOrder, run_files
from tests.conftest import read_rows
from tests.toys import Scaler, doubler, scaler


def spec(source: str, sink, **fields) -> sd.BatchSpec:
    return sd.BatchSpec(source=source, sink=str(sink), compute="local", **fields)


def travelled(message):
    return json.loads(json.dumps(message))


def order(files: list[FileWork], **fields) -> StepOrder:
    return StepOrder(
        doubler(), sd.ClusterConfig(gpu_limit=2), fields, files, imports=["tests.toys"]
    )


def test_an_order_runs_elsewhere_as_it_would_here(write_rows, tmp_path):
    source = write_rows([1, 2])
    there = StepOrder.from_message(
        travelled(
            order(
                [FileWork(spec(source, tmp_path / "out.jsonl"))], compute="local", batch_size=7
            ).to_message()
        )
    )

    (outcome,) = run_files(there.runner(), there.files)
    back = FileOutcome.from_message(travelled(outcome.to_message()))

    assert there.files[0].spec.batch_size == 7
    assert [r["value"] for r in read_rows(tmp_path / "out.jsonl")] == [2, 4]
    assert back.result == outcome.result
    assert back.sample == outcome.sample
    assert not back.unchanged


def test_errors_keep_their_kind_and_what_they_carry(write_rows, tmp_path):
    bad, missing = write_rows([1, "x"]), str(tmp_path / "nowhere.jsonl")
    files = [FileWork(spec(s, tmp_path / f"{i}.out")) for i, s in enumerate((bad, missing))]

    outcomes = [
        FileOutcome.from_message(travelled(o.to_message()))
        for o in run_files(order(files).runner(), files)
    ]

    invalid, gone = (o.error for o in outcomes)
    assert isinstance(invalid, sd.InputValidationError)
    assert invalid.report.violations[0].line == 2
    assert isinstance(gone, sd.SourceNotFoundError)
    assert "nowhere.jsonl does not exist" in str(gone)


def test_what_still_holds_is_passed_over(write_rows, tmp_path):
    runner = order([]).runner()
    job = spec(write_rows([1, 2]), tmp_path / "out.jsonl")
    result = runner.run(job)
    holds = Committed(result.fingerprint[:16], result.output_bytes)

    (same,) = run_files(runner, [FileWork(job, holds)])
    (again,) = run_files(runner, [FileWork(spec(job.source, job.sink, batch_size=1), holds)])

    assert same.unchanged
    assert not again.unchanged


class Asked(Scaler):
    """Counts how often it is asked for the identity of its weights."""

    times = 0

    @classmethod
    def identify(cls, **arguments):
        cls.times += 1
        return super().identify(**arguments)


def test_a_step_asks_once_for_the_weights_and_the_next_one_anew(write_rows, tmp_path):
    weights = tmp_path / "factor.txt"
    weights.write_text("2")
    model = scaler(weights=str(weights)).model_copy(update={"backend": f"{__name__}:Asked"})
    source = write_rows([1, 2])
    jobs = [spec(source, tmp_path / f"{i}.jsonl") for i in range(4)]
    results = [sd.BatchRunner(model).run(job) for job in jobs]
    files = [
        FileWork(job, Committed(result.fingerprint, result.output_bytes))
        for job, result in zip(jobs, results, strict=True)
    ]
    step = StepOrder(model, sd.ClusterConfig(), {}, files, imports=["tests.toys"])

    Asked.times = 0
    runner = step.runner()
    identity, version = runner.model_identity()
    passed_over = list(run_files(runner, files))
    asked = Asked.times
    weights.write_text("3")
    anew = list(run_files(step.runner(), files))

    assert asked == 1
    assert (identity, version) == (results[0].model_digest, results[0].model_version)
    assert all(outcome.unchanged for outcome in passed_over)
    assert not any(outcome.unchanged for outcome in anew)
    assert [r["value"] for r in read_rows(tmp_path / "3.jsonl")] == [3, 6]


def test_weights_that_change_within_a_step_end_it(write_rows, tmp_path):
    weights = tmp_path / "factor.txt"
    weights.write_text("2")
    file = FileWork(spec(write_rows([1, 2]), tmp_path / "out.jsonl"))
    model = scaler(weights=str(weights))
    runner = StepOrder(model, sd.ClusterConfig(), {}, [file]).runner()
    runner.model_identity()

    weights.write_text("3")
    (outcome,) = run_files(runner, [file])

    assert isinstance(outcome.error, sd.ModelChangedError)
    assert not (tmp_path / "out.jsonl").exists()


def test_a_message_carries_as_many_rows_as_fit(write_rows, tmp_path):
    job = spec(write_rows([1] * 20, note="n" * 5_000), tmp_path / "out.jsonl")
    (outcome,) = run_files(order([]).runner(), [FileWork(job)])

    message = outcome.to_message()

    assert len(outcome.sample.pairs) == 20
    assert 1 <= len(message["sample"]["pairs"]) < 10
    assert len(json.dumps(message)) < 60_000


def test_secrets_are_named_in_an_order_and_read_where_it_runs(write_rows, tmp_path, monkeypatch):
    options = {"key": {"env": "THE_KEY"}, "client_kwargs": {"region_name": "eu"}}
    message = travelled(
        order([FileWork(spec("a", "b"))], storage_options=options, compute="local").to_message()
    )

    with pytest.raises(sd.SpecError, match=r"storage.key: environment variable THE_KEY is not set"):
        StepOrder.from_message(message)
    monkeypatch.setenv("THE_KEY", "abcdefgh")
    there = StepOrder.from_message(message)

    assert "abcdefgh" not in json.dumps(message)
    assert there.files[0].spec.storage_options["key"] == "abcdefgh"


def test_a_missing_module_is_named(tmp_path):
    wanting = StepOrder(doubler(), sd.ClusterConfig(), {}, [], imports=["not_on_the_cluster"])
    with pytest.raises(sd.SpecError, match=r"'not_on_the_cluster', .* working_dir or py_modules"):
        wanting.runner()


def test_what_is_logged_is_told_to_whoever_watches():
    heard = []
    logger = logging.getLogger("sheaf_dagster.batch.anything")

    with logs_told_to(lambda level, text: heard.append((level, text))):
        logger.info("waiting for capacity: %d GPUs", 2)
        logger.debug("not this")
    logger.info("nor this")

    assert heard == [(logging.INFO, "waiting for capacity: 2 GPUs")]


def test_a_source_that_is_written_anew_after_the_commit_costs_the_preview_alone(
    write_rows, tmp_path, caplog
):
    source = write_rows([1, 2])

    def on_progress(progress):
        if progress.files_done:
            write_rows(["the secret", "x"])

    runner = sd.BatchRunner(doubler(), on_progress=on_progress, redact_rows=True)
    (outcome,) = run_files(runner, [FileWork(spec(source, tmp_path / "out.jsonl"))])

    assert outcome.result is not None
    assert outcome.sample.compared == 0
    assert "no preview, and the order was not compared: ValidationError" in caplog.text
    assert "the secret" not in caplog.text
