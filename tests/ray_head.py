"""Real Ray clusters with a dashboard, on ports and in a folder of their own."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import ROOT, start_again
from tests.ports import free_ports

FAKE_HEAD_NODE_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"

in_full = pytest.mark.skipif(
    not os.environ.get("SHEAF_CLUSTER_TESTS"), reason="make test-cluster runs it"
)
"""Marks what a real cluster takes long for and a shorter test in the suite has a share of."""


_START_SECONDS = 120.0

_RAY = str(Path(sys.executable).with_name("ray"))


class RayHead:
    """``ray start --head`` as a child process; a token is asked for if ``token``.

    Every process is told this cluster's address: there may be others on the machine.

    Args:
        token: Whether the cluster asks for one.
        num_cpus: Of the head.
        grows_by: Ray's own autoscaler adds up to so many nodes of one CPU each, through Ray's fake
            provider of machines, and removes them when they idle for a few seconds.
    """

    def __init__(self, *, token: bool = False, num_cpus: float = 2, grows_by: int = 0) -> None:
        self.token = secrets.token_hex(32) if token else None
        self.env = {
            "RAY_AUTH_MODE": "token" if token else "disabled",
            **({"RAY_AUTH_TOKEN": self.token} if self.token else {}),
        }
        self._num_cpus = num_cpus
        self._grows_by = grows_by
        if grows_by:
            self.env |= {
                "RAY_FAKE_CLUSTER": "1",
                "AUTOSCALER_UPDATE_INTERVAL_S": "1",
                # The provider knows the head by this name.
                "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
            }
        start_again(self._start_head, self.stop)

    def _start_head(self) -> None:
        # Unix sockets lie in it: its path must be short.
        self.folder = Path(tempfile.mkdtemp(prefix="sh-", dir="/tmp"))
        gcs, dashboard = free_ports(2)
        self.address = f"127.0.0.1:{gcs}"
        self.dashboard = f"http://127.0.0.1:{dashboard}"
        self._log = self.folder.with_suffix(".log").open("wb")
        self._nodes: list[subprocess.Popen] = []
        self._start(
            *("--head", f"--port={gcs}", f"--temp-dir={self.folder}"),
            *("--include-dashboard=true", "--dashboard-host=127.0.0.1"),
            *(f"--dashboard-port={dashboard}", f"--num-cpus={self._num_cpus}"),
            *([f"--autoscaling-config={self._autoscaling()}"] if self._grows_by else []),
        )
        self._wait()

    def _autoscaling(self) -> Path:
        config = {
            "cluster_name": "grows",
            "max_workers": self._grows_by,
            "idle_timeout_minutes": 0.1,
            "upscaling_speed": 1.0,
            "provider": {
                "type": "fake_multinode",
                "gcs_address": self.address,
                "head_node_id": FAKE_HEAD_NODE_ID,
                "use_node_id_as_ip": True,
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
            },
            # What the autoscaler reads of any cluster.
            "auth": {},
            "file_mounts": {},
            "cluster_synced_files": [],
            "worker_setup_commands": [],
            "worker_start_ray_commands": [],
            "head_node_type": "ray.head.default",
            "available_node_types": {
                "ray.head.default": {
                    "resources": {"CPU": self._num_cpus},
                    "node_config": {},
                    "max_workers": 0,
                },
                "worker": {
                    "resources": {"CPU": 1, "object_store_memory": 80_000_000},
                    "node_config": {},
                    "min_workers": 0,
                    "max_workers": self._grows_by,
                },
            },
        }
        path = self.folder / "autoscaling.yaml"
        path.write_text(json.dumps(config))
        return path

    def add_node(self, num_cpus: float, *, hidden: Path | None = None) -> int:
        """Starts another raylet; returns the process to kill with ``kill_node``.

        Args:
            num_cpus: Its CPUs.
            hidden: A folder that is empty for it, as it would be on another machine.
        """
        before = []
        if hidden is not None:
            script = f'mount -t tmpfs none {shlex.quote(str(hidden))} && exec "$@"'
            before = ["unshare", "--mount", "sh", "-c", script, "sh"]

        def start() -> None:
            known = self._alive()
            self._start(f"--address={self.address}", f"--num-cpus={num_cpus}", before=before)
            deadline = time.monotonic() + _START_SECONDS
            while self._alive() <= known:
                if self._nodes[-1].poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"a node did not come up:\n{self._said()}")
                time.sleep(0.2)

        start_again(start, lambda: self.kill_node(-1))
        return len(self._nodes) - 1

    def _alive(self) -> set[str]:
        found = json.loads(self._get("/nodes?view=summary"))["data"]["summary"]
        return {n["raylet"]["nodeId"] for n in found if n["raylet"].get("state") == "ALIVE"}

    def drain_node(self, node_id: str) -> None:
        """Tells the cluster that a node will be taken away, as a cloud's notice does."""
        subprocess.run(
            [
                *(_RAY, "drain-node", f"--address={self.address}", f"--node-id={node_id}"),
                *("--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=notice"),
                "--deadline-remaining-seconds=600",
            ],
            cwd=ROOT,
            env=self.environment(),
            check=True,
        )

    def alive_nodes(self) -> set[str]:
        """Ids of the nodes that are up."""
        return self._alive()

    def kill_node(self, node: int) -> None:
        """Ends all processes of a node at once, as when its machine is gone."""
        with suppress(ProcessLookupError):
            os.killpg(self._nodes[node].pid, signal.SIGKILL)
        self._nodes[node].wait()

    def _start(self, *arguments: str, before: Sequence[str] = ()) -> None:
        names = (
            *("dashboard-agent-listen-port", "dashboard-agent-grpc-port"),
            *("runtime-env-agent-port", "metrics-export-port"),
            *("node-manager-port", "object-manager-port"),
        )
        command = [
            *(*before, _RAY, "start", "--block", "--node-ip-address=127.0.0.1"),
            *("--num-gpus=0", "--object-store-memory=80000000", "--disable-usage-stats"),
            *(f"--{name}={port}" for name, port in zip(names, free_ports(6), strict=True)),
        ]
        self._nodes.append(
            subprocess.Popen(
                [*command, *arguments],
                cwd=ROOT,
                env=self.environment(),
                stdout=self._log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        )

    def environment(self) -> dict[str, str]:
        """The environment of a process that knows this cluster and no other."""
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        return {**os.environ, **self.env, "RAY_ADDRESS": self.address, "PATH": path}

    def _wait(self) -> None:
        """Waits until jobs can be submitted."""
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                self._get("/api/jobs/")
                if self._alive():
                    return
                why: object = "it has no node"
            except OSError as e:
                why = e
            if self._nodes[0].poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the Ray head did not come up: {why}\n{self._said()}")
            time.sleep(0.2)

    def _get(self, path: str) -> bytes:
        request = urllib.request.Request(self.dashboard + path)
        if self.token:
            request.add_header("Authorization", f"Bearer {self.token}")
        return urllib.request.urlopen(request, timeout=120).read()

    def _said(self) -> str:
        return self.folder.with_suffix(".log").read_text()[-3000:]

    def stop(self) -> None:
        """Ends the processes of this cluster, and those alone."""
        for node in self._nodes:
            node.terminate()
        deadline = time.monotonic() + 2
        for node in self._nodes:
            try:
                node.wait(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(node.pid, signal.SIGKILL)
                node.wait()
        for pid in _children_in(self.folder):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._log.close()
        self.folder.with_suffix(".log").unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def _children_in(folder: Path) -> list[int]:
    """Processes whose command line names the cluster's folder."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                line = Path(f"/proc/{entry}/cmdline").read_bytes()
            except OSError:
                continue
            if str(folder).encode() in line:
                found.append(int(entry))
    return found
