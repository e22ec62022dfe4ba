"""What holds for a job holds in each shape of a backend: one call, stages, rows in flight."""

from __future__ import annotations

import math
import os

import pytest

import sheaf_dagster as sd
from sheaf_dagster import BatchRunner
from tests.batch.jobs import here_and_in_workers, leftovers, local_or_tasks, spec
from tests.conftest import read_rows
from tests.toys import SHAPES, InFlight, InOneCall, InStages, shaped

each_shape = pytest.mark.parametrize("shape", SHAPES)
beyond_one_call = pytest.mark.parametrize("shape", ["stages", "later", "beside", "flight"])
VALUES = [float((7 * i) % 101) for i in range(300)]


def written(path: str) -> bytes:
    with open(path, "rb") as f:
        return f.read()


@here_and_in_workers
@each_shape
def test_the_bytes_are_the_same_in_each_shape_and_mode(write_rows, tmp_path, mode, shape):
    job = spec(write_rows(VALUES, note="x"), tmp_path, batch_size=8, **mode)

    result = BatchRunner(shaped(shape)).run(job)

    again = job.model_copy(update={"compute": "local", "num_actors": None, "resume": False})
    data = written(result.sink)
    BatchRunner(shaped("call")).run(again)
    assert data == written(result.sink)
    assert [r["value"] for r in read_rows(result.sink)] == [2 * v for v in VALUES]
    assert result.shape == {"later": "stages", "beside": "stages"}.get(shape, shape)


@each_shape
@local_or_tasks
def test_failing_rows_are_recorded_alike(write_rows, tmp_path, mode, shape):
    job = spec(write_rows(VALUES), tmp_path, batch_size=8, on_error="record", **mode)

    result = BatchRunner(shaped(shape, fail_every=25)).run(job)

    rows = read_rows(result.sink)
    bad = [i for i, v in enumerate(VALUES) if v % 25 == 0]
    assert [i for i, r in enumerate(rows) if "error" in r] == bad
    assert result.error_rows == len(bad)
    assert {rows[i]["error"]["message"] for i in bad} == {"cannot double this"}
    assert all(r["value"] == 2 * v for r, v in zip(rows, VALUES, strict=True) if "error" not in r)


@pytest.mark.parametrize("stage", ["prepare", "infer", "respond"])
@pytest.mark.parametrize("budget", [None, 500], ids=["batches", "budget"])
def test_a_failure_of_any_stage_is_its_rows(write_rows, tmp_path, stage, budget):
    job = spec(
        write_rows(VALUES),
        tmp_path,
        batch_size=8,
        batch_budget=budget,
        on_error="record",
        compute="local",
    )

    result = BatchRunner(shaped("stages", stage=stage, fail_every=25)).run(job)

    values = [r.get("value") for r in read_rows(result.sink)]
    assert values == [None if v % 25 == 0 else 2 * v for v in VALUES]
    assert result.error_rows == values.count(None)


@each_shape
@pytest.mark.parametrize("redact", [False, True])
def test_the_first_failing_row_ends_the_job_by_its_line(write_rows, tmp_path, shape, redact):
    values = [1.0] * 20 + [50.0] + [1.0] * 30 + [50.0, 100.0]
    runner = BatchRunner(shaped(shape, fail_every=50), redact_rows=redact)

    with pytest.raises(sd.PredictError, match="line 21: In.* failed") as caught:
        runner.run(spec(write_rows(values), tmp_path, batch_size=8, compute="local"))

    assert ("cannot double" in str(caught.value)) is not redact
    assert "out.jsonl" not in leftovers(tmp_path)


@pytest.mark.parametrize("stage", ["prepare", "respond"])
def test_so_it_does_where_another_stage_fails(write_rows, tmp_path, stage):
    values = [1.0] * 20 + [50.0] + [1.0] * 30 + [50.0, 100.0]
    model = shaped("stages", stage=stage, fail_every=50)

    with pytest.raises(sd.PredictError, match="line 21: InStages failed"):
        BatchRunner(model).run(spec(write_rows(values), tmp_path, compute="local"))


def fails_while(cls: type) -> type:
    """A class that fails at 150 as long as a file is there."""
    fail_on = property(lambda self: 150 if os.path.exists(self.exit_once) else None)
    return type(f"{cls.__name__}ForNow", (cls,), {"fail_on": fail_on, "__module__": __name__})


FOR_NOW = {shape: fails_while(cls) for shape, cls in SHAPES.items()}
globals().update({cls.__name__: cls for cls in FOR_NOW.values()})  # workers find it by its name


@each_shape
def test_what_a_failed_run_had_finished_is_resumed(write_rows, tmp_path, shape):
    job = spec(
        write_rows([float(i) for i in range(1, 200)]), tmp_path, batch_size=8, compute="local"
    )
    failing = tmp_path / "failing"
    failing.touch()
    model = shaped(FOR_NOW[shape], exit_once=str(failing))
    with pytest.raises(sd.PredictError, match="line 150"):
        BatchRunner(model).run(job)
    failing.unlink()

    result = BatchRunner(model).run(job)

    assert result.resumed_rows >= 8
    assert [r["value"] for r in read_rows(result.sink)] == [2.0 * i for i in range(1, 200)]


@each_shape
def test_memory_that_runs_out_is_got_over(write_rows, tmp_path, shape):
    job = spec(write_rows(VALUES), tmp_path, batch_size=32, compute="local")

    result = BatchRunner(shaped(shape, memory_rows=5)).run(job)

    assert [r["value"] for r in read_rows(result.sink)] == [2 * v for v in VALUES]
    assert result.halved_batches > 0


