"""Clusters that don't answer, and a local Ray whose folder won't do."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from sheaf_dagster import ClusterConfig, ClusterError
from sheaf_dagster.batch.ray.reaching import require_answer
from tests.conftest import ROOT
from tests.ports import free_ports

JOB = """
import json, sys
from sheaf_dagster import BatchRunner, BatchSpec, ClusterConfig, SheafError
from tests.toys import doubler
folder, cluster = sys.argv[1], ClusterConfig(**json.loads(sys.argv[2]))
with open(f"{folder}/in.jsonl", "w") as f:
    f.write('{"model_type": "number", "model_name": "m", "value": 1}\\n')
spec = BatchSpec(source=f"{folder}/in.jsonl", sink=f"{folder}/out.jsonl")
try:
    BatchRunner(doubler(), cluster, on_progress=None).run(spec)
except SheafError as e:
    print(json.dumps({"error": type(e).__name__, "message": str(e), "retryable": e.retryable}))
"""


def end_of_job(folder: Path, environment: dict[str, str], **cluster) -> dict:
    """How a job in a process of its own fails."""
    done = subprocess.run(
        [sys.executable, "-c", JOB, str(folder), json.dumps(cluster)],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": "", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return json.loads(done.stdout)


@contextmanager
def listening(answer: bytes | None):
    """A port at which something takes connections, and says ``answer`` or nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            held = []
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                held.append(connection)
                if answer is not None:
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def test_where_nothing_listens_the_error_says_so():
    (port,) = free_ports(1)

    with pytest.raises(ClusterError, match=f"Ray at 127.0.0.1:{port} can't be reached: .*refused"):
        require_answer(f"127.0.0.1:{port}", 0.5)


def test_a_name_that_nobody_knows_is_said_to_be_unknown():
    with pytest.raises(ClusterError, match="Ray at no-such-host.invalid:6379 can't be reached: "):
        require_answer("no-such-host.invalid:6379", 0.5)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        pytest.param(None, "nothing answers there", id="a head that hangs"),
        pytest.param(
            b"HTTP/1.0 200 OK\r\n\r\n", "something other than Ray answers there", id="the dashboard"
        ),
    ],
)
def test_what_listens_and_is_no_ray_is_an_error_within_the_time(answer, reason):
    with listening(answer) as address, pytest.raises(ClusterError, match=reason) as raised:
        require_answer(address, 0.5)

    assert "connect_timeout_s" in str(raised.value)
    assert raised.value.retryable


@pytest.mark.ray
def test_a_cluster_that_is_up_answers(ray_cluster):
    import ray

    require_answer(ray.get_runtime_context().gcs_address, 10)


@pytest.mark.ray
@pytest.mark.parametrize("named_by", ["address", "RAY_ADDRESS", "auto"])
def test_a_job_on_a_cluster_that_is_gone_ends_in_one_error(named_by, tmp_path):
    (port,) = free_ports(1)
    gone = f"127.0.0.1:{port}"
    environment = {} if named_by == "address" else {"RAY_ADDRESS": gone}
    cluster = {"address": gone, "RAY_ADDRESS": None, "auto": "auto"}[named_by]

    end = end_of_job(tmp_path, environment, address=cluster, connect_timeout_s=1)

    assert end["error"] == "ClusterError"
    place = r"\S+" if named_by == "auto" else "127.0.0.1"  # Ray puts in this machine's address
    assert re.match(f"Ray at {place}:{port} can't be reached: connection refused", end["message"])
    assert end["retryable"]


@pytest.mark.ray
def test_a_temporary_folder_whose_path_is_too_long_is_the_reason_given(tmp_path):
    folder = tmp_path / ("x" * 100)
    folder.mkdir()

    end = end_of_job(tmp_path, {"TMPDIR": str(folder)})

    assert end["error"] == "SpecError"
    assert end["message"].startswith("the path of the temporary folder is too long for Ray's")
    assert str(folder) in end["message"]
    assert "RAY_TMPDIR" in end["message"]
    assert not end["retryable"]


def test_the_time_is_the_resources():
    import sheaf_dagster as sd

    config = sd.RayClusterResource(address="auto", connect_timeout_s=5).to_config()

    assert config.connect_timeout_s == 5
    assert ClusterConfig().connect_timeout_s == 30
