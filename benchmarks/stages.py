"""A backend in stages that only sleeps: how much of a job is left beside its device stage.

A row is prepared in 10 ms, in two threads, and is on the device for 10 ms more. One after the other
that is twice the device's time; side by side it should be hardly more than that.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common import machine, requests_file, respond
from sheaf_dagster import BatchRunner, BatchSpec, ModelBackend, ModelSpec, ResourceConfig
from sheaf_dagster.contracts import TimeSeriesRequest, TimeSeriesResponse

ROWS = 1_200
ROUNDS = 3
SECONDS = 0.01


class Sleeps(ModelBackend):
    """Sleeps as long for a row to prepare it as the device has it."""

    model_type = "time_series"

    def load(self) -> None:
        """Nothing to load."""

    def prepare(self, request: TimeSeriesRequest) -> TimeSeriesRequest:
        """The row, a little later."""
        time.sleep(SECONDS)
        return request

    def infer(self, prepared: Sequence[TimeSeriesRequest]) -> Sequence[TimeSeriesRequest]:
        """The rows, later by as much for each."""
        time.sleep(SECONDS * len(prepared))
        return prepared

    def respond(self, requests: Sequence[Any], outputs: Sequence[Any]) -> list[Any]:
        """The mean of each history."""
        return [respond(row, TimeSeriesResponse) for row in outputs]


def stages(folder: Path) -> dict[str, Any]:
    """Rows that take 10 ms to prepare and 10 ms on the device, which both only sleep."""
    spec = ModelSpec(
        name="sleeps",
        model_type="time_series",
        backend="benchmarks.stages:Sleeps",
        resources=ResourceConfig(num_cpus=2),
    )
    job = BatchSpec(
        source=str(requests_file(folder, ROWS)),
        sink=str(folder / "stages.out"),
        compute="local",
        resume=False,
    )
    runner = BatchRunner(spec, on_progress=None)
    shares, against_the_sum, busy = [], [], []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        result = runner.run(job)
        seconds = time.perf_counter() - started
        shares.append(result.predict_seconds / seconds)
        against_the_sum.append(2 * result.predict_seconds / seconds)
        busy.append(result.device_busy_fraction or 0.0)
        print(f"    {ROWS} rows: {seconds:.2f} s, device stage {shares[-1]:.3f}", flush=True)
    return {
        "ours, local": {"rows_per_second": ROWS / seconds, "busy": median(busy)},
        "ratios": {
            "time of the device stage over ours": median(shares),
            "time of both, one after the other, over ours": median(against_the_sum),
        },
        "load": os.getloadavg()[0],
        "machine": machine(),
    }
