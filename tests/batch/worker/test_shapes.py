"""What holds for a job holds in each shape of a backend: one call, stages, rows in flight."""

from __future__ import annotations

import json
import math
import os

import pytest

import sheaf_dagster as sd
from sheaf_dagster import BatchRunner
from sheaf_dagster.batch.layout import Layout, layout_of
from sheaf_dagster.batch.spec import BatchOptions
from tests.batch.jobs import MODES, here_and_in_workers, leftovers, spec
from tests.conftest import read_rows
from tests.toys import SHAPES, InFlight, InOneCall, InStages, NumberResponse, shaped

each_shape = pytest.mark.parametrize("shape", SHAPES)
beyond_one_call = pytest.mark.parametrize("shape", ["stages", "flight"])
local_or_tasks = pytest.mark.parametrize("mode", MODES[:2], indirect=True)
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
    assert result.shape == shape


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


InOneCallForNow, InStagesForNow, InFlightForNow = map(fails_while, (InOneCall, InStages, InFlight))


@each_shape
def test_what_a_failed_run_had_finished_is_resumed(write_rows, tmp_path, shape):
    job = spec(
        write_rows([float(i) for i in range(1, 200)]), tmp_path, batch_size=8, compute="local"
    )
    failing = tmp_path / "failing"
    failing.touch()
    name = f"{SHAPES[shape].__name__}ForNow"
    model = shaped(shape, exit_once=str(failing)).model_copy(
        update={"backend": f"{__name__}:{name}"}
    )
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


def test_a_budget_that_does_not_fit_is_lowered(write_rows, tmp_path):
    calls = tmp_path / "calls"
    source = write_rows([9.0] * 600)
    job = spec(source, tmp_path, batch_budget=1000, compute="local")

    result = BatchRunner(shaped("stages", memory_rows=30, call_log=str(calls))).run(job)

    sizes = [int(line) for line in calls.read_text().split()]
    assert sizes[:3] == [100, 50, 25]
    assert max(sizes[8:]) <= 50
    assert result.halved_batches > 0
    assert result.batch_budget <= 500


@beyond_one_call
@pytest.mark.parametrize("mode", MODES[:2], indirect=True)
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
    model = shaped("call").model_copy(update={"backend": f"{__name__}:{cls.__name__}"})

    result = BatchRunner(model).run(spec(write_rows(values), tmp_path, batch_size=8, **mode))

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
    model = shaped("call", call_log=str(calls)).model_copy(
        update={"backend": f"{__name__}:NeverANumber"}
    )

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
    model = shaped("call").model_copy(update={"backend": f"{__name__}:{cls.__name__}"})

    with pytest.raises(sd.ResponseMismatchError, match=message):
        BatchRunner(model).run(
            spec(write_rows([1, 2, 3]), tmp_path, compute="local", on_error=on_error)
        )


def test_a_number_of_rows_in_flight_that_makes_no_sense_is_refused(write_rows, tmp_path):
    with pytest.raises(sd.SpecError, match="max_in_flight must be a whole number of at least 1"):
        BatchRunner(shaped("flight", most=0)).run(spec(write_rows([1]), tmp_path, compute="local"))


@pytest.mark.parametrize("shape", ["call", "flight"])
def test_a_budget_needs_a_backend_that_knows_its_rows_sizes(write_rows, tmp_path, shape):
    job = spec(write_rows([1]), tmp_path, compute="local", batch_budget=100)

    with pytest.raises(sd.SpecError, match="doesn't say how large a row is"):
        BatchRunner(shaped(shape)).run(job)


# -- batches by size --------------------------------------------------------------------------


class Sizes(InStages):
    """Notes what each call of infer was given."""

    def infer(self, prepared):
        with open(self.call_log, "a") as f:
            f.write(json.dumps([self.size(r) for r in prepared]) + "\n")
        return [2 * r.value for r in prepared]

    def respond(self, requests, outputs):
        return [
            NumberResponse(request_id=r.request_id, model_name=r.model_name, value=v)
            for r, v in zip(requests, outputs, strict=True)
        ]


@local_or_tasks
def test_batches_by_size_stay_within_the_budget_and_hardly_pad(write_rows, tmp_path, mode):
    calls = tmp_path / "calls"
    values = [float((37 * i) % 400) for i in range(1100)]
    model = shaped("stages", call_log=str(calls)).model_copy(
        update={"backend": f"{__name__}:Sizes"}
    )

    result = BatchRunner(model).run(spec(write_rows(values), tmp_path, batch_budget=4000, **mode))

    batches = [json.loads(line) for line in calls.read_text().splitlines()]
    assert [r["value"] for r in read_rows(result.sink)] == [2 * v for v in values]
    assert all(len(b) * max(b) <= 4000 for b in batches)
    assert all(b == sorted(b, reverse=True) for b in batches)
    padded, sizes = sum(len(b) * max(b) for b in batches), sum(map(sum, batches))
    assert result.padding_fraction == pytest.approx(1 - sizes / padded)
    assert result.padding_fraction < 0.1
    assert (result.batch_size, result.batch_budget) == (None, 4000)


