"""What a job takes over of one that was killed, and how it knows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import sheaf_dagster as sd
from sheaf_dagster import BatchRunner
from tests.batch.jobs import leftovers, spec
from tests.conftest import ROOT
from tests.toys import doubler

KILLED = """
import os, sys, threading, time
from sheaf_dagster import BatchRunner, BatchSpec
from tests.toys import doubler
def die():
    time.sleep({after}); os._exit(9)
spec = BatchSpec(source={source!r}, sink={sink!r}, batch_size=5, compute="local")
runner = BatchRunner(doubler(batch_seconds=0.02), on_progress=lambda p: os._exit(9) if p.rows_done > 150 else None)
runner.run(spec)
"""


def test_a_killed_run_resumes_and_writes_the_same_bytes(write_rows, tmp_path):
    source = write_rows(list(range(600)))
    job = spec(source, tmp_path, batch_size=5, compute="local")
    code = KILLED.format(after=1, source=source, sink=job.sink)
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert killed.returncode == 9
    assert "out.jsonl" not in leftovers(tmp_path)
    calls = tmp_path / "calls"

    # What only logs calls is part of the model's arguments, so resume with the same ones.
    result = BatchRunner(doubler(batch_seconds=0.02)).run(job)

    assert result.resumed_rows > 150
    assert result.resumed_rows % 5 == 0
    assert not calls.exists()
    fresh = BatchRunner(doubler()).run(job.model_copy(update={"sink": str(tmp_path / "b.jsonl")}))
    assert Path(result.sink).read_bytes() == Path(fresh.sink).read_bytes()
    assert leftovers(tmp_path) == ["out.jsonl"]


def test_parts_of_a_changed_source_or_model_are_not_reused(write_rows, tmp_path):
    source = write_rows(list(range(100)))
    job = spec(source, tmp_path, batch_size=5, compute="local")
    with pytest.raises(sd.PredictError):
        BatchRunner(doubler(fail_on=90)).run(job)
    assert leftovers(tmp_path) == [".out.jsonl.sheaf"]

    other = BatchRunner(doubler(fail_on=91)).run(job.model_copy(update={"on_error": "record"}))

    assert other.resumed_rows == 0
    assert leftovers(tmp_path) == ["out.jsonl"]


def test_the_fingerprint_tells_whether_a_rerun_would_differ(write_rows, tmp_path):
    job = spec(write_rows([1, 2]), tmp_path, compute="local")
    runner = BatchRunner(doubler())
    result = runner.run(job)
    assert runner.fingerprint(job) == result.fingerprint
    assert runner.fingerprint(job.model_copy(update={"batch_size": 7})) != result.fingerprint
    assert BatchRunner(doubler(jitter=True)).fingerprint(job) != result.fingerprint
