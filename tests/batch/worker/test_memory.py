"""How often Python looks for garbage while chunks run, and what a model's thread frees."""

from __future__ import annotations

import gc
import json
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


_FAULTS = """
import resource

from tests.toys import Doubler, NumberResponse


class Large(Doubler):
    def batch_predict(self, requests):
        [bytearray(2**20) for _ in range(32)]
        so_far = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        return [
            NumberResponse(request_id=r.request_id, model_name=r.model_name, value=so_far)
            for r in requests
        ]
"""

_JOB = """
import sys

import sheaf_dagster as sd

if __name__ == "__main__":
    model = sd.ModelSpec(name="large", model_type="number", backend="faults:Large")
    pool = {"compute": "actors", "num_actors": 1} if sys.argv[3] == "actors" else {"compute": "local"}
    spec = sd.BatchSpec(source=sys.argv[1], sink=sys.argv[2], batch_size=1, **pool)
    sd.BatchRunner(model, on_progress=None).run(spec)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's memory")
@pytest.mark.parametrize("compute", ["local", pytest.param("actors", marks=pytest.mark.ray)])
def test_a_models_thread_takes_the_memory_of_a_batch_from_the_system_once(
    compute, write_rows, tmp_path
):
    (tmp_path / "faults.py").write_text(_FAULTS)
    sink = tmp_path / "out.jsonl"
    ran = subprocess.run(
        [sys.executable, "-c", _JOB, write_rows(list(range(100))), str(sink), compute],
        env={k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
        | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[3])])},
        capture_output=True,
        text=True,
    )

    assert ran.returncode == 0, ran.stderr
    faults = [json.loads(line)["value"] for line in sink.read_text().splitlines()]
    pages_of_a_batch = 32 * 2**20 // os.sysconf("SC_PAGE_SIZE")
    assert faults == sorted(faults), "one worker has answered all"
    assert faults[-1] - faults[10] < 10 * pages_of_a_batch, "of 90 batches"
