"""Jobs in processes of their own, on a cluster of two nodes of their own, and what kills them.

``python -m tests.crashes drive`` runs the job that it reads from its input; ``serve`` is a
cluster that ends with its input. Both are children of the tests, so that whatever is killed is
theirs.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from sheaf_dagster import BatchRunner, BatchSpec, ClusterConfig, ModelSpec
from tests.conftest import ROOT, start_again

FULL = int(os.environ.get("SHEAF_KILLS", "0")) >= 50
"""``make test-crashes``: what takes long is run too."""

JOB_SECONDS = 300


@dataclass
class Job:
    """What a driver process is told to run."""

    model: ModelSpec
    spec: BatchSpec
    address: str | None = None
    engine: str = "auto"

    @property
    def aside(self) -> Path:
        sink = Path(self.spec.sink)
        return sink.parent / f".{sink.name}.sheaf"

    def parts(self) -> list[int]:
        """Rows of each finished part that lies aside."""
        found = [p for p in self.aside.glob("run-*/part-*") if p.suffix in (".jsonl", ".arrow")]
        return [int(p.name.split("-r")[1].split("-")[0]) for p in found]


class Driver:
    """A job in a process of its own."""

    def __init__(self, job: Job, env: dict[str, str] | None = None) -> None:
        self.job = job
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.crashes", "drive"],
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        told = {
            "model": job.model.model_dump(mode="json"),
            "spec": job.spec.model_dump(mode="json"),
            "cluster": {"address": job.address, "engine": job.engine},
        }
        self.process.stdin.write(json.dumps(told))
        self.process.stdin.close()
        self.process.stdin = None  # communicate() would flush it

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def wait_for(self, condition: Callable[[], bool], seconds: float = JOB_SECONDS) -> bool:
        """Whether it came true while the job ran."""
        deadline = time.monotonic() + seconds
        while self.running and time.monotonic() < deadline:
            if condition():
                return True
            time.sleep(0.005)
        return condition()

    def kill(self, how: int = signal.SIGKILL) -> None:
        self.process.send_signal(how)

    def result(self) -> dict:
        """What the job ended with: its result, or its error."""
        text, _ = self.process.communicate(timeout=JOB_SECONDS)
        # Before it there may be lines of the raylet's, about workers that died.
        last = text.splitlines()[-1:] or [""]
        return json.loads(last[0]) if last[0][:1] == "{" else {"error": text or "no answer"}

    def end(self) -> None:
        if self.running:
            self.kill()
        self.process.wait()
        self.process.stdout.close()


@contextmanager
def driving(job: Job, env: dict[str, str] | None = None) -> Iterator[Driver]:
    """A driver that is gone afterwards, whatever happens."""
    driver = Driver(job, env)
    try:
        yield driver
    finally:
        driver.end()


class TwoNodes:
    """A cluster of a head and a second node that can be killed and replaced."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="sheaf-rc-", dir="/tmp")
        # A folder of its own: /tmp/ray names the cluster that "auto" means to others.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crashes", "serve"],
            cwd=ROOT,
            env={**os.environ, "RAY_TMPDIR": self._folder},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.address: str = self._heard()["address"]
        self.second: int = self.add_node()

    def _heard(self) -> dict:
        return json.loads(self._process.stdout.readline())

    def add_node(self) -> int:
        """Adds a second node, in place of one that was killed; the process id of its raylet."""
        self._process.stdin.write("add\n")
        self._process.stdin.flush()
        self.second = int(self._heard()["raylet"])
        return self.second

    def kill_second(self) -> None:
        os.kill(self.second, signal.SIGKILL)

    def stop(self) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(timeout=300)
        finally:
            self._process.kill()
            self._process.stdout.close()
            shutil.rmtree(self._folder, ignore_errors=True)


@dataclass
class Kill:
    """One kill and what came of it."""

    number: int
    compute: str
    victim: str
    engine: str
    parts_at_kill: int = 0
    chunks: int = 0
    landed: bool = False
    """The job was still running when the signal was sent."""
    reran: bool = False
    rows_left: int = 0
    """Rows of finished parts that a killed driver left."""
    rows_reused: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    def log(self) -> None:
        path = os.environ.get("SHEAF_KILL_LOG")
        if path:
            with open(path, "a") as f:
                f.write(json.dumps(asdict(self)) + "\n")


def moment(chooser: random.Random, chunks: int) -> tuple[float, int]:
    """A random moment: seconds to wait, and finished parts to wait for before that."""
    kind = chooser.random()
    if kind < 0.15:  # while it scans, connects, starts workers or loads
        return chooser.uniform(0.2, 4.0), 0
    if kind > 0.9:  # while it ends and commits
        return chooser.uniform(0.0, 0.05), chunks - 1
    return chooser.uniform(0.0, 0.1), chooser.randrange(1, chunks)


def workers_of(load_log: Path) -> list[int]:
    """Processes that loaded the job's model and are still there."""
    if not load_log.exists():
        return []
    pids = {int(line) for line in load_log.read_text().split()}
    return [pid for pid in sorted(pids) if _is_worker(pid)]


def _is_worker(pid: int) -> bool:
    try:
        command = " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return False
    return command.startswith("ray::")


def _drive() -> None:
    # What runs in the background of a shell is started deaf to Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    told = json.load(sys.stdin)
    runner = BatchRunner(
        ModelSpec(**told["model"]), ClusterConfig(**told["cluster"]), on_progress=None
    )
    try:
        result = runner.run(BatchSpec(**told["spec"]))
    except Exception as e:
        print(json.dumps({"error": f"{type(e).__name__}: {e}"}))
        raise SystemExit(1) from e
    print(result.model_dump_json())


def _serve() -> None:
    from ray.cluster_utils import Cluster

    def say(**words: object) -> None:
        print(json.dumps(words), file=out, flush=True)

    out, sys.stdout = sys.stdout, sys.stderr
    head = {"num_cpus": 1, "include_dashboard": False}
    cluster = start_again(lambda: Cluster(initialize_head=True, head_node_args=head), lambda: None)
    say(address=cluster.address)
    for _ in sys.stdin:
        for killed in list(cluster.worker_nodes):
            cluster.remove_node(killed, allow_graceful=False)
        node = start_again(lambda: cluster.add_node(num_cpus=1), lambda: None)
        (raylet,) = node.all_processes["raylet"]
        say(raylet=raylet.process.pid)
    cluster.shutdown()


if __name__ == "__main__":
    {"drive": _drive, "serve": _serve}[sys.argv[1]]()
