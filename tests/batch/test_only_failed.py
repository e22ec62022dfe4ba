"""Running only the rows that failed: what is run, what is kept, and when it is refused."""

from __future__ import annotations

import gzip
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import sheaf_dagster as sd
from sheaf_dagster import BatchRunner, BatchSpec
from sheaf_dagster.batch.committed import CommittedSink
from sheaf_dagster.batch.rows.answers import error_line
from sheaf_dagster.batch.rows.read_back import FailedLines
from sheaf_dagster.storage import Location, read_lines
from tests.batch.jobs import here_and_in_workers, leftovers, spec
from tests.conftest import read_rows
from tests.storage.typed_columns import COLUMNS
from tests.toys import Doubler, Moody, NumberRequest, NumberResponse, doubler, shaped

ROWS = 1000
FAILING = [0, 300, 600, 900]  # of batches of 50


def version(path: str) -> tuple[int, int]:
    """Tells a file from one that takes its place; reading it changes neither."""
    found = os.stat(path)
    return found.st_mtime_ns, found.st_ino


@pytest.fixture
def source(write_rows):
    return write_rows(list(range(ROWS)))


def run(job, model, **kwargs):
    (outcome,) = BatchRunner(model).run_many([job], **kwargs)
    if outcome.error is not None:
        raise outcome.error
    return outcome.result


def with_failures(source, tmp_path, suffix="", **fields):
    """A job whose output has error rows at ``FAILING``, and the output's lines."""
    job = spec(source, tmp_path, batch_size=50, on_error="record", **{"compute": "local"} | fields)
    job = job.model_copy(update={"sink": job.sink + suffix})
    result = run(job, doubler(fail_every=300))
    assert result.error_rows == sum(n < result.rows for n in FAILING)
    return job


def lines_of(path):
    return [json.loads(line) for _, line in read_lines(Location.of(path))]


def again(job, **fields):
    return job.model_copy(update={"only": "failed", **fields})


@here_and_in_workers
def test_only_the_failed_rows_are_run_and_the_others_keep_their_bytes(mode, source, tmp_path):
    job = with_failures(source, tmp_path, **mode)
    before = open(job.sink, "rb").read().splitlines()
    calls = tmp_path / "calls"

    result = run(again(job), doubler(call_log=str(calls)))

    after = open(job.sink, "rb").read().splitlines()
    assert [n for n, (a, b) in enumerate(zip(before, after, strict=True)) if a != b] == FAILING
    assert [json.loads(line)["value"] for line in after] == [2 * v for v in range(ROWS)]
    assert [row["request_id"] for row in map(json.loads, after)] == [
        row["request_id"] for row in map(json.loads, before)
    ]
    assert sorted(map(int, calls.read_text().split())) == [1, 1, 1, 1]
    assert (result.rows, result.reused_rows, result.error_rows) == (ROWS, ROWS - 4, 0)
    assert leftovers(tmp_path) == ["out.jsonl"]


@pytest.mark.parametrize("shape", ["call", "stages", "flight"])
def test_rows_fail_again_in_any_shape_and_the_rest_goes_on(shape, source, tmp_path):
    job = with_failures(source, tmp_path, bucket_by="group" if shape == "call" else None)

    result = run(again(job), shaped(shape, fail_on=600))

    assert result.error_rows == 1
    assert [row.get("value") for row in read_rows(job.sink)] == [
        None if v == 600 else 2 * v for v in range(ROWS)
    ]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_what_is_done_of_it_is_resumed(source, tmp_path, suffix):
    moods = tmp_path / "moods"
    moods.mkdir()
    model = shaped(Moody, moods=str(moods))
    whole = spec(source, tmp_path, compute="local", batch_size=50, on_error="record")
    run(whole, model)
    job = whole.model_copy(update={"sink": str(tmp_path / "out" / f"b.jsonl{suffix}")})
    for value in FAILING:
        (moods / str(value)).touch()
    run(job, model)
    before = open(job.sink, "rb").read()
    for value in set(FAILING) - {600}:
        (moods / str(value)).unlink()
    with pytest.raises(sd.PredictError, match="line 601"):
        run(again(job, on_error="fail"), model)
    assert open(job.sink, "rb").read() == before
    (moods / "600").unlink()

    result = run(again(job, on_error="fail"), model)

    assert (result.resumed_rows, result.reused_rows, result.error_rows) == (2, ROWS - 4, 0)
    assert [r["value"] for r in lines_of(job.sink)] == [r["value"] for r in read_rows(whole.sink)]
    assert leftovers(tmp_path) == sorted(["out.jsonl", f"b.jsonl{suffix}"])


def test_nothing_is_loaded_or_written_where_no_row_failed(source, tmp_path):
    job = spec(source, tmp_path, compute="tasks")
    run(job.model_copy(update={"compute": "local"}), doubler())
    before = version(job.sink)

    (outcome,) = BatchRunner(doubler(fail_load=True)).run_many([again(job)])

    assert outcome.unchanged and outcome.ok
    result = BatchRunner(doubler(fail_load=True)).run(again(job))
    assert (result.rows, result.reused_rows, result.error_rows) == (ROWS, ROWS, 0)
    assert version(job.sink) == before


