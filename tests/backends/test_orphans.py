"""Children of a process that is killed."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

psutil = pytest.importorskip("psutil")

_PARENT = """
import multiprocessing, os, signal, time
from sheaf_dagster.backends.common.orphans import ChildWatch

if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    watch = ChildWatch()
    with watch.over_new():
        child = context.Process(target=time.sleep, args=(600,))
        child.start()
    {then}
    print(child.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("then", "stays"), [("pass", False), ("watch.close()", True)])
def test_a_child_ends_with_a_parent_that_is_killed_unless_it_was_let_go(then, stays, tmp_path):
    said = tmp_path / "pid"  # no pipe, which the child would hold open
    with said.open("w") as out:
        done = subprocess.run([sys.executable, "-c", _PARENT.format(then=then)], stdout=out)

    assert done.returncode == -signal.SIGKILL
    pid = int(said.read_text())
    if stays:
        psutil.Process(pid).kill()
    elif psutil.pid_exists(pid):
        psutil.wait_procs([psutil.Process(pid)], timeout=300)
        assert not psutil.pid_exists(pid)
