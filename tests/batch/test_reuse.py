"""Reusing the answers of an earlier output: which rows are run, and what the new output holds."""

from __future__ import annotations

import datetime as dt
import json
import logging
import os
import random
from dataclasses import replace
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import sheaf_dagster as sd
from sheaf_dagster import BatchRunner, BatchSpec
from sheaf_dagster.batch.fingerprint import job_fingerprint
from sheaf_dagster.batch.reuse.previous import made_by
from sheaf_dagster.batch.worker.loading import ModelContext
from sheaf_dagster.storage import Location, read_lines
from tests.batch.jobs import MODES, here_and_in_workers, leftovers
from tests.batch.reuse_job import ROWS, Job, doubled, values
from tests.toys import Moody, NumberResponse, shaped


@pytest.fixture
def job(tmp_path):
    return Job(tmp_path)


@here_and_in_workers
@pytest.mark.parametrize("sink", ["out.jsonl", "out.parquet"])
def test_only_changed_rows_are_run_and_the_output_is_that_of_a_full_run(mode, sink, tmp_path):
    job = Job(tmp_path, sink, **mode)
    job.run(ROWS)
    rows = [dict(row) for row in ROWS]
    rows[7]["value"], rows[60]["value"] = 1000, 2000

    result = job.run(rows)

    reused = open(job.sink, "rb").read()
    assert job.ran == 2
    assert (result.rows, result.reused_rows, result.output_rows) == (120, 118, 120)
    assert leftovers(tmp_path) == [f".{sink}.sheaf-index", sink]
    full = job.run(rows, reuse=None, compute="local", num_actors=None)
    assert open(job.sink, "rb").read() == reused
    assert full.reused_rows == 0 and full.fingerprint == result.fingerprint


EDITS = {
    "deleted": lambda rows: rows[:3] + rows[50:],
    "reversed": lambda rows: rows[::-1],
    "shuffled": lambda rows: random.Random(5).sample(rows, len(rows)),
    "duplicated": lambda rows: [row for row in rows for _ in range(3)],
    "inserted": lambda rows: rows[:1] + [dict(rows[0], value=500)] + rows[1:],
    "other keys first": lambda rows: [dict(reversed(row.items())) for row in rows],
    "named": lambda rows: [
        dict(row, request_id=f"00000000-0000-4000-8000-{n:012}") for n, row in enumerate(rows)
    ],
}


@pytest.mark.parametrize(
    ("edit", "suffix"),
    [
        *((edit, "") for edit in EDITS),
        ("shuffled", ".gz"),
        ("inserted", ".zst"),
        *((edit, ".parquet") for edit in ("inserted", "duplicated", "named")),
    ],
)
def test_rows_keep_their_answers_wherever_they_go(job, edit, suffix):
    job.sink += suffix
    job.run(ROWS)
    rows = EDITS[edit](ROWS)

    result = job.run(rows)

    assert values(job.answers) == doubled(rows)
    assert job.ran == (edit == "inserted")
    assert result.reused_rows == len(rows) - job.ran
    ids = [answer["request_id"] for answer in job.answers]
    again = job.run(rows, reuse=None)
    assert ids == [answer["request_id"] for answer in job.answers]
    assert again.output_rows == len(set(ids)) == len(rows)