@beyond_one_call
@local_or_tasks
def test_rows_that_hang_are_recorded_and_the_rest_is_answered(write_rows, tmp_path, mode, shape):
    values = [float(i) for i in range(40)]
    limit = 1.5 if mode["compute"] == "local" else 2.5
    job = spec(
        write_rows(values), tmp_path, batch_size=4, batch_timeout=limit, on_error="record", **mode
    )

    result = BatchRunner(shaped(shape, hang_on=[9, 11])).run(job)

    rows = read_rows(result.sink)
    assert [r["error"]["type"] for r in rows if "error" in r] == ["BatchTimeoutError"] * 2
    assert [r.get("value") for r in rows] == [None if v in (9, 11) else 2 * v for v in values]


@pytest.mark.parametrize("how", ["sleep", "spin"])
@pytest.mark.parametrize("stage", ["prepare", "respond"])
def test_so_they_are_where_they_hang_beside_the_device(write_rows, tmp_path, stage, how):
    values = [float(i) for i in range(16)]
    model = shaped("stages", stage=stage, hang_on=[9], hang_how=how)
    job = spec(
        write_rows(values),
        tmp_path,
        batch_size=4,
        batch_timeout=1.5,
        on_error="record",
        compute="local",
    )

    result = BatchRunner(model).run(job)

    assert [r.get("value") for r in read_rows(result.sink)] == [
        None if v == 9 else 2 * v for v in values
    ]


@beyond_one_call
def test_a_backend_that_hangs_ends_a_job_that_is_to_fail(write_rows, tmp_path, shape):
    job = spec(write_rows([1, 2, 3]), tmp_path, batch_timeout=1.0, compute="local")

    with pytest.raises(sd.BatchTimeoutError, match=r"gave no answer within batch_timeout=1 s"):
        BatchRunner(shaped(shape, hang_on=[3])).run(job)


@each_shape
def test_many_files_of_which_one_fails(write_rows, tmp_path, shape):
    jobs = [
        sd.BatchSpec(
            source=write_rows([float(i), 1.0, 3.0] * 20, name=f"{i}.jsonl"),
            sink=str(tmp_path / f"out-{i}.jsonl"),
            batch_size=4,
            compute="local",
        )
        for i in (1, 10, 3)
    ]

    outcomes = list(BatchRunner(shaped(shape, fail_every=10)).run_many(jobs))

    assert [outcome.ok for outcome in outcomes] == [True, False, True]


# -- doubt ------------------------------------------------------------------------------------


class Spoilt:
    """Of a batch with a 13 in it, every answer is not a number."""

    @staticmethod
    def of(values):
        return [math.nan if 13 in values else 2 * v for v in values]


class SpoiltInOneCall(InOneCall):
    def batch_predict(self, requests):
        answers = super().batch_predict(requests)
        for answer, value in zip(answers, Spoilt.of([r.value for r in requests]), strict=True):
            answer.value = value
        return answers


class SpoiltInStages(InStages):
    def infer(self, prepared):
        return Spoilt.of([r.value for r in prepared])


@pytest.mark.parametrize("cls", [SpoiltInOneCall, SpoiltInStages])
@local_or_tasks
def test_one_row_that_spoils_its_mates_answers_is_alone_with_it(write_rows, tmp_path, mode, cls):
    values = [float(v) for v in range(10, 42)]

    result = BatchRunner(shaped(cls)).run(spec(write_rows(values), tmp_path, batch_size=8, **mode))

    rows = read_rows(result.sink)
    assert [r["value"] for r in rows] == [None if v == 13 else 2 * v for v in values]
    assert result.non_finite == 1


class NeverANumber(InOneCall):
    def batch_predict(self, requests):
        answers = super().batch_predict(requests)
        for answer in answers:
            answer.value = math.inf
        return answers


def test_a_model_that_answers_so_to_any_row_costs_three_calls_more_a_batch(write_rows, tmp_path):
    calls = tmp_path / "calls"
    model = shaped(NeverANumber, call_log=str(calls))

    result = BatchRunner(model).run(
        spec(write_rows([1.0] * 32), tmp_path, batch_size=16, compute="local")
    )

    assert result.non_finite == 32
    assert calls.read_text().split() == ["16", "1", "1", "1"] * 2


# -- what is refused --------------------------------------------------------------------------


class TooFew(InStages):
    def infer(self, prepared):
        return super().infer(prepared)[:-1]


class Swapped(InStages):
    def respond(self, requests, outputs):
        return super().respond(requests, outputs)[::-1]


class OfAnotherRow(InFlight):
    async def predict_async(self, request):
        answer = await super().predict_async(request)
        return answer.model_copy(update={"request_id": "00000000-0000-0000-0000-000000000000"})


class NoResponse(InFlight):
    async def predict_async(self, request):
        return {"value": 2 * request.value}


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (TooFew, r"lines 1–3: TooFew.infer returned 2 outputs for 3 prepared rows"),
        (Swapped, r"line 1: Swapped answered request .* respond must keep the order"),
        (OfAnotherRow, r"line 1: OfAnotherRow answered request 0{8}"),
        (NoResponse, r"line 1: NoResponse returned dict instead of a response"),
    ],
)
@pytest.mark.parametrize("on_error", ["fail", "record"])
def test_wrong_answers_end_the_job(write_rows, tmp_path, cls, message, on_error):
    with pytest.raises(sd.ResponseMismatchError, match=message):
        BatchRunner(shaped(cls)).run(
            spec(write_rows([1, 2, 3]), tmp_path, compute="local", on_error=on_error)
        )


def test_a_number_of_rows_in_flight_that_makes_no_sense_is_refused(write_rows, tmp_path):
    with pytest.raises(sd.SpecError, match="max_in_flight must be a whole number of at least 1"):
        BatchRunner(shaped("flight", most=0)).run(spec(write_rows([1]), tmp_path, compute="local"))
