"""Files, models and measuring for the benchmarks."""

from __future__ import annotations

import json
import os
import platform
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from sheaf_dagster import ModelBackend, ModelSpec, ResponseColumns, request_column
from sheaf_dagster.contracts import TimeSeriesRequest, TimeSeriesResponse

FLOATS = 128
_HISTORIES = 10_000
"""After so many rows the same histories come again: writing them takes longer than the jobs."""


class Trivial(ModelBackend):
    """The mean of the history, as a forecast of 24 steps; optionally sleeps like a device."""

    model_type = "time_series"

    def __init__(
        self,
        sleep: float = 0.0,
        load_seconds: float = 0.0,
        load_log: str | None = None,
        seconds_a_row: float = 0.0,
    ) -> None:
        self._sleep = sleep
        self._seconds_a_row = seconds_a_row
        self._load_seconds = load_seconds
        self._load_log = load_log

    def load(self) -> None:
        """Takes as long as it is told, and leaves a line where it is told."""
        time.sleep(self._load_seconds)
        if self._load_log is not None:
            with open(self._load_log, "a") as f:
                f.write(f"{os.getpid()}\n")

    def batch_predict(self, requests: Sequence[TimeSeriesRequest]) -> list[TimeSeriesResponse]:
        """A batch."""
        if self._sleep or self._seconds_a_row:
            time.sleep(self._sleep + self._seconds_a_row * len(requests))
        return [respond(r, TimeSeriesResponse) for r in requests]


class Echo(ModelBackend):
    """Gives back each history as the forecast: what a job does beside the model."""

    model_type = "time_series"

    def load(self) -> None:
        """There is nothing to load."""

    def predict(self, request: Any) -> TimeSeriesResponse:
        """The history itself."""
        return TimeSeriesResponse(
            request_id=request.request_id,
            model_name=request.model_name,
            mean=request.history,
            horizon=request.horizon,
            frequency=request.frequency.value,
        )


class EchoColumns(ModelBackend):
    """The same in columns."""

    model_type = "time_series"
    takes_columns = True

    def load(self) -> None:
        """There is nothing to load."""

    def batch_predict(self, requests: Sequence[Any]) -> ResponseColumns:
        """The histories themselves."""
        return ResponseColumns(
            TimeSeriesResponse,
            requests,
            {"mean": request_column(requests, "history")},
            copied=("horizon", "frequency"),
        )


def respond(r: Any, response: type) -> Any:
    """The work that all contenders do for a row."""
    mean = sum(r.history) / len(r.history)
    return response(
        request_id=r.request_id,
        model_name=r.model_name,
        mean=[mean] * r.horizon,
        horizon=r.horizon,
        frequency=r.frequency.value,
    )


def trivial(**kwargs: float | str) -> ModelSpec:
    """The spec of the trivial model."""
    return ModelSpec(
        name="trivial",
        model_type="time_series",
        backend="benchmarks.common:Trivial",
        backend_kwargs=kwargs,
    )


def requests_file(folder: Path, rows: int) -> Path:
    """A file of requests of about 1.4 KB a row."""
    path = folder / f"requests-{rows}.jsonl"
    if path.exists():
        return path
    rng = random.Random(1)
    rests = [
        json.dumps(
            {
                "model_type": "time_series",
                "model_name": "m",
                "history": [round(rng.random() * 100, 6) for _ in range(FLOATS)],
                "horizon": 24,
                "frequency": "1h",
            }
        )[1:]
        for _ in range(min(rows, _HISTORIES))
    ]
    with path.open("w") as f:
        for i in range(rows):
            id = f"00000000-0000-4000-8000-{i:012x}"
            f.write(f'{{"request_id": "{id}", {rests[i % len(rests)]}\n')
    return path


class MemorySampler:
    """Peak memory of this process and of it with all of Ray's workers (bytes).

    Looking at all processes takes CPU: time and memory are measured in different runs.
    """

    def __init__(self, on: bool) -> None:
        self._on = on

    def __enter__(self) -> MemorySampler:
        import psutil

        self._psutil = psutil
        self.driver = self.total = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        if self._on:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._on:
            self._thread.join()

    def figures(self) -> dict[str, float]:
        """Peaks in MB, where they were measured."""
        if not self._on:
            return {}
        return {"driver_mb": self.driver / 2**20, "total_mb": self.total / 2**20}

    def _run(self) -> None:
        me = self._psutil.Process()
        while not self._stop.wait(0.2):
            self.driver = max(self.driver, me.memory_info().rss)
            total = 0
            for p in self._psutil.process_iter(["name", "cmdline"]):
                line = " ".join(p.info["cmdline"] or ())
                if p.pid == me.pid or "ray::" in line or "default_worker" in line:
                    try:
                        mem = p.memory_info()
                        total += mem.rss - mem.shared
                    except self._psutil.Error:
                        continue
            self.total = max(self.total, total)


def in_process(case: str, **arguments: Any) -> dict[str, Any]:
    """Runs one case in a fresh process; returns what it prints as its last line."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.case", case, json.dumps(arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.getcwd(), "RAY_AUTH_MODE": "disabled"},
    )
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1] if done.stderr else "failed"}
    return json.loads(done.stdout.strip().splitlines()[-1])  # type: ignore[no-any-return]


def start_ray() -> None:
    """Ray as every contender finds it; not part of any time."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")


def in_turn(
    ratio: str, rows: int, contenders: dict[str, Callable[[], object]], rounds: int = 7
) -> dict[str, Any]:
    """Two contenders, in turn: rates of the middle round, and the ratio of each.

    Each runs once before the clock does. Which is first changes from round to round.

    Args:
        ratio: What to call the second one's rate over the first one's.
        rows: What each of them answers.
        contenders: Name and call of both.
        rounds: How often both are measured.
    """
    names = list(contenders)
    for call in contenders.values():
        call()
    found: list[dict[str, float]] = []
    for i in range(rounds):
        seconds = {}
        for name in names if i % 2 else reversed(names):
            started = time.perf_counter()
            contenders[name]()
            seconds[name] = time.perf_counter() - started
        found.append(seconds)
        print(f"    {ratio}: {seconds[names[0]] / seconds[names[1]]:.3f}", flush=True)
    ratios = [each[names[0]] / each[names[1]] for each in found]
    middle = found[sorted(range(rounds), key=ratios.__getitem__)[rounds // 2]]
    return {
        **{name: {"rows_per_second": rows / middle[name]} for name in names},
        "ratios": {ratio: median(ratios)},
        "each round": ratios,
        "load": os.getloadavg()[0],
        "machine": machine(),
    }


def machine() -> str:
    """What this runs on, in a few words."""
    torch = sys.modules.get("torch")
    gpu = torch.cuda.get_device_name() if torch and torch.cuda.is_available() else "no GPU"
    return f"{os.cpu_count()} CPUs ({platform.machine()}), shared with others, {gpu}"