@pytest.mark.parametrize(
    ("compute", "suffix"), [("local", ""), ("tasks", ""), ("local", ".parquet")]
)
def test_nothing_is_loaded_where_nothing_changed(job, compute, suffix):
    job.sink += suffix
    job.run(ROWS)
    before = open(job.sink, "rb").read()
    (job.folder / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    spec = BatchSpec(
        source=str(job.folder / "in.jsonl"), sink=job.sink, reuse="previous", compute=compute
    )
    model = shaped("call", call_log=str(job.calls), num_cpus=10_000)  # more than any cluster has

    result = BatchRunner(model).run(spec)

    assert (result.reused_rows, result.workers, result.load_seconds) == (120, 0, 0)
    assert open(job.sink, "rb").read() == before


@pytest.mark.parametrize("shape", ["stages", "flight"])
def test_the_rest_is_run_in_any_shape(job, shape):
    job.run(ROWS, shape)
    rows = [*ROWS, *(dict(ROWS[0], value=v) for v in (300, 301, 300))]

    result = job.run(rows, shape)

    assert values(job.answers) == doubled(rows)
    assert (result.reused_rows, result.repeated_rows) == (120, 1)


@pytest.mark.parametrize(
    "layout", [{}, {"bucket_by": "group"}, {"on_error": "record"}, {"keep": ["sku"]}]
)
@pytest.mark.parametrize("suffix", ["", ".parquet"])
def test_rows_of_equal_content_are_run_once(job, layout, suffix):
    job.sink += suffix
    rows = [dict(ROWS[0], value=n % 7, group=n % 7 % 2, sku=f"{n % 7}") for n in range(300)]

    result = job.run(rows, **layout)

    assert (job.ran, result.repeated_rows, result.reused_rows) == (7, 293, 0)
    assert values(job.answers) == doubled(rows)
    assert len({answer["request_id"] for answer in job.answers}) == 300
    if "keep" in layout:
        assert [answer["sku"] for answer in job.answers] == [row["sku"] for row in rows]
    assert job.run(rows, **layout).reused_rows == 300


@pytest.mark.parametrize("suffix", ["", ".parquet"])
def test_rows_repeat_the_error_of_an_equal_row_and_error_rows_are_not_reused(job, suffix):
    job.sink += suffix
    rows = [dict(ROWS[0], value=n % 4) for n in range(40)]

    result = job.run(rows, on_error="record", model={"fail_on": 3.0})

    assert result.error_rows == 10
    assert [row.get("value") for row in job.answers] == [0, 2, 4, None] * 10
    mended = job.run(rows, on_error="record", model={"fail_on": 3.0})
    assert (mended.error_rows, mended.reused_rows) == (10, 30)
    with pytest.raises(sd.TooManyErrorsError):
        job.run(rows, on_error="record", max_error_rows=5, model={"fail_on": 3.0})


def test_answers_of_another_model_or_other_columns_are_not_reused(job, caplog):
    job.run(ROWS)

    assert job.run(ROWS, model={"batch_seconds": 0.0001}).reused_rows == 0
    assert "aren't reused, because these have changed since: model" in caplog.text
    assert job.run(ROWS, model={"batch_seconds": 0.0001}, keep=["sku"]).reused_rows == 0
    assert "have changed since: fields that travel along (keep)" in caplog.text


class Wider(NumberResponse):
    """The answer of a later version of a contract."""

    unit: str = "m"


def test_answers_to_another_form_of_answer_are_not_reused_nor_resumed():
    model = ModelContext.of(shaped("call"))
    wider = replace(model, rows=replace(model.rows, response=Wider))
    spec = BatchSpec(source="a", sink="b")

    then, now = made_by(model, spec), made_by(wider, spec)

    assert {name for name in now if now[name] != then[name]} == {"contract"}
    assert job_fingerprint(model, spec, "") != job_fingerprint(wider, spec, "")


def damage_end(index, _):
    with open(index, "r+b") as file:
        file.truncate(os.path.getsize(index) - 1)


def damage_record(index, _):
    with open(index, "r+b") as file:
        file.seek(100)
        file.write(b"\xff\x00\xff")


def remove(index, _):
    os.remove(index)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (damage_end, "index is damaged, so it isn't used: its end is missing"),
        (damage_record, "its records don't match their checksum"),
        (remove, "has no index beside it"),
    ],
)
def test_an_index_of_no_use_is_said_and_written_anew(job, caplog, harm, said):
    job.run(ROWS)
    harm(f"{job.folder}/out/.out.jsonl.sheaf-index", job)

    with caplog.at_level(logging.WARNING):
        assert job.run(ROWS).reused_rows == 0

    assert said in caplog.text and "the index is rebuilt" in caplog.text
    assert job.run(ROWS).reused_rows == 120


@pytest.mark.parametrize("suffix", ["", ".gz", ".parquet"])
def test_an_index_of_another_output_gives_no_answers(job, suffix):
    job.sink += suffix
    job.run(ROWS)
    job.run([dict(row, value=row["value"] + 1) for row in ROWS], reuse=None)

    result = job.run(ROWS)

    assert values(job.answers) == doubled(ROWS)
    assert result.reused_rows == 0


