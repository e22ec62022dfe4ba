"""``dagster dev`` on a port and an instance of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.conftest import ROOT
from tests.ports import free_ports

_CONFIG = """
telemetry:
  enabled: false
nux:
  enabled: false
run_coordinator:
  module: dagster.core.run_coordinator
  class: QueuedRunCoordinator
  config:
    dequeue_interval_seconds: 1
"""


class DagsterDev:
    """Webserver, daemon and code location, with all that they write under ``root``.

    What else uses the instance for the first time must be done before they start: two processes
    that make the same SQLite files get in each other's way.
    """

    def __init__(self, root: Path, *what: str, env: Mapping[str, str] | None = None) -> None:
        self.home = root / "home"
        self.home.mkdir()
        (self.home / "dagster.yaml").write_text(_CONFIG)
        (self.port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        self.env = {**os.environ, "DAGSTER_HOME": str(self.home), **(env or {})}
        self._what = what
        self._log = (root / "dev.log").open("w")
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        """Starts them, and waits for the code location."""
        self._process = subprocess.Popen(
            [
                sys.executable, "-m", "dagster", "dev", *self._what,
                "-p", str(self.port), "-h", "127.0.0.1",
            ],
            cwd=ROOT, stdout=self._log, stderr=self._log, start_new_session=True, env=self.env,
        )  # fmt: skip
        self.until(
            "the UI",
            lambda: self.query(
                "{ repositoriesOrError { ... on RepositoryConnection { nodes { name } } } }"
            )["repositoriesOrError"].get("nodes"),
        )

    @property
    def log(self) -> str:
        return Path(self._log.name).read_text()

    def stop(self) -> None:
        self._log.close()
        if self._process is None:
            return
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(timeout=3)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()

    def query(self, text: str, **variables: Any) -> Any:
        """The answer of the GraphQL endpoint."""
        request = urllib.request.Request(
            f"{self.url}/graphql",
            json.dumps({"query": text, "variables": variables}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as response:
            answer = json.load(response)
        assert "errors" not in answer, answer["errors"]
        return answer["data"]

    def until(self, what: str, check: Callable[[], Any], seconds: float = 300) -> Any:
        """What ``check`` gives, as soon as that is something."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                found = check()
            except OSError:
                found = None
            if found:
                return found
            time.sleep(0.5)
        raise AssertionError(f"{what} did not happen: {self.log[-2000:]}")
