"""The batch size that a worker finds by itself."""

from __future__ import annotations

import pytest

import sheaf_dagster as sd
from sheaf_dagster.batch.worker.sizing import AUTO_LAYOUT_ROWS, BatchSizer, spans
from tests.conftest import read_rows
from tests.toys import doubler


def settle(sizer: BatchSizer, seconds, *, memory_rows: int | None = None, room: int = 4096):
    """Runs batches until the size is final; returns the sizes that were tried."""
    tried = []
    sizer.make_room(room)
    for _ in range(200):
        if sizer.settled:
            break
        rows = sizer.size
        tried.append(rows)
        if memory_rows is not None and rows > memory_rows:
            sizer.out_of_memory(rows)
        else:
            sizer.observe(rows, seconds(rows))
    assert sizer.settled
    return list(dict.fromkeys(tried))


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        (lambda rows: 0.001 * rows, 8),  # linear: batching gains nothing
        (lambda rows: 0.010 + 0.001 * rows, 512),  # a fixed cost that stops to count
        (lambda rows: 0.010, 4096),  # the more the better, up to what there is
        (lambda rows: 0.010 + 0.001 * rows if rows <= 64 else 0.004 * rows, 64),  # falls off
    ],
)
def test_it_grows_while_that_pays_and_then_holds(seconds, best):
    sizer = BatchSizer()
    settle(sizer, seconds)
    assert sizer.size == best
    sizer.observe(best, 100.0)
    assert sizer.size == best


def test_it_stays_within_memory():
    sizer = BatchSizer()
    assert settle(sizer, lambda rows: 0.01, memory_rows=100) == [8, 16, 32, 64, 128]
    assert sizer.size == 64

    sizer.out_of_memory(64)  # longer rows came
    assert sizer.size == 32


def test_memory_for_less_than_the_first_size():
    sizer = BatchSizer()
    sizer.make_room(512)
    for rows in (8, 4):
        sizer.out_of_memory(rows)
    assert sizer.size == 2


def test_one_slow_batch_does_not_decide():
    calls = iter(range(1000))

    def seconds(rows):
        return 5.0 if next(calls) % 3 == 0 else 0.010  # the first of each size compiles

    sizer = BatchSizer()
    settle(sizer, seconds, room=512)
    assert sizer.size == 512


def test_batches_of_another_size_do_not_count():
    sizer = BatchSizer()
    sizer.make_room(512)
    for _ in range(10):
        sizer.observe(7, 0.001)
    assert sizer.size == 8 and not sizer.settled


def test_the_size_is_asked_for_as_each_batch_is_cut():
    sizes = iter([2, 4, 4, 4])
    assert list(spans(9, lambda: next(sizes))) == [(0, 2), (2, 6), (6, 9)]


def test_auto_answers_every_row_in_order_and_reports_its_size(write_rows, tmp_path):
    source = write_rows(list(range(1500)))
    calls = tmp_path / "calls"
    model = doubler(batch_seconds=0.01, memory_rows=100, call_log=str(calls))

    result = sd.BatchRunner(model).run(
        sd.BatchSpec(
            source=source,
            sink=str(tmp_path / "out.jsonl"),
            compute="local",
            batch_size="auto",
        )
    )

    assert [r["value"] for r in read_rows(result.sink)] == [2 * i for i in range(1500)]
    assert result.batch_size in (32, 64)  # on a busy machine a call of 64 may look the slower one
    assert result.halved_batches >= 1
    assert result.chunks == -(-1500 // AUTO_LAYOUT_ROWS)
    sizes = [int(line) for line in calls.read_text().split()]
    assert sizes[:3] == [8, 8, 8]
    assert sizes[-3] == result.batch_size


def test_auto_groups_rows_by_value_too(tmp_path, write_rows):
    source = write_rows([1.0] * 300)
    runner = sd.BatchRunner(doubler())
    spec = sd.BatchSpec(
        source=source,
        sink=str(tmp_path / "out.jsonl"),
        compute="local",
        batch_size="auto",
        bucket_by="group",
    )
    assert runner.run(spec).rows == 300


def test_auto_is_a_layout_of_its_own(tmp_path, write_rows):
    runner = sd.BatchRunner(doubler())
    spec = sd.BatchSpec(source=write_rows([1]), sink=str(tmp_path / "o"), compute="local")
    fixed = spec.model_copy(update={"batch_size": AUTO_LAYOUT_ROWS})
    auto = spec.model_copy(update={"batch_size": "auto"})
    assert runner.fingerprint(fixed) != runner.fingerprint(auto)
    assert sd.BatchSpec.model_validate_json(auto.model_dump_json()) == auto
    with pytest.raises(ValueError, match='greater than 0, or "auto"'):
        sd.BatchSpec(source="a", sink="b", batch_size=0)


@pytest.mark.ray
def test_auto_on_actors(ray_cluster, tmp_path, write_rows):
    result = sd.BatchRunner(doubler(batch_seconds=0.003)).run(
        sd.BatchSpec(
            source=write_rows(list(range(2048))),
            sink=str(tmp_path / "out.jsonl"),
            compute="actors",
            num_actors=2,
            batch_size="auto",
        )
    )
    assert [r["value"] for r in read_rows(result.sink)] == [2 * i for i in range(2048)]
    assert result.batch_size > 8
