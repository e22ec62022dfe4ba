"""One Ray for the session, one place for toy models and files."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, settings

from tests.object_store import ObjectStore, Server
from tests.swift_store import SwiftServer

T = TypeVar("T")

ROOT = Path(__file__).parent.parent
# Ray's workers import the toy models of the tests by name.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "yes")
# A busy machine takes its time: Ray's workers to come up, Dagster's code locations to answer.
os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "300")
os.environ.setdefault("RAY_worker_register_timeout_seconds", "300")
os.environ.setdefault("DAGSTER_GRPC_TIMEOUT_SECONDS", "300")
# Ray's workers are nice to all others (15), so beside a busy program they would get 3 % of a core.
os.environ.setdefault("RAY_worker_niceness", "0")
# Nobody asks those who watch a Ray here. With the logs of 200 workers, as after some modules, its
# log monitor alone takes 5 % of a core for looking at them ten times a second.
os.environ.setdefault("RAY_LOG_MONITOR_MANY_FILES_THRESHOLD", "0")
os.environ.setdefault("LOG_NAME_UPDATE_INTERVAL_S", "3600")
os.environ.setdefault("REPORTER_UPDATE_INTERVAL_MS", "3600000")
os.environ.setdefault("SCAN_EVENT_DIR_INTERVAL_SECONDS", "3600")
os.environ.setdefault("EVENT_AGENT_REPORT_INTERVAL_SECONDS", "60")

# In the background of a shell Ctrl-C is ignored. Dagster then has SIGTERM ignored, too, as it lets
# both mean the same, and what later tests start would inherit that and outlive them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes is no matter of its own where several tests run at a time.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


def start_again(start: Callable[[], T], clear_up: Callable[[], object], tries: int = 6) -> T:
    """What ``start`` gives; it is tried again where it fails.

    A node of Ray's has 30 seconds to come up, which can't be set: on a busy machine it may not.
    """
    for left in reversed(range(tries)):
        try:
            return start()
        except Exception:
            clear_up()
            if not left:
                raise
    raise AssertionError("no try is no start")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray with two CPUs and four logical GPUs."""
    import ray

    def start() -> None:
        ray.init(
            "local",
            num_cpus=2,
            num_gpus=4,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )

    start_again(start, ray.shutdown)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Server | SwiftServer]:
    """An S3 endpoint on loopback: moto's, or Swift's where ``SHEAF_SWIFT`` has its programs."""
    swift = os.environ.get("SHEAF_SWIFT")
    server = Server() if swift is None else SwiftServer(Path(swift))
    yield server
    server.stop()


@pytest.fixture
def s3(s3_server: Server | SwiftServer) -> ObjectStore:
    """An empty bucket."""
    return s3_server.bucket()


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., str]:
    """Writes requests of the toy contract; returns the file's path."""

    def write(values: list, name: str = "in.jsonl", **fields) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"model_type": "number", "model_name": "m", "value": v, **fields} for v in values]
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
        return str(path)

    return write


def read_rows(path: str | Path) -> list[dict]:
    """The rows of an output."""
    return [json.loads(line) for line in Path(path).read_bytes().splitlines() if line]
