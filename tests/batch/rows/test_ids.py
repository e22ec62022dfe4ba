"""Ids of rows that bring none: derived from content and occurrence."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

import sheaf_dagster as sd
from sheaf_dagster import BatchRunner
from sheaf_dagster.batch import parallel_validation
from sheaf_dagster.batch.rows import occurrences, spill
from sheaf_dagster.batch.rows.ids import id_reader
from sheaf_dagster.batch.rows.occurrences import (
    ContentsOfChunk,
    Occurrences,
    occurrence_in,
    occurrence_in_lines,
)
from sheaf_dagster.batch.rows.requests import RowContract
from sheaf_dagster.batch.rows.sample import sample_output
from sheaf_dagster.batch.validation import validate_source
from sheaf_dagster.contracts import BaseRequest, OpenAIBatchRequest, contract_for
from sheaf_dagster.storage import Location, read_lines, scan_source
from tests.batch.jobs import here_and_in_workers, spec
from tests.toys import NumberRequest, doubler

OWN = "00000000-0000-4000-8000-000000000001"


def row(value, **fields):
    return {"model_type": "number", "model_name": "m", "value": value, **fields}


def written(path, rows):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def answered(job, model=None):
    """The ids of a job's answers."""
    BatchRunner(model or doubler(), on_progress=None).run(job)
    found = [json.loads(line) for _, line in read_lines(Location.of(job.sink))]
    return [answer["request_id"] for answer in found]


def test_other_rows_do_not_change_an_id(tmp_path):
    rows = [row(n) for n in range(40)]
    job = spec(tmp_path / "in.jsonl", tmp_path, compute="local", batch_size=8)
    written(tmp_path / "in.jsonl", rows)
    ids = answered(job)

    written(tmp_path / "in.jsonl", [row(100), *rows[::-1], row(101)])

    assert answered(job)[1:-1] == ids[::-1]
    written(tmp_path / "in.jsonl", [dict(reversed(r.items())) for r in rows])
    assert answered(job) == ids, "nor does the order of fields"


@here_and_in_workers
def test_equal_rows_have_ids_of_their_own_in_every_mode_and_layout(mode, tmp_path):
    rows = [row(n % 3) if n % 7 else row(n % 3, request_id=OWN) for n in range(300)]
    source = written(tmp_path / "in.jsonl", rows)
    expected = answered(spec(source, tmp_path, compute="local", batch_size=1000))

    layouts = [{"batch_size": 16}, {"batch_size": 5, "bucket_by": "group"}]
    for fields in layouts if mode["compute"] == "local" else layouts[:1]:
        assert answered(spec(source, tmp_path, **mode, **fields)) == expected

    named = expected[::7]
    assert set(named) == {OWN}
    assert len(set(expected)) == len(rows) - len(named) + 1
    limited = spec(source, tmp_path, compute="local", row_limit=100)
    assert answered(limited) == expected[:100]


def test_rows_of_several_files_are_counted_together(tmp_path):
    files = [str(written(tmp_path / f"{n}.jsonl", [row(1), row(n)])) for n in range(3)]
    job = spec(files[0], tmp_path, compute="local").model_copy(update={"source": files})
    one = written(tmp_path / "one.jsonl", [row(1), row(0), row(1), row(1), row(1), row(2)])

    together = answered(job)

    assert together == answered(spec(one, tmp_path, compute="local"))
    assert len(set(together)) == 6


def test_invalid_rows_have_ids_of_their_own(tmp_path):
    rows = [row("no"), "{", row("no"), "{", row("no", request_id=OWN), row(1), row(1)]
    source = written(tmp_path / "in.jsonl", rows)
    job = spec(source, tmp_path, compute="local", on_invalid="record", batch_size=2)

    ids = answered(job)

    assert len(set(ids)) == 7 and ids[4] == OWN
    written(tmp_path / "in.jsonl", [row(5), *rows])
    assert answered(job)[1:] == ids


def test_a_retry_goes_on_with_the_ids_of_the_first_run(tmp_path):
    source = written(tmp_path / "in.jsonl", [row(n % 4) for n in range(64)] + [row(50)])
    job = spec(source, tmp_path, compute="local", batch_size=4)
    with pytest.raises(sd.PredictError):
        answered(job, doubler(fail_on=50))

    ids = answered(job)

    assert ids == answered(job.model_copy(update={"resume": False}))
    assert len(set(ids)) == 65


def test_what_is_seen_of_a_job_has_the_ids_of_its_answers(tmp_path):
    source = written(tmp_path / "in.jsonl", [row(n % 2) for n in range(9000)])
    job = spec(source, tmp_path, compute="local")
    ids = answered(job)

    occurrence_of = occurrence_in_lines(
        NumberRequest, lambda: (line for _, line in read_lines(Location.of(str(source))))
    )
    contract = RowContract.of(contract_for("number"))
    parsed = contract.parse(list(read_lines(Location.of(str(source)))), 0, occurrence_of)

    assert [str(r.request.request_id) for r in parsed] == ids
    assert sample_output(doubler(), job).in_order


def id_of_old(position, line):
    """As versions up to now derived ids."""
    name = UUID("5f0c3f0e-6d5e-5b3a-9a43-7d2f8f1e3c11").bytes + b"%d:" % position + line
    return str(UUID(bytes=hashlib.sha1(name).digest()[:16], version=5))


