"""Reuse where the earlier output or its index is damaged, replaced or removed, also while a job reads it."""

from __future__ import annotations

import json
import os
import random

import numpy as np
import pytest

import sheaf_dagster as sd
from sheaf_dagster.batch.kept import LINES
from sheaf_dagster.batch.reuse.index import IndexDamagedError, IndexWriter, open_index
from sheaf_dagster.batch.rows.spill import digests_of
from sheaf_dagster.storage import Location, store_at
from tests.batch.jobs import here_and_in_workers
from tests.batch.reuse_job import ROWS, Job, doubled, values
from tests.toys import Doubler


def remove(place: Location) -> None:
    store_at(place).remove()


def cut(place: Location) -> None:
    data = store_at(place).read()
    store_at(place).write(data[: len(data) // 2])


def turn(place: Location) -> None:
    """Puts its lines into another order."""
    store_at(place).write(b"".join(store_at(place).read().splitlines(keepends=True)[::-1]))


def edit(place: Location) -> None:
    store_at(place).write(store_at(place).read().replace(b"0", b"7"))


def spoil(place: Location) -> None:
    data = store_at(place).read()
    middle = len(data) // 2
    store_at(place).write(data[:middle] + b"\xff\x00\xff\x17" + data[middle + 4 :])


def empty(place: Location) -> None:
    store_at(place).write(b"")


HARM = {harm.__name__: harm for harm in (remove, cut, turn, edit, spoil, empty)}


class Meddler(Doubler):
    """Harms the earlier output once the model is loaded, when answers are about to be read there."""

    tunables = frozenset({"harm"})

    def __init__(self, output: str, options: dict, harm: str | None = None, **kwargs) -> None:
        super().__init__(**kwargs)
        self.output, self.harm = Location.of(output, options), harm

    def load(self) -> None:
        super().load()
        if self.harm is not None:
            HARM[self.harm](self.output)


def run_beside_a_meddler(job: Job, harm: str, options: dict | None = None):
    """Runs rows of which a fifth changed, while the earlier output is harmed."""

    def meddler(harm: str | None) -> sd.ModelSpec:
        kwargs = {
            "output": job.sink,
            "options": options or {},
            "harm": harm,
            "call_log": str(job.calls),
        }
        return sd.ModelSpec(
            name="m", model_type="number", backend=f"{__name__}:Meddler", backend_kwargs=kwargs
        )

    job.model = meddler(None)
    job.run(ROWS)
    rows = [dict(row, value=n if n % 5 else 1000 + n) for n, row in enumerate(ROWS)]
    job.model = meddler(harm)
    return rows, job.run(rows)


@pytest.mark.parametrize("harm", ["remove", "cut", "turn", "edit"])
def test_answers_that_go_while_a_job_reads_them_are_made_again(tmp_path, harm, caplog):
    job = Job(tmp_path)

    rows, result = run_beside_a_meddler(job, harm)

    lost = 96 - result.reused_rows
    assert values(job.answers) == doubled(rows)
    assert (job.ran, lost > 0) == (24 + lost, True)
    assert f"out.jsonl: {lost} answers aren't where the index says" in caplog.text
    assert job.run(rows).reused_rows == 120


@pytest.mark.s3
@pytest.mark.parametrize("harm", ["remove", "cut", "turn"])
def test_the_same_in_an_object_store(s3, tmp_path, harm, caplog):
    job = Job(tmp_path, storage_options=s3.options())
    job.sink = s3.uri("out.jsonl")

    rows, result = run_beside_a_meddler(job, harm, s3.options())

    answers = [json.loads(line) for line in s3.get("out.jsonl").splitlines()]
    assert values(answers) == doubled(rows)
    assert result.reused_rows == (44 if harm == "cut" else 0)
    assert "answers aren't where the index says" in caplog.text
    assert job.run(rows).reused_rows == 120


@here_and_in_workers
@pytest.mark.parametrize("named", [False, True])
def test_a_chunk_that_needed_no_model_is_run_where_one_of_its_answers_has_changed(
    mode, named, tmp_path
):
    ids = [{"request_id": f"00000000-0000-4000-8000-{n:012}"} if named else {} for n in range(120)]
    rows = [{**id, **row} for id, row in zip(ids, ROWS, strict=True)]
    job = Job(tmp_path, **mode)
    job.run(rows)
    lines = open(job.sink, "rb").read()
    before = [bytes(line) for line in lines.splitlines()]
    with open(job.sink, "r+b") as f:
        f.seek(lines.index(b":100.0") if b":100.0" in lines else lines.index(b":100,"))
        f.write(b":999")

    result = job.run(rows)

    assert (job.ran, result.reused_rows) == (1, 119)
    assert open(job.sink, "rb").read().splitlines() == before
    assert job.run(rows).reused_rows == 120
    assert job.ran == 0
    assert open(job.sink, "rb").read() == lines


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst", ".parquet"])
@pytest.mark.parametrize("harm", ["cut", "spoil", "empty"])
def test_a_damaged_output_is_said_and_no_obstacle(tmp_path, harm, suffix, caplog):
    job = Job(tmp_path, f"out.jsonl{suffix}")
    job.run(ROWS)
    HARM[harm](Location.of(job.sink))

    result = job.run(ROWS)

    assert values(job.answers) == doubled(ROWS)
    assert result.reused_rows < 120
    assert "answers aren't where the index says" in caplog.text or (
        "Answers can't be reused, so all rows are run" in caplog.text
    )
    assert job.run(ROWS).reused_rows == 120


def test_the_index_of_another_output_is_said(tmp_path, caplog):
    job, other = Job(tmp_path), Job(tmp_path, "other.jsonl")
    other.run([dict(row, value=row["value"] + 5) for row in ROWS[:60]])
    job.run(ROWS)
    os.replace(f"{tmp_path}/out/.other.jsonl.sheaf-index", f"{tmp_path}/out/.out.jsonl.sheaf-index")

    result = job.run(ROWS)

    assert result.reused_rows == 0
    assert values(job.answers) == doubled(ROWS)
    assert "out.jsonl: 60 answers aren't where the index says" in caplog.text


RECORDS = 40


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """The bytes of an index, and the digests that it knows."""
    place = Location.of(str(tmp_path_factory.mktemp("index") / "index"))
    digests = digests_of(random.Random(1).randbytes(16 * RECORDS))
    lines = np.zeros(RECORDS, dtype=LINES)
    lines["length"], lines["check"], lines["answers"] = 50, np.arange(RECORDS), True
    with IndexWriter({"model": "a", "contract": "b"}) as writer:
        writer.add(digests, lines)
        writer.finish()
        writer.write(place)
    return store_at(place).read(), digests


def damaged(data: bytes, chance: random.Random) -> bytes:
    """The bytes with a random damage: some changed, cut out, added, moved or zeroed."""
    at, size = chance.randrange(len(data)), chance.choice([1, 1, 2, 4, 64])
    some = chance.randbytes(size)
    return chance.choice(
        [
            data[:at] + some + data[at + size :],
            data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :],
            data[:at],
            data[at:],
            data[:at] + data[at + size :],
            data[:at] + some + data[at:],
            data[:at] + bytes(len(data) - at),
            data + data[at:],
            data[at:] + data[:at],
        ]
    )


def test_no_damage_makes_an_index_name_another_place(index, tmp_path):
    data, digests = index
    place = Location.of(str(tmp_path / "index"))
    store_at(place).write(data)
    with open_index(place) as whole:
        right = whole.places(digests)
    chance = random.Random(7)
    found_out = 0
    for _ in range(600):
        harmed = damaged(data, chance)
        store_at(place).write(harmed)
        try:
            with open_index(place) as opened:
                assert opened.head.made_by != whole.head.made_by or harmed == data
                for now, then in zip(opened.places(digests), right, strict=True):
                    assert (now == then).all()
        except IndexDamagedError:
            found_out += 1
    assert found_out > 500


@pytest.mark.parametrize(
    "head",
    [
        b"[]",
        b"{}",
        b"null",
        b'{"made_by": [], "rows": 0, "crc": 0}',
        b'{"made_by": {"model": 1}, "rows": 0, "crc": 0}',
        b'{"made_by": {}, "rows": 0.0, "crc": 0}',
        b'{"made_by": {}, "rows": null, "crc": 0}',
        b"\xff{",
        b"[" * 100_000,
    ],
)
def test_a_head_of_another_form_is_damage(head, tmp_path):
    place = Location.of(str(tmp_path / "index"))
    store_at(place).write(head + len(head).to_bytes(4, "little") + b"sheafidx")

    with pytest.raises(IndexDamagedError, match="head can't be read"), open_index(place):
        pass
