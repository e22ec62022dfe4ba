"""Drivers in processes of their own, on a cluster that the test has started."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.conftest import ROOT
from tests.ray_head import RayHead

DRIVER = """
import json, logging, sys
from sheaf_dagster import BatchRunner, BatchSpec, ClusterConfig, ModelSpec, SheafError
logging.basicConfig(level=logging.INFO)
address, job = sys.argv[1], json.loads(sys.argv[2])
cluster = ClusterConfig(address=address, **job.pop("cluster", {}))
model = ModelSpec(
    name="doubler",
    model_type="number",
    backend="tests.toys:Companions",
    backend_kwargs={"together": 2, **job.pop("model")},
)
runner = BatchRunner(model, cluster, on_progress=None)
try:
    result = runner.run(BatchSpec(**job))
except SheafError as e:
    print(json.dumps({"error": type(e).__name__, "message": str(e)}))
else:
    print(json.dumps({"rows": result.rows, "workers": result.workers}))
"""


def start(head: RayHead, **job) -> subprocess.Popen:
    """Starts a driver that runs a job of doublers, of which two answer together."""
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, head.address, json.dumps(job)],
        cwd=ROOT,
        env=head.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(driver: subprocess.Popen) -> tuple[dict, str]:
    """What came of the job, and what its driver said."""
    out, err = driver.communicate(timeout=300)
    assert out, err[-3000:]
    return json.loads(out.splitlines()[-1]), err
