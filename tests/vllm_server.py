"""A ``vllm serve`` on loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = ["ENVIRONMENT", "VllmServer", "served", "words_of"]

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "2",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}
"""What vLLM reads from the environment to be small, on a CPU."""


def words_of(options: Mapping[str, Any]) -> list[str]:
    """Options by their names in Python, as a command line has them."""
    named = ((name.replace("_", "-"), value) for name, value in options.items())
    texts = ((n, json.dumps(v) if isinstance(v, dict) else v) for n, v in named)
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in texts]


class VllmServer:
    """A server that is up.

    Attributes:
        process: Its process; vLLM's others end with it.
        url: Where its API is, without ``/v1``.
    """

    def __init__(self, process: subprocess.Popen[bytes], url: str) -> None:
        self.process = process
        self.url = url


@contextmanager
def served(model: str, port: int, **options: Any) -> Iterator[VllmServer]:
    """Runs it for as long as the block does; waits until it is up.

    Raises:
        RuntimeError: It ended instead.
    """
    command = [str(Path(sys.executable).with_name("vllm")), "serve", model, "--host=127.0.0.1",
               f"--port={port}", "--disable-uvicorn-access-log", *words_of(options)]  # fmt: skip
    process = subprocess.Popen(
        command,
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    server = VllmServer(process, f"http://127.0.0.1:{port}")
    try:
        while not _is_up(server):
            time.sleep(0.5)
        yield server
    finally:
        process.terminate()
        process.wait(60)
        with suppress(ProcessLookupError):  # where it was killed, its engine is still there
            os.killpg(process.pid, signal.SIGKILL)


def _is_up(server: VllmServer) -> bool:
    if server.process.poll() is not None:
        raise RuntimeError(f"vllm serve ended with {server.process.returncode}")
    try:
        urllib.request.urlopen(f"{server.url}/health", timeout=5)
    except OSError:
        return False
    return True
