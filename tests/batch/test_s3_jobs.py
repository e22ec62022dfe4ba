"""Whole jobs on S3: the same bytes as on disk, and what faults of the store come to."""

from __future__ import annotations

import gzip
import io
import json
import os
import signal
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sheaf_dagster import BatchRunner, BatchSpec, SheafError, SinkError, SourceChangedError
from sheaf_dagster.storage import retry
from sheaf_dagster.storage.formats import table_join
from sheaf_dagster.storage.stores import s3_join
from tests.conftest import ROOT
from tests.faults import KINDS, Faults, FaultyProxy
from tests.object_store import SMALL_PART, ObjectStore
from tests.toys import doubler

pytestmark = pytest.mark.s3


ROWS = 160
"""Ten chunks of 16 rows in the tests of faults."""


def rows(count: int) -> bytes:
    """Short rows and, every second chunk, long ones."""
    lines = [
        {"model_type": "number", "model_name": "m", "value": v, "note": "x" * (v // 16 % 2 * 200)}
        for v in range(count)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def asked(text: bytes, name: str) -> tuple[str, bytes]:
    """Name and content of the source for a sink: rows of a table for a table."""
    if not name.endswith(".parquet"):
        return "in.jsonl", text
    table = pa.Table.from_pylist([json.loads(line) for line in text.splitlines()])
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=50)
    return "in.parquet", file.getvalue()


def on_disk(tmp_path, text: bytes, name: str = "out.jsonl", **fields) -> bytes:
    """What the job writes on the local disk."""
    source_name, content = asked(text, name)
    source, sink = tmp_path / source_name, tmp_path / name
    source.write_bytes(content)
    spec = BatchSpec(source=str(source), sink=str(sink), compute="local", **fields)
    BatchRunner(doubler()).run(spec)
    return sink.read_bytes()


@pytest.fixture
def proxy(s3_server, monkeypatch):
    proxy = FaultyProxy(s3_server.takes_small_parts(monkeypatch))
    yield proxy
    proxy.stop()


@pytest.fixture
def quick(monkeypatch) -> dict:
    """Small pieces and short waits, so that a small job makes the requests of a large one."""
    monkeypatch.setattr(s3_join, "MIN_PIECE", SMALL_PART)
    monkeypatch.setattr(s3_join, "ONE_PUT_BYTES", SMALL_PART)
    monkeypatch.setattr(retry, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr("sheaf_dagster.storage.stores.range_reader._BLOCK_BYTES", 4000)
    return {"retries": {"total_max_attempts": 1}, "read_timeout": 30}


def job(
    s3: ObjectStore, options: dict, compute: str = "local", name: str = "out.jsonl"
) -> BatchSpec:
    return BatchSpec(
        source=s3.put(*asked(rows(ROWS), name)),
        sink=s3.uri(name),
        batch_size=16,
        compute=compute,
        storage_options=options,
    )


@pytest.mark.ray
@pytest.mark.parametrize("compute", ["tasks", "actors", "local"])
def test_a_job_on_s3_writes_the_bytes_that_it_writes_on_disk(s3, tmp_path, ray_cluster, compute):
    text = rows(500)
    expected = on_disk(tmp_path, text, batch_size=4)
    spec = BatchSpec(
        source=s3.put("in/requests.jsonl.gz", gzip.compress(text)),
        sink=s3.uri("out/answers.jsonl"),
        batch_size=4,
        compute=compute,
        num_actors=2 if compute == "actors" else None,
        storage_options=s3.options(),
    )

    result = BatchRunner(doubler(num_cpus=0.5)).run(spec)

    assert s3.get("out/answers.jsonl") == expected
    assert (result.rows, result.output_bytes) == (500, len(expected))
    assert s3.names() == ["in/requests.jsonl.gz", "out/answers.jsonl"]


def test_a_folder_is_listed_once_by_all_that_looks_into_it(s3, proxy):
    seen = []
    for day in (1, 2):
        s3.put(f"in/day={day}/a.parquet", asked(rows(4), "out.parquet")[1])
    spec = BatchSpec(
        source=s3.uri("in"),
        sink=s3.uri("out.parquet"),
        keep=["day"],
        compute="local",
        storage_options=s3.options(proxy.endpoint),
    )
    failed = spec.model_copy(update={"only": "failed"})
    runner = BatchRunner(doubler(), on_progress=None)
    proxy.faults = Faults(change=lambda request, body: seen.append(request) or body)

    def listings(step) -> int:
        """How often it lists the folder; with ``max-keys=1`` a store is asked whether there is one."""
        seen.clear()
        step()
        return sum("&prefix=in%2F&" in s and "&max-keys=1&" not in s for s in seen)

    assert listings(lambda: runner.validate(spec)) == 1
    assert listings(lambda: runner.fingerprint(spec)) == 1
    assert listings(lambda: runner.run(spec)) == 1
    # Once to find the rows that failed, and once for the digest in the result, as there are none.
    assert listings(lambda: runner.run(failed)) == 2


def test_many_files_of_which_one_is_missing(s3):
    specs = [
        BatchSpec(
            source=s3.uri(f"in/{i}.jsonl"),
            sink=s3.uri(f"out/{i}.jsonl"),
            compute="local",
            storage_options=s3.options(),
        )
        for i in range(4)
    ]
    for i in (0, 1, 3):
        s3.put(f"in/{i}.jsonl", rows(i))

    outcomes = list(BatchRunner(doubler()).run_many(specs))

    assert [o.ok for o in outcomes] == [True, True, False, True]
    assert s3.names("out/") == ["out/0.jsonl", "out/1.jsonl", "out/3.jsonl"]
    assert s3.get("out/0.jsonl") == b""


CHILD = """
import sys, json
from sheaf_dagster import BatchRunner, BatchSpec
from sheaf_dagster.storage.stores import s3_join
from tests.toys import doubler
s3_join.MIN_PIECE = s3_join.ONE_PUT_BYTES = 3000
spec = BatchSpec(**json.load(sys.stdin))
runner = BatchRunner(doubler(batch_seconds=0.1), on_progress=lambda p: print(p.rows_done, flush=True))
runner.run(spec)
"""


def start(spec: BatchSpec) -> subprocess.Popen:
    """The job in a process of its own, which prints the rows done."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    child.stdin.write(spec.model_dump_json())
    child.stdin.close()
    return child


def kill(child: subprocess.Popen) -> None:
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_a_killed_job_on_s3_resumes(s3, tmp_path, name):
    text = rows(60)
    spec = BatchSpec(
        source=s3.put(*asked(text, name)),
        sink=s3.uri(name),
        batch_size=2,
        compute="local",
        storage_options=s3.options(),
    )
    child = start(spec)
    while int(child.stdout.readline()) < 10:
        pass
    kill(child)
    assert f".{name}.sheaf/lock" in s3.names()
    assert name not in s3.names()

    result = BatchRunner(doubler(batch_seconds=0.1)).run(spec)

    assert result.resumed_rows >= 10
    assert s3.get(name) == on_disk(tmp_path, text, name, batch_size=2)
    assert s3.names() == [asked(text, name)[0], name]


@pytest.mark.ray
def test_nothing_stays_of_a_job_that_failed_and_is_not_to_be_resumed(s3, ray_cluster):
    # The other worker has a batch in the model when the job learns of the row that fails.
    model = doubler(fail_on=0, batch_seconds=0.5, num_cpus=0.5)
    spec = job(s3, s3.options(), compute="tasks").model_copy(
        update={"batch_size": 1, "resume": False}
    )

    with pytest.raises(SheafError, match="line 1: Doubler failed"):
        BatchRunner(model).run(spec)

    assert s3.names() == ["in.jsonl"]


def test_a_job_killed_while_it_commits_leaves_no_upload_after_the_next(s3, proxy, quick, tmp_path):
    proxy.faults = Faults(kinds=("stall",), picks=("POST .*uploadId",), stall_seconds=60)
    spec = job(s3, s3.options(proxy.endpoint, read_timeout=60))
    child = start(spec)
    while not proxy.faults.seen:
        assert child.poll() is None
        time.sleep(0.05)
    kill(child)
    assert s3.uploads() == ["out.jsonl"]

    proxy.faults = Faults()
    result = BatchRunner(doubler(batch_seconds=0.1)).run(spec)

    assert result.resumed_rows == ROWS
    assert s3.get("out.jsonl") == on_disk(tmp_path, rows(ROWS), batch_size=16)
    assert (s3.names(), s3.uploads()) == (["in.jsonl", "out.jsonl"], [])


def test_a_source_replaced_while_the_job_runs_is_an_error_and_nothing_is_written(s3):
    s3.put("in.jsonl", rows(40))
    spec = BatchSpec(
        source=s3.uri("in.jsonl"),
        sink=s3.uri("out.jsonl"),
        batch_size=2,
        compute="local",
        storage_options=s3.options(),
    )

    def replace(progress):
        if progress.rows_done >= 10:
            s3.put("in.jsonl", rows(40).replace(b"xxx", b"yyy"))

    with pytest.raises(SourceChangedError, match="in.jsonl changed"):
        BatchRunner(doubler(batch_seconds=0.4), on_progress=replace).run(spec)
    assert "out.jsonl" not in s3.names()


# -- faults ----------------------------------------------------------------------------------

SEEDS = int(os.environ.get("SHEAF_FAULT_SEEDS", "4"))


@pytest.mark.parametrize("seed", range(SEEDS))
def test_random_faults_end_in_the_whole_output_or_in_one_error(
    s3, tmp_path, proxy, quick, seed, monkeypatch
):
    monkeypatch.setattr(table_join, "_GROUP_ROWS", 40)
    monkeypatch.setattr(table_join, "_PIECE_BYTES", 3000)
    name = ("out.jsonl", "out.parquet")[seed // 2 % 2]
    spec = job(s3, s3.options(proxy.endpoint, **quick), name=name)
    expected = on_disk(tmp_path, rows(ROWS), name, batch_size=16)
    # From faults that retries get over to those that they don't.
    proxy.faults = Faults(seed, rate=(0.1, 0.35, 0.2, 0.6)[seed % 4], stall_seconds=0.3)

    try:
        BatchRunner(doubler()).run(spec)
    except SheafError as e:
        assert "s3://" in str(e)
        assert "\n" not in str(e)
        assert name not in s3.names()
        proxy.faults = Faults()
        BatchRunner(doubler()).run(spec)  # and the next run, with the store well again, mends it
    assert proxy.faults.requests
    assert s3.get(name) == expected
    assert s3.uploads() == []


EVERYWHERE = (
    "GET .*in.jsonl",
    "HEAD .*in.jsonl",
    "GET .*prefix=",
    "PUT .*lock",
    "GET .*lock",
    "PUT .*part-.*jsonl$",
    "GET .*part-",
    "POST .*uploads",
    "PUT .*partNumber",
    "POST .*uploadId",
    "HEAD /[^/]*/out.jsonl",
    "DELETE .*part-",
)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_fault_is_got_over_wherever_it_strikes(
    s3, s3_server, tmp_path, proxy, quick, kind
):
    expected = on_disk(tmp_path, rows(ROWS), batch_size=16)
    proxy.faults = Faults(kinds=(kind,), picks=EVERYWHERE, times=1 if kind == "stall" else 3)
    if kind == "stall":
        quick["read_timeout"] = s3_server.answers_within

    BatchRunner(doubler()).run(job(s3, s3.options(proxy.endpoint, **quick)))

    assert set(proxy.faults.hit) == set(EVERYWHERE)
    assert s3.get("out.jsonl") == expected
    assert s3.names() == ["in.jsonl", "out.jsonl"]
    assert s3.uploads() == []


@pytest.mark.parametrize("kind", ["503", "truncated", "reset"])
def test_a_fault_of_the_store_is_no_fault_of_a_table(s3, proxy, quick, kind):
    spec = job(s3, s3.options(proxy.endpoint, **quick), name="out.parquet")
    proxy.faults = Faults(kinds=(kind,), picks=("GET .*in.parquet",))

    with pytest.raises(SheafError, match=r"in.parquet can't be read") as raised:
        BatchRunner(doubler()).run(spec)

    assert raised.value.retryable
    assert "write the file again" not in str(raised.value)
    assert s3.names() == ["in.parquet"]


@pytest.mark.parametrize(
    ("kind", "pick", "message"),
    [
        ("503", "GET .*in", "in.jsonl can't be read"),
        ("truncated", "GET .*in", "in.jsonl can't be read"),
        ("reset", "PUT .*part-", "part-.* can't be written"),
        ("500", "PUT .*lock", "out.jsonl can't be written"),
        ("503", "PUT .*partNumber", "out.jsonl can't be written"),
        ("error in a 200", "POST .*uploadId", "out.jsonl can't be written"),
    ],
)
def test_a_fault_that_stays_is_one_clear_error(s3, proxy, quick, kind, pick, message):
    spec = job(s3, s3.options(proxy.endpoint, **quick))
    proxy.faults = Faults(kinds=(kind,), picks=(pick,))

    with pytest.raises(SheafError, match=message):
        BatchRunner(doubler()).run(spec)

    assert "out.jsonl" not in s3.names()
    assert s3.uploads() == []


@pytest.mark.parametrize(
    "pick",
    ["", "^(HEAD|GET) .*(in.jsonl|list-type)", *[p for p in EVERYWHERE if p[0] not in "HD"]],
)
def test_credentials_that_expire_are_named_and_new_ones_go_on(s3, tmp_path, proxy, quick, pick):
    expected = on_disk(tmp_path, rows(ROWS), batch_size=16)
    spec = job(s3, s3.options(proxy.endpoint, **quick))
    proxy.faults = Faults(kinds=("expired",), picks=(pick,))

    with pytest.raises(SheafError, match="the credentials have expired") as raised:
        BatchRunner(doubler()).run(spec)
    proxy.faults = Faults()
    again = BatchRunner(doubler()).run(spec)

    assert raised.value.retryable
    assert again.rows == ROWS
    assert s3.get("out.jsonl") == expected


def test_a_commit_of_which_nothing_is_known_says_so(s3, tmp_path, proxy, quick):
    spec = job(s3, s3.options(proxy.endpoint, **quick))
    proxy.faults = Faults(
        kinds=("lost answer",), picks=("(POST|DELETE) .*uploadId|HEAD .*out.jsonl$",)
    )

    with pytest.raises(SinkError, match="could not be asked whether it was carried out"):
        BatchRunner(doubler()).run(spec)

    assert s3.get("out.jsonl") == on_disk(tmp_path, rows(ROWS), batch_size=16)


def test_a_store_that_fails_after_the_commit_does_not_unmake_it(s3, proxy, quick, caplog):
    spec = job(s3, s3.options(proxy.endpoint, **quick))
    proxy.faults = Faults(kinds=("503",), picks=("DELETE .*part-",))

    result = BatchRunner(doubler()).run(spec)

    assert result.rows == ROWS
    assert "is committed, but" in caplog.text


@pytest.mark.long
@pytest.mark.ray
def test_a_job_on_ray_gets_over_random_faults_with_the_default_retries(
    s3, tmp_path, proxy, ray_cluster
):
    spec = job(s3, s3.options(proxy.endpoint, read_timeout=1), compute="tasks")
    proxy.faults = Faults(7, rate=0.1, stall_seconds=2)

    BatchRunner(doubler(num_cpus=0.5)).run(spec)

    assert proxy.faults.seen.total() > 3
    assert s3.get("out.jsonl") == on_disk(tmp_path, rows(ROWS), batch_size=16)
    assert s3.names() == ["in.jsonl", "out.jsonl"]