def test_a_run_without_reuse_leaves_no_index_of_what_it_replaces(job):
    job.run(ROWS)
    index = job.folder / "out" / ".out.jsonl.sheaf-index"
    old = index.read_bytes()

    job.run(ROWS, reuse=None, shape="flight")

    assert not index.exists()
    index.write_bytes(old)  # as if it couldn't be removed, beside answers of another length
    job.run([dict(row, value=1000 + row["value"]) for row in ROWS], reuse=None)
    index.write_bytes(old)
    result = job.run(ROWS)
    assert (result.reused_rows, job.ran, values(job.answers)) == (0, 120, doubled(ROWS))


def test_an_output_that_is_gone_is_no_obstacle(job):
    job.run(ROWS)
    os.remove(job.sink)

    assert job.run(ROWS).reused_rows == 0
    assert values(job.answers) == doubled(ROWS)


def test_what_is_done_is_resumed_and_the_rest_is_reused(job):
    (moods := job.folder / "moods").mkdir()
    job.model = shaped(Moody, moods=str(moods), call_log=str(job.calls))
    job.run(ROWS)
    rows = [dict(row, value=n if n % 10 else n + 0.5) for n, row in enumerate(ROWS)]
    (moods / "60.5").touch()
    with pytest.raises(sd.PredictError, match="not today"):
        job.run(rows)
    assert values(job.answers) == doubled(ROWS)
    (moods / "60.5").unlink()

    result = job.run(rows)

    assert (result.resumed_rows, job.ran, result.reused_rows) == (6, 6, 108)
    assert values(job.answers) == doubled(rows)


@pytest.mark.ray
@pytest.mark.parametrize("mode", [MODES[2]], indirect=True)
def test_each_file_of_a_job_reuses_the_one_before_it(mode, write_rows, tmp_path):
    """As the days of a backfill do: each waits until the day before is there."""
    outputs = [str(tmp_path / f"out/{day}.jsonl") for day in range(4)]
    days = [
        BatchSpec(
            source=write_rows([*range(50), 1000 + day], name=f"in/{day}.jsonl"),
            sink=outputs[day], reuse_from=outputs[day - 1], batch_size=8, **mode,
        )
        for day in range(4)
    ]  # fmt: skip

    outcomes = list(BatchRunner(shaped("call")).run_many(days))

    results = {o.result.sink: o.result for o in outcomes if o.result}
    assert [results[sink].reused_rows for sink in outputs] == [0, 50, 50, 50]
    for day, sink in enumerate(outputs):
        answers = [json.loads(line)["value"] for _, line in read_lines(Location.of(sink))]
        assert answers == [*range(0, 100, 2), 2000 + 2 * day]


def test_two_outputs_reuse_one(job, tmp_path, caplog):
    job.run(ROWS)
    results = []
    for n in (1, 2):
        other = Job(tmp_path, f"day-{n}.jsonl", reuse=None, reuse_from=job.sink)
        results.append(other.run([*ROWS, dict(ROWS[0], value=1000 + n)]))
        assert values(other.answers) == [*doubled(ROWS), 2000 + 2 * n]

    assert [result.reused_rows for result in results] == [120, 120]
    absent = Job(tmp_path, "first.jsonl", reuse=None, reuse_from=f"{job.sink}-none")
    assert absent.run(ROWS).reused_rows == 0
    assert "out.jsonl-none doesn't exist, so all rows are run" in caplog.text


@pytest.mark.parametrize("suffix", ["", ".parquet"])
def test_invalid_rows_keep_their_places_and_are_never_reused(job, suffix):
    job.sink += suffix
    rows = [dict(ROWS[0], value=n if n % 5 else "no") for n in range(40)]

    for reused in (0, 32):
        result = job.run(rows, on_invalid="record")
        assert (result.error_rows, result.reused_rows) == (8, reused)
        assert [row.get("value") for row in job.answers] == [
            2 * n if n % 5 else None for n in range(40)
        ]


