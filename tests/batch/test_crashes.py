"""SIGKILL at random moments: the output is the same to the byte, and nothing stays behind."""

from __future__ import annotations

import itertools
import json
import os
import random
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sheaf_dagster import BatchRunner, BatchSpec
from tests.crashes import Job, Kill, TwoNodes, driving, moment, workers_of
from tests.toys import doubler

KILLS = int(os.environ.get("SHEAF_KILLS", "3"))
"""How many processes are killed; ``make test-crashes`` kills 60."""

SEED = int(os.environ.get("SHEAF_KILL_SEED", "6"))

ROWS, BATCH = 1000, 4
CHUNKS = ROWS // BATCH

PLAN = [
    ("tasks", "worker"),
    ("actors", "driver"),
    ("local", "driver"),
    ("actors", "actor"),
    ("tasks", "driver"),
    ("actors", "raylet"),
    ("tasks", "worker"),
    ("actors", "actor"),
    ("tasks", "raylet"),
    ("tasks", "driver"),
]
SINKS = ("out.parquet", "out.jsonl")
SOURCES = ("in.jsonl", "in.parquet")
ENGINES = ("ray_data", "ray_core")
"""What starts the workers: one after the other, and in the next round the other way round."""


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """The folder of both sources."""
    folder = tmp_path_factory.mktemp("crashes")
    rows = [{"model_type": "number", "model_name": "m", "value": i} for i in range(ROWS)]
    (folder / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    pq.write_table(pa.Table.from_pylist(rows), folder / "in.parquet", row_group_size=300)
    return folder


@pytest.fixture(scope="module")
def undisturbed(sources) -> dict[tuple[str, str], bytes]:
    """What a job that nothing disturbs writes, by the names of its source and sink."""
    written = {}
    for asked, name in itertools.product(SOURCES, SINKS):
        source, sink = sources / asked, sources / name
        spec = BatchSpec(source=str(source), sink=str(sink), batch_size=BATCH, compute="local")
        BatchRunner(doubler()).run(spec)
        written[asked, name] = sink.read_bytes()
    return written


@pytest.mark.ray
@pytest.mark.parametrize("number", range(KILLS))
def test_a_kill_at_any_moment_loses_and_doubles_nothing(
    number, two_nodes, sources, undisturbed, tmp_path
):
    turn, step = divmod(number, len(PLAN))
    compute, victim = PLAN[step]
    engine = ENGINES[(turn + step) % 2]
    name = SINKS[(turn + number) % 2]
    asked = SOURCES[(turn + (number + 1) // 2) % 2]
    chooser = random.Random(f"{SEED}/{number}")
    loads = tmp_path / "loads"
    job = Job(
        model=doubler(batch_seconds=0.02, load_log=str(loads)),
        spec=BatchSpec(
            source=str(sources / asked),
            sink=str(tmp_path / "out" / name),
            batch_size=BATCH,
            compute=compute,
            num_actors=2 if compute == "actors" else None,
        ),
        address=None if compute == "local" else two_nodes.address,
        engine=engine,
    )
    kill = Kill(number, compute, victim, engine, chunks=CHUNKS)
    began = time.monotonic()

    result = _run_and_kill(job, kill, chooser, loads, two_nodes)

    kill.seconds = round(time.monotonic() - began, 1)
    sink = Path(job.spec.sink)
    if not sink.exists() or sink.read_bytes() != undisturbed[asked, name]:
        kill.problems.append("the output differs")
    if sorted(os.listdir(sink.parent)) != [name]:
        kill.problems.append(f"left behind: {sorted(os.listdir(sink.parent))}")
    if kill.reran and kill.rows_reused < kill.rows_left:
        kill.problems.append("finished chunks were run again")
    kill.log()
    assert "error" not in result, result
    assert kill.problems == []
    assert result["rows"] == ROWS


def _run_and_kill(
    job: Job, kill: Kill, chooser: random.Random, loads: Path, cluster: TwoNodes
) -> dict:
    wait, parts = moment(chooser, CHUNKS)
    with driving(job) as driver:
        driver.wait_for(lambda: len(job.parts()) >= parts)
        if kill.victim in ("worker", "actor"):
            driver.wait_for(lambda: workers_of(loads) != [])
        time.sleep(wait)
        kill.parts_at_kill = len(job.parts())
        kill.landed = driver.running
        if kill.victim == "driver":
            driver.kill()
            driver.process.wait()
        elif kill.victim == "raylet":
            cluster.kill_second()
        else:
            alive = workers_of(loads)
            if alive:
                os.kill(chooser.choice(alive), 9)
        if kill.victim != "driver":
            try:
                return driver.result()
            finally:
                if kill.victim == "raylet":
                    cluster.add_node()
    sink = Path(job.spec.sink)
    if sink.exists() and not job.aside.exists():
        return {"rows": ROWS}  # it had just been committed
    kill.reran, kill.rows_left = True, sum(job.parts())
    with driving(job) as again:
        result = again.result()
    kill.rows_reused = result.get("resumed_rows", -1)
    return result
