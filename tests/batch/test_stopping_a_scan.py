"""A job that is called off does not read its source to the end first."""

from __future__ import annotations

import gzip
import threading

import pytest

from sheaf_dagster.batch.file_run import FileRun
from sheaf_dagster.batch.worker.loading import ModelContext
from tests.batch.jobs import leftovers, spec
from tests.toys import doubler


@pytest.mark.parametrize("name", ["in.jsonl", "in.jsonl.gz"])
def test_a_scan_ends_when_its_job_is_stopped_and_leaves_nothing(name, write_rows, tmp_path):
    source = tmp_path / name
    text = open(write_rows([1, 2, 3], "plain.jsonl"), "rb").read()
    source.write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    task = FileRun(0, spec(str(source), tmp_path, compute="local"), ModelContext.of(doubler()))
    stop = threading.Event()
    stop.set()

    with pytest.raises(InterruptedError, match="the job was stopped"):
        task.prepare(lambda contract, source: [], stop)
    task.abandon()

    assert leftovers(tmp_path) == []
    task.sink.hold().release()  # nobody holds it