def test_rows_that_failed_are_run_again_beside_an_index(job):
    job.run(ROWS, on_error="record", model={"fail_every": 50})
    mended = job.run(ROWS, on_error="record", only="failed", model={"fail_every": 50})

    assert mended.error_rows == 3
    again = job.run(ROWS, on_error="record", model={"fail_every": 50})
    assert (again.reused_rows, again.error_rows) == (117, 3)


@pytest.mark.s3
@pytest.mark.parametrize("sink", ["out.jsonl", "out.parquet"])
def test_an_output_in_s3_is_reused(s3, sink, tmp_path):
    job = Job(tmp_path, storage_options=s3.options())
    job.sink = s3.uri(sink)
    job.run(ROWS)

    result = job.run([*ROWS[::-1], dict(ROWS[0], value=1000)])

    assert (result.reused_rows, job.ran) == (120, 1)
    lines = read_lines(Location.of(job.sink, s3.options()))
    assert [json.loads(line)["value"] for _, line in lines] == [*doubled(ROWS)[::-1], 2000]


def test_one_source_of_answers_is_enough():
    with pytest.raises(ValueError, match="leave one of them out"):
        BatchSpec(source="a", sink="b", reuse="previous", reuse_from="c")


def table_of_rows(path, rows):
    prices = [None if row["price"] is None else Decimal(row["price"]) for row in rows]
    columns = {
        "model_name": ["m"] * len(rows),
        "value": [float(row["value"]) for row in rows],
        "price": pa.array(prices, pa.decimal128(30, 2)),
        "day": [dt.date(2026, 1, 1 + row["value"] % 28) for row in rows],
    }
    pq.write_table(pa.table(columns), path)


def test_a_table_reuses_the_answers_to_a_table_with_the_types_of_its_columns(tmp_path):
    rows = [{"value": n, "price": f"{n}.10" if n % 9 else None} for n in range(60)]
    source, sink = tmp_path / "in.parquet", tmp_path / "out.parquet"
    model = shaped("call", fail_every=50)
    how = {"keep": ["price", "day"], "compute": "local", "batch_size": 8, "on_error": "record"}
    spec = BatchSpec(source=str(source), sink=str(sink), reuse="previous", **how)
    runner = BatchRunner(model, on_progress=None)
    table_of_rows(source, rows)
    runner.run(spec)
    rows = [*rows[::-1], {"value": 7, "price": "12345678901234567890.10"}, *rows[:9]]
    table_of_rows(source, rows)

    result = runner.run(spec)

    reused = sink.read_bytes()
    assert (result.rows, result.reused_rows) == (70, 66)
    assert pq.read_table(sink).column("price").to_pylist()[60] == Decimal("12345678901234567890.10")
    full = spec.model_copy(update={"reuse": None})
    runner.run(full)
    assert sink.read_bytes() == reused
    runner = BatchRunner(shaped("call"), on_progress=None)
    assert runner.run(full.model_copy(update={"only": "failed"})).reused_rows == 67
    mended = sink.read_bytes()
    runner.run(full)
    assert sink.read_bytes() == mended


def test_fields_of_several_types_are_no_obstacle(tmp_path):
    job = Job(tmp_path, "out.parquet", keep=["price"])
    prices = [{}, {"price": 1}, {"price": 1.5}]  # of one chunk after the other
    rows = [{**row, **prices[n // 40]} for n, row in enumerate(ROWS)]
    job.run(rows)
    before = open(job.sink, "rb").read()

    result = job.run(rows + rows[:1])

    assert (result.reused_rows, job.ran) == (121, 0)
    job.run(rows)
    assert open(job.sink, "rb").read() == before


def test_answers_go_from_lines_to_a_table_and_never_lose_digits(job, tmp_path, caplog):
    job.run(ROWS)

    def other(sink, of, **fields):
        made = Job(tmp_path, sink, reuse=None, reuse_from=of, **fields)
        return made, made.run(ROWS)

    narrow, result = other("a.parquet", job.sink, float_type="float32")
    assert result.reused_rows == 120
    assert pq.read_table(narrow.sink).schema.field("value").type == pa.float32()
    for sink in ("b.parquet", "b.jsonl"):
        wide, result = other(sink, narrow.sink)
        assert result.reused_rows == 0
        assert values(wide.answers) == doubled(ROWS)
        assert "aren't reused, because these have changed since: form of the output" in caplog.text
