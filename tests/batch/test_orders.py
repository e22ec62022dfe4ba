"""A step's files, and what came of them, on their way to another process and back."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import pytest

import sheaf_dagster as sd
from sheaf_dagster.batch.committed import CommittedSink
from sheaf_dagster.batch.logs import logs_told_to
from sheaf_dagster.batch.orders import FileOutcome, StepOrder
from tests.conftest import read_rows
from tests.toys import Scaler, doubler, scaler


def spec(source: str, sink, **fields) -> sd.BatchSpec:
    return sd.BatchSpec(source=source, sink=str(sink), compute="local", **fields)


def outcomes_of(runner: sd.BatchRunner, files, committed=None) -> list[FileOutcome]:
    done = runner.run_many(files, committed=committed)
    return [FileOutcome.of(outcome, runner.model_spec) for outcome in done]


def travelled(message):
    return json.loads(json.dumps(message))


def order(files: list[sd.BatchSpec], **fields) -> StepOrder:
    return StepOrder(
        doubler(), sd.ClusterConfig(gpu_limit=2), fields, files, imports=["tests.toys"]
    )


def test_an_order_runs_elsewhere_as_it_would_here(write_rows, tmp_path):
    source = write_rows([1, 2])
    there = StepOrder.from_message(
        travelled(
            order(
                [spec(source, tmp_path / "out.jsonl")], compute="local", batch_size=7
            ).to_message()
        )
    )

    (outcome,) = outcomes_of(there.runner(), there.files)
    back = FileOutcome.from_message(travelled(outcome.to_message()))

    assert there.files[0].batch_size == 7
    assert [r["value"] for r in read_rows(tmp_path / "out.jsonl")] == [2, 4]
    assert back.result == outcome.result
    assert back.sample == outcome.sample
    assert not back.unchanged


def test_errors_keep_their_kind_and_what_they_carry(write_rows, tmp_path):
    bad, missing = write_rows([1, "x"]), str(tmp_path / "nowhere.jsonl")
    files = [spec(s, tmp_path / f"{i}.out") for i, s in enumerate((bad, missing))]

    outcomes = [
        FileOutcome.from_message(travelled(o.to_message()))
        for o in outcomes_of(order(files).runner(), files)
    ]

    invalid, gone = (o.error for o in outcomes)
    assert isinstance(invalid, sd.InputValidationError)
    assert invalid.report.violations[0].line == 2
    assert isinstance(gone, sd.SourceNotFoundError)
    assert "nowhere.jsonl does not exist" in str(gone)


def test_what_earlier_runs_committed_travels_with_the_files(write_rows, tmp_path):
    files = [spec(write_rows([1, 2]), tmp_path / f"{i}.jsonl") for i in range(2)]
    result = order([]).runner().run(files[0])
    committed = {files[0].sink: CommittedSink(result.fingerprint, result.output_bytes)}
    sent = order(files, compute="local")
    sent = replace(sent, committed=committed)

    there = StepOrder.from_message(travelled(sent.to_message()))
    same, fresh = outcomes_of(there.runner(), there.files, there.committed)

    assert FileOutcome.from_message(travelled(same.to_message())).unchanged
    assert fresh.result is not None


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
    committed = {r.sink: CommittedSink(r.fingerprint, r.output_bytes) for r in results}
    step = StepOrder(model, sd.ClusterConfig(), {}, jobs, imports=["tests.toys"])

    Asked.times = 0
    runner = step.runner()
    identity, version = runner.model_identity()
    passed_over = outcomes_of(runner, jobs, committed)
    asked = Asked.times
    weights.write_text("3")
    anew = outcomes_of(step.runner(), jobs, committed)

    assert asked == 1
    assert (identity, version) == (results[0].model_digest, results[0].model_version)
    assert all(outcome.unchanged for outcome in passed_over)
    assert not any(outcome.unchanged for outcome in anew)
    assert [r["value"] for r in read_rows(tmp_path / "3.jsonl")] == [3, 6]


def test_weights_that_change_within_a_step_end_it(write_rows, tmp_path):
    weights = tmp_path / "factor.txt"
    weights.write_text("2")
    file = spec(write_rows([1, 2]), tmp_path / "out.jsonl")
    model = scaler(weights=str(weights))
    runner = StepOrder(model, sd.ClusterConfig(), {}, [file]).runner()
    runner.model_identity()

    weights.write_text("3")
    (outcome,) = outcomes_of(runner, [file])

    assert isinstance(outcome.error, sd.ModelChangedError)
    assert not (tmp_path / "out.jsonl").exists()


def test_a_message_carries_as_many_rows_as_fit(write_rows, tmp_path):
    job = spec(write_rows([1] * 20, note="n" * 5_000), tmp_path / "out.jsonl")
    (outcome,) = outcomes_of(order([]).runner(), [job])

    message = outcome.to_message()

    assert len(outcome.sample.pairs) == 20
    assert 1 <= len(message["sample"]["pairs"]) < 10
    assert len(json.dumps(message)) < 60_000


def test_secrets_are_named_in_an_order_and_read_where_it_runs(write_rows, tmp_path, monkeypatch):
    options = {"key": {"env": "THE_KEY"}, "client_kwargs": {"region_name": "eu"}}
    message = travelled(
        order([spec("a", "b")], storage_options=options, compute="local").to_message()
    )

    with pytest.raises(sd.SpecError, match=r"storage.key: environment variable THE_KEY is not set"):
        StepOrder.from_message(message)
    monkeypatch.setenv("THE_KEY", "abcdefgh")
    there = StepOrder.from_message(message)

    assert "abcdefgh" not in json.dumps(message)
    assert there.files[0].storage_options["key"] == "abcdefgh"


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
    (outcome,) = outcomes_of(runner, [spec(source, tmp_path / "out.jsonl")])

    assert outcome.result is not None
    assert outcome.sample.compared == 0
    assert "no preview, and the order was not compared: ValidationError" in caplog.text
    assert "the secret" not in caplog.text