def test_a_row_larger_than_the_budget_is_a_batch_of_its_own(write_rows, tmp_path):
    calls = tmp_path / "calls"
    model = shaped("stages", call_log=str(calls)).model_copy(
        update={"backend": f"{__name__}:Sizes"}
    )

    BatchRunner(model).run(
        spec(write_rows([9.0, 99.0, 9.0]), tmp_path, batch_budget=30, compute="local")
    )

    assert [json.loads(line) for line in calls.read_text().splitlines()] == [[100], [10, 10]]


def test_the_best_budget_is_found(write_rows, tmp_path):
    calls = tmp_path / "calls"
    values = [float(i % 50) for i in range(4096)]
    model = shaped("stages", call_log=str(calls)).model_copy(
        update={"backend": f"{__name__}:Sizes"}
    )

    result = BatchRunner(model).run(
        spec(write_rows(values), tmp_path, batch_budget="auto", compute="local")
    )

    assert [r["value"] for r in read_rows(result.sink)] == [2 * v for v in values]
    assert result.batch_budget >= 8 * 50


def test_a_budget_is_a_layout_of_its_own(write_rows, tmp_path):
    runner = BatchRunner(shaped("stages"))
    job = spec(write_rows([1]), tmp_path, compute="local")
    prints = {
        runner.fingerprint(job.model_copy(update={"batch_budget": b, "batch_size": n}))
        for b, n in [(None, 32), (100, 32), (100, 64), ("auto", 32)]
    }
    assert len(prints) == 3
    with pytest.raises(ValueError, match="leave bucket_by out"):
        spec("in.jsonl", tmp_path, batch_budget=1, bucket_by="group")
    with pytest.raises(ValueError, match='greater than 0, or "auto"'):
        spec("in.jsonl", tmp_path, batch_budget=0)


class Windows(Sizes):
    """Takes batches by size out of eight rows, whatever sets their size."""

    window_rows = 8


def test_batches_of_so_many_rows_are_taken_by_size_where_a_backend_asks_for_it(
    write_rows, tmp_path
):
    calls = tmp_path / "calls"
    values = [5.0, 1, 9, 1, 7, 3, 9, 2, 4, 8]
    model = shaped("stages", call_log=str(calls)).model_copy(
        update={"backend": f"{__name__}:Windows"}
    )

    result = BatchRunner(model).run(
        spec(write_rows(values), tmp_path, batch_size=3, compute="local")
    )

    assert [json.loads(line) for line in calls.read_text().splitlines()] == [
        [10, 10, 8],
        [6, 5, 4],
        [3, 2, 2],
        [9],
    ]
    assert [r["value"] for r in read_rows(result.sink)] == [2 * v for v in values]
    assert (result.chunks, result.batch_size) == (2, 3)


class Unpadded(Sizes):
    """Pads nothing."""

    def padded_size(self, sizes):
        return sum(sizes)


def test_a_backend_may_know_better_how_much_it_pads(write_rows, tmp_path):
    model = shaped("stages", call_log=str(tmp_path / "calls")).model_copy(
        update={"backend": f"{__name__}:Unpadded"}
    )

    result = BatchRunner(model).run(
        spec(write_rows([1.0, 50.0]), tmp_path, batch_size=2, compute="local")
    )

    assert result.padding_fraction == 0


@pytest.mark.parametrize(
    ("options", "layout"),
    [
        ({}, Layout(32, 32)),
        ({"batch_size": 3}, Layout(9, 9)),
        ({"batch_size": 100}, Layout(100, 100)),
        ({"batch_size": "auto"}, Layout(512)),
        ({"batch_size": 3, "bucket_by": "group"}, Layout(3)),
        ({"batch_budget": 50}, Layout(8, 8)),
    ],
)
def test_a_window_holds_whole_batches_and_a_chunk_whole_windows(options, layout):
    assert layout_of(BatchOptions(**options), Windows) == layout
    assert layout_of(BatchOptions(batch_size=3), Sizes) == Layout(3)
    assert layout_of(BatchOptions(batch_budget=50), Sizes) == Layout(512, 512)
