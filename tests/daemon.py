"""Dagster's daemon on a code location, with an instance of its own that the test looks into."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import dagster as dg

from tests.conftest import ROOT

T = TypeVar("T")


def text_of(instance: dg.DagsterInstance, run_id: str) -> str:
    """All that a run's log says, errors of failed steps included."""
    lines = []
    for e in instance.all_logs(run_id):
        lines.append(e.user_message)
        data = e.dagster_event and e.dagster_event.event_specific_data
        if getattr(data, "error", None) is not None:
            lines.append(data.error.to_string())
    return "\n".join(lines)


class Daemon:
    """``dagster-daemon run``, which ticks sensors and launches runs; no webserver.

    Args:
        root: Folder for the instance and the log.
        module: The code location.
        environment: Variables for the code location and its runs.
    """

    def __init__(self, root: Path, module: str, **environment: str) -> None:
        home = root / "home"
        home.mkdir(exist_ok=True)
        (home / "dagster.yaml").write_text(
            "telemetry:\n  enabled: false\nrun_coordinator:\n"
            "  module: dagster.core.run_coordinator\n  class: DefaultRunCoordinator\n"
        )
        self.instance = dg.DagsterInstance.from_config(str(home))
        self._log = (root / "daemon.log").open("w")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "dagster._daemon", "run", "-m", module],
            cwd=ROOT, stdout=self._log, stderr=self._log, start_new_session=True,
            env={**os.environ, "DAGSTER_HOME": str(home), **environment},
        )  # fmt: skip

    def stop(self) -> None:
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._log.close()
        self.instance.dispose()

    def until(self, what: str, check: Callable[[], T | None], seconds: float = 300) -> T:
        """The first true answer of ``check``."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := check():
                return found
            time.sleep(0.2)
        log = Path(self._log.name).read_text()[-3000:]
        raise AssertionError(f"{what} did not happen; the daemon's log ends: {log}")

    def ended_runs(self, **tags: str) -> list[dg.DagsterRun]:
        """Runs that have ended, oldest first."""
        records = self.instance.get_run_records(dg.RunsFilter(tags=tags), ascending=True)
        return [r.dagster_run for r in records if r.dagster_run.is_finished]

    def ticks(self, sensor: str) -> list[Any]:
        """Ticks of a sensor that have ended, newest first."""
        (state,) = [s for s in self.instance.all_instigator_state() if s.name == sensor] or [None]
        if state is None:
            return []
        ticks = self.instance.get_ticks(state.instigator_origin_id, state.selector_id)
        return [t for t in ticks if t.status.value != "STARTED"]