GROWN = [
    ({"line": 5}, "out.jsonl has 1,000 lines, but the source has 999 rows"),
    ({"line": 302, "value": 5}, "in.jsonl, line 302: .* another row's answer"),
]


@pytest.mark.parametrize("known_digest", [None, "sha256:another"])
@pytest.mark.parametrize(("edit", "said"), GROWN)
def test_an_output_without_failed_rows_is_not_taken_for_that_of_another_source(
    source, tmp_path, edit, said, known_digest
):
    job = spec(source, tmp_path, compute="local", batch_size=50)
    run(job, doubler())
    before = version(job.sink)
    change(source, **edit)

    committed = known_digest and known(job, source_digest=known_digest)
    with pytest.raises(sd.PreviousOutputError, match=said):
        run(again(job), doubler(fail_load=True), committed=committed)

    assert version(job.sink) == before
    assert leftovers(tmp_path) == ["out.jsonl"]


def test_a_source_that_is_written_otherwise_and_says_the_same_leaves_the_output(source, tmp_path):
    job = spec(source, tmp_path, compute="local", batch_size=50, reuse="previous")
    run(job, doubler())
    before = version(job.sink)
    open(source, "a").write("\n\n")

    committed = known(job, source_digest="sha256:another")
    (outcome,) = BatchRunner(doubler(fail_load=True)).run_many([again(job)], committed=committed)

    assert outcome.unchanged and version(job.sink) == before
    assert leftovers(tmp_path) == [".out.jsonl.sheaf-index", "out.jsonl"]


@pytest.mark.s3
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_on_s3_it_is_as_on_disk(s3, write_rows, tmp_path, suffix):
    values = list(range(1, 301))
    s3.put("in.jsonl", open(write_rows(values), "rb").read())
    job = sd.BatchSpec(
        source=s3.uri("in.jsonl"), sink=s3.uri(f"out.jsonl{suffix}"), storage_options=s3.options(),
        compute="local", batch_size=8, on_error="record",
    )  # fmt: skip
    assert run(job, doubler(fail_every=100)).error_rows == 3

    result = run(again(job), doubler())

    assert result.reused_rows == 297
    data = s3.get(f"out.jsonl{suffix}")
    lines = (gzip.decompress(data) if suffix else data).splitlines()
    assert [json.loads(line)["value"] for line in lines] == [2 * v for v in values]
    assert sorted(s3.names()) == sorted(["in.jsonl", f"out.jsonl{suffix}"])


def test_floats_of_another_size_are_not_mixed(source, tmp_path):
    job = with_failures(source, tmp_path)
    job = job.model_copy(update={"sink": str(tmp_path / "out" / "a.parquet")})
    run(job, doubler(fail_every=300))
    before = version(job.sink)

    with pytest.raises(
        sd.PreviousOutputError, match="'value' is of type double.*float_type='float32'"
    ):
        run(again(job, float_type="float32"), doubler())

    assert version(job.sink) == before
    assert leftovers(tmp_path) == ["a.parquet", "out.jsonl"]
    assert run(again(job), doubler()).reused_rows == ROWS - 4


def test_without_an_output_there_is_nothing_to_mend(source, tmp_path):
    job = again(spec(source, tmp_path, compute="local"))

    with pytest.raises(sd.PreviousOutputError, match=r"out.jsonl doesn't exist.*run the whole"):
        run(job, doubler(fail_load=True))

    assert leftovers(tmp_path) == []


def change(source, line, **fields):
    """Changes a row of a file; without fields the line goes."""
    lines = open(source).read().splitlines(keepends=True)
    row = json.loads(lines[line - 1])
    lines[line - 1] = json.dumps(row | fields) + "\n" if fields else ""
    open(source, "w").write("".join(lines))


def test_failed_rows_may_be_mended_in_the_source(source, tmp_path):
    job = with_failures(source, tmp_path)
    change(source, 301, value=7.5)

    run(again(job), doubler(), committed=known(job, source_digest="sha256:another"))

    assert [r["value"] for r in read_rows(job.sink)][299:302] == [598, 15, 602]


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ({"line": 302, "value": 5}, r"in.jsonl, line 302: .* another row's answer"),
        ({"line": 5}, r"out.jsonl has 1,000 lines, but the source has 999 rows"),
    ],
)
def test_an_answer_of_another_row_is_not_kept(source, tmp_path, edit, said):
    job = with_failures(source, tmp_path)
    before = open(job.sink, "rb").read()
    change(source, **edit)

    with pytest.raises(sd.PreviousOutputError, match=said):
        run(again(job), doubler())

    assert open(job.sink, "rb").read() == before
    assert leftovers(tmp_path) == ["out.jsonl"]


