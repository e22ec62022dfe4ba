"""Batches are taken by the sizes of their rows, so that little of them is padding."""

from __future__ import annotations

import json

import pytest

import sheaf_dagster as sd
from sheaf_dagster import BatchRunner
from sheaf_dagster.batch.layout import Layout, layout_of
from sheaf_dagster.batch.spec import BatchOptions
from tests.batch.jobs import local_or_tasks, spec
from tests.conftest import read_rows
from tests.toys import InStages, shaped


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


@pytest.mark.parametrize("shape", ["call", "flight"])
def test_a_budget_needs_a_backend_that_knows_its_rows_sizes(write_rows, tmp_path, shape):
    job = spec(write_rows([1]), tmp_path, compute="local", batch_budget=100)

    with pytest.raises(sd.SpecError, match="doesn't say how large a row is"):
        BatchRunner(shaped(shape)).run(job)


class Sizes(InStages):
    """Notes what each call of infer was given."""

    def infer(self, prepared):
        with open(self.call_log, "a") as f:
            f.write(json.dumps([self.size(r) for r in prepared]) + "\n")
        return [2 * r.value for r in prepared]


class ShortOnce(Sizes):
    """Runs out of memory once, when it prepares a row."""

    is_short = True

    def prepare(self, request):
        if request.value == 700 and self.is_short:
            self.is_short = False
            raise MemoryError("for now")
        return request


def test_the_budget_holds_where_there_was_no_room_to_prepare_a_row(write_rows, tmp_path):
    calls = tmp_path / "calls"
    values = [float(i) for i in range(900)]
    job = spec(write_rows(values), tmp_path, batch_budget=4000, compute="local")

    result = BatchRunner(shaped(ShortOnce, call_log=str(calls))).run(job)

    batches = [json.loads(line) for line in calls.read_text().splitlines()]
    assert [r["value"] for r in read_rows(result.sink)] == [2 * v for v in values]
    assert all(len(b) * max(b) <= 4000 for b in batches)
    assert sum(map(len, batches)) == 900


@local_or_tasks
def test_batches_by_size_stay_within_the_budget_and_hardly_pad(write_rows, tmp_path, mode):
    calls = tmp_path / "calls"
    values = [float((37 * i) % 400) for i in range(1100)]
    model = shaped(Sizes, call_log=str(calls))

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
    model = shaped(Sizes, call_log=str(calls))

    BatchRunner(model).run(
        spec(write_rows([9.0, 99.0, 9.0]), tmp_path, batch_budget=30, compute="local")
    )

    assert [json.loads(line) for line in calls.read_text().splitlines()] == [[100], [10, 10]]


def test_the_best_budget_is_found(write_rows, tmp_path):
    calls = tmp_path / "calls"
    values = [float(i % 50) for i in range(4096)]
    model = shaped(Sizes, call_log=str(calls))

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
    model = shaped(Windows, call_log=str(calls))

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
    model = shaped(Unpadded, call_log=str(tmp_path / "calls"))

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