def test_outputs_with_ids_of_positions_stay_of_use(tmp_path):
    rows = [row(n) for n in range(30)]
    source = written(tmp_path / "in.jsonl", rows)
    job = spec(source, tmp_path, compute="local", on_error="record")
    ids = answered(job, doubler(fail_on=7))
    lines = [json.loads(line) for _, line in read_lines(Location.of(job.sink))]
    for n, line in enumerate(lines):
        line["request_id"] = id_of_old(n, json.dumps(rows[n]).encode())
    written(tmp_path / "out" / "out.jsonl", [json.dumps(x, separators=(",", ":")) for x in lines])

    assert sample_output(doubler(), job).in_order
    assert answered(job.model_copy(update={"only": "failed"})) == ids


def test_ids_of_a_batch_file_do_not_change_with_other_rows():
    contract = RowContract.of(contract_for("openai_batch"))

    def ids(*names):
        said = {"method": "POST", "url": "/v1/completions", "body": {"prompt": "a"}}
        lines = [
            (n, json.dumps({"custom_id": name, **said}).encode()) for n, name in enumerate(names)
        ]
        found = contract.parse(
            lines, 0, occurrence_in_lines(OpenAIBatchRequest, lambda: (x for _, x in lines))
        )
        return [r.request.answer({"id": f"cmpl-{r.request.digest()}"}) for r in found]

    first, second = ids("a", "b")

    assert ids("c", "a", "b")[1:] == [first, second]
    assert len({answer.id for answer in ids("a", "a", "b")}) == 3
    (request,) = contract.parse(
        [(1, b'{"custom_id":"b","url":"/v1/completions","body":{"prompt":"a"}}')], 0
    )
    assert (
        request.request.renamed(first.model_dump_json().encode()).count(second.id[10:].encode())
        == 3
    )


@pytest.mark.parametrize(
    "said", [None, OWN, OWN.upper(), OWN.replace("-", ""), f"urn:uuid:{OWN}", f"{{{OWN}}}"]
)
def test_the_id_of_a_row_can_be_read_alone(said):
    contract = RowContract.of(contract_for("number"))
    named = {} if said is None else {"request_id": said}
    lines = [(n, json.dumps(row(1, note="é", **named)).encode()) for n in range(3)]

    alone = contract.named(lines, 4, lambda position: position - 4)

    whole = contract.parse(lines, 4, lambda position: position - 4)
    assert [r.request.request_id for r in alone] == [r.request.request_id for r in whole]
    assert [(r.position, r.line) for r in alone] == [(r.position, r.line) for r in whole]
    assert id_reader(NumberRequest) and id_reader(Tagged) is None


class Tagged(BaseRequest):
    """Has fields in which the word may stand, too."""

    model_type: str = "tagged"
    request_id: UUID | None = Field(default=None)
    tags: dict[str, str] = Field(default_factory=dict)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('{"model_type":"tagged","model_name":"m"}', False),
        (f'{{"model_type":"tagged","model_name":"m","request_id":"{OWN}"}}', True),
        (f'{{"model_type":"tagged","model_name":"m","request\\u005fid":"{OWN}"}}', True),
        ('{"model_type":"tagged","model_name":"m","tags":{"request_id":"x"}}', False),
        ('{"model_type":"tagged","model_name":"m","request_id":null}', True),
        ('{"model_type":"tagged", "model_name" : "m","beside":1}', False),
    ],
)
def test_rows_are_counted_that_bring_no_id_of_their_own(line, named):
    found = RowContract("tagged", Tagged).validate(f"{line}\n".encode(), 1)

    assert (found.invalid_rows, found.rows) == (0, 1)
    assert (found.hashes == b"") == named


@given(
    chunks=st.lists(st.lists(st.integers(0, 6), max_size=8), max_size=8),
    in_memory=st.sampled_from([1, 2**20]),
)
def test_occurrences_are_those_that_counting_all_rows_gives(chunks, in_memory):
    found = Occurrences()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(occurrences, "_IN_MEMORY", in_memory)
        patch.setattr(occurrences, "_BLOCK", 3)
        patch.setattr(spill, "_AT_A_TIME", 2 * in_memory)
        for values in chunks:
            contents = ContentsOfChunk(NumberRequest, digests=False)
            for n, value in enumerate(values):
                named = {"request_id": OWN} if value == 0 else {}
                contents.add_invalid(json.dumps(row(value, **named)).encode(), n)
            found.add(contents.hashes(len(values)))
        packed = list(found.by_chunk())

    seen: Counter[int] = Counter()
    first = 0
    for values, some in zip(chunks, packed, strict=True):
        occurrence_of = occurrence_in(some, first)
        for position, value in enumerate(values, first):
            assert occurrence_of(position) == (seen[value] if value else 0)
            seen[value] += 1
        first += len(values)


def test_one_row_over_and_over_needs_no_memory(tmp_path):
    source = written(tmp_path / "in.jsonl", [row(1)] * 20_000)
    scanned = scan_source([Location.of(str(source))], 16)
    contract = RowContract.of(contract_for("number"))
    data = source.read_bytes()

    findings = parallel_validation._Findings()
    findings.add(
        {c.index: contract.validate(data[c.start : c.end], c.first_line) for c in scanned.chunks}
    )
    assert not any(found.hashes for found in findings.by_chunk.values()), "they are on the disk"
    _, chunks = validate_source(scanned, findings.in_order())

    last = chunks[-1]
    assert occurrence_in(last.repeats, last.first_row)(19_999) == 19_999
    assert sum(len(c.repeats) for c in chunks) < 100 * len(chunks)
