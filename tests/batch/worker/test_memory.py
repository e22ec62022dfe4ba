"""How often Python looks for garbage while chunks run, and what a model's thread frees."""

from __future__ import annotations

import gc
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from sheaf_dagster.batch.worker.memory import rare_collections


def test_collections_are_rare_while_jobs_run_and_as_usual_after_the_last():
    usual = gc.get_threshold()
    try:
        gc.set_threshold(700, 10, 10)
        with rare_collections():
            with rare_collections():
                assert gc.get_threshold() == (10_000, 10, 10)
            assert gc.get_threshold() == (10_000, 10, 10)
        assert gc.get_threshold() == (700, 10, 10)
        for own in ((0, 10, 10), (50_000, 5, 5)):  # whoever has none, or fewer, keeps to that
            gc.set_threshold(*own)
            with rare_collections():
                assert gc.get_threshold() == own
    finally:
        gc.set_threshold(*usual)


_JOB = """
import resource, sys

import sheaf_dagster as sd
from tests.toys import Doubler


class Large(Doubler):
    def batch_predict(self, requests):
        [bytearray(2**20) for _ in range(32)]
        return super().batch_predict(requests)


def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


model = sd.ModelSpec(name="large", model_type="number", backend="__main__:Large")
spec = sd.BatchSpec(source=sys.argv[1], sink=sys.argv[2], batch_size=1, compute="local", resume=False)
runner = sd.BatchRunner(model, on_progress=None)
runner.run(spec)
before = faults()
runner.run(spec)
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's memory")
def test_a_models_thread_takes_the_memory_of_a_batch_from_the_system_once(write_rows, tmp_path):
    source, sink = write_rows(list(range(100))), str(tmp_path / "out.jsonl")
    ran = subprocess.run(
        [sys.executable, "-c", _JOB, source, sink],
        cwd=Path(__file__).parents[3],
        env={k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")},
        capture_output=True,
        text=True,
    )

    assert ran.returncode == 0, ran.stderr
    pages_of_a_batch = 32 * 2**20 // os.sysconf("SC_PAGE_SIZE")
    assert int(ran.stdout) < 10 * pages_of_a_batch, "of 100 batches"