@pytest.mark.parametrize("broken", [b'{"error": {"type"', b"\xff\x00", b"[1]", b"null"])
def test_an_output_that_was_damaged_is_refused_by_line(source, tmp_path, broken):
    job = with_failures(source, tmp_path)
    lines = open(job.sink, "rb").read().split(b"\n")
    lines[4] = broken
    open(job.sink, "wb").write(b"\n".join(lines))

    with pytest.raises(sd.PreviousOutputError, match="line 5: the last output has another row's"):
        run(again(job), doubler())


def test_a_row_limit_does_not_cut_the_last_output(source, tmp_path):
    job = with_failures(source, tmp_path, row_limit=400)

    with pytest.raises(sd.PreviousOutputError, match="has 400 lines, but row_limit is 350"):
        run(again(job, row_limit=350), doubler())

    assert run(again(job), doubler()).reused_rows == 398


def known(job, source_digest="", model=None):
    version = BatchRunner(model).model_identity()[1] if model else ""
    size = os.path.getsize(job.sink)
    return {job.sink: CommittedSink("", size, source_digest, version)}


def test_an_id_of_a_rows_own_does_not_show_that_it_is_unchanged(write_rows, tmp_path):
    source = write_rows([1, 2, 300], request_id="3a1f6d6e-8b1c-4c7e-9a53-0c8f6f0d2b11")
    job = spec(source, tmp_path, compute="local", on_error="record")
    run(job, doubler(fail_every=300))

    with pytest.raises(sd.PreviousOutputError, match="line 1: the source has changed"):
        run(again(job), doubler(), committed=known(job, source_digest="sha256:another"))

    run(again(job), doubler(), committed=known(job))
    assert [r["value"] for r in read_rows(job.sink)] == [2, 4, 600]


def test_answers_of_another_model_are_not_kept(source, tmp_path):
    job = with_failures(source, tmp_path)

    with pytest.raises(
        sd.PreviousOutputError, match="answers of another version of the model 'doubler'"
    ):
        run(again(job), doubler(), committed=known(job, model=doubler(batch_seconds=0.5)))


def test_what_kept_answers_say_is_counted_as_before(write_rows, tmp_path):
    source = write_rows([-1, 200, 300, float("inf"), -500, 5])
    job = spec(source, tmp_path, compute="local", on_error="record", batch_size=1)
    model = sd.ModelSpec(
        name="m", model_type="number", backend="tests.toys:Deviant",
        backend_kwargs={"fail_every": 300},
    )  # fmt: skip
    first = run(job, model)

    mended = run(again(job), model.model_copy(update={"backend_kwargs": {}}))

    assert first.deviations == {"fell_back": 2, "truncated": 3}
    assert mended.deviations == {"fell_back": 2, "truncated": 4}
    assert mended.non_finite == first.non_finite == 1


class Verdict(NumberResponse):
    """An answer with a field that is called as error rows call theirs."""

    error: dict | None = None


class Judge(Doubler):
    model_type = "judged"

    def predict(self, request):
        if request.value == 3 and self.fail_every:
            raise ValueError("cannot judge")
        said = {"type": "typo", "message": "?"} if request.value == 2 else None
        return Verdict(
            request_id=request.request_id, model_name="m", value=request.value, error=said
        )

    batch_predict = sd.ModelBackend.batch_predict


class Judged(NumberRequest):
    model_type: str = "judged"


class OwnForm(Judged):
    def error_record(self, error):
        return {"why": str(error)}


@pytest.mark.parametrize("request_type", [Judged, OwnForm])
def test_error_rows_are_told_from_answers_by_the_contract(write_rows, tmp_path, request_type):
    failed = FailedLines(request_type, Verdict)
    row = request_type(model_name="m", value=2)
    answer = Judge().predict(row).model_dump_json().encode()

    assert failed.is_failed(error_line(row, ValueError("no")))
    assert failed.is_failed(answer) == (request_type is OwnForm)


def test_the_rest_of_a_table_keeps_columns_of_any_type(tmp_path):
    source, sink = tmp_path / "in.parquet", tmp_path / "out.parquet"
    columns = {
        name.replace(" ", "_"): pa.chunked_array([*[column] * 10]).combine_chunks().slice(0, 20)
        for name, column in COLUMNS.items()
    }
    values = {"model_name": ["m"] * 20, "value": [float(n) for n in range(20)]}
    pq.write_table(pa.table({**values, **columns}), source, row_group_size=7)
    job = BatchSpec(
        source=str(source), sink=str(sink), keep=[*columns], compute="local", batch_size=4,
        on_error="record",
    )  # fmt: skip
    run(job, shaped("call", fail_every=9))

    assert run(again(job), shaped("call")).reused_rows == 17

    mended = sink.read_bytes()
    run(job, shaped("call"))
    assert sink.read_bytes() == mended
    found = pq.read_table(sink).select([*columns])
    assert found.equals(pq.read_table(source).select([*columns]))
