"""A backend in a process of its own, as a worker has it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from sheaf_dagster.backends import ModelBackend
from sheaf_dagster.backends.base import close_backend
from sheaf_dagster.testing.comparison import plain

__all__ = ["answers_of_a_fresh_process", "work"]

_WORKER_SECONDS = 300


def answers_of_a_fresh_process(
    cls: type[ModelBackend], kwargs: Mapping[str, Any], requests: Sequence[Any]
) -> tuple[list[Any], str | None]:
    """Answers and identity from a fresh process, to which things travel as they do to Ray's.

    Raises:
        AssertionError: They don't travel, or don't work there.
    """
    from ray import cloudpickle

    try:
        payload = cloudpickle.dumps((cls, kwargs, requests))
    except Exception as e:
        raise AssertionError(f"the class can't be sent to a worker: {type(e).__name__}: {e}") from e
    with tempfile.TemporaryDirectory(prefix="sheaf-") as folder:
        parcel = os.path.join(folder, "parcel")
        with open(parcel, "wb") as f:
            f.write(payload)
        done = subprocess.run(  # noqa: S603  (our own interpreter)
            [
                sys.executable,
                "-c",
                "from sheaf_dagster.testing.fresh_process import work; work()",
                parcel,
            ],
            # Ray's workers see the driver's import path, too.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)},
            capture_output=True,
            text=True,
            timeout=_WORKER_SECONDS,
            check=False,
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it ended without a message"])[-1]
            raise AssertionError(
                f"the class and its arguments don't work in a fresh worker process: {last}"
            )
        with open(parcel, "rb") as f:
            answers, identity = cloudpickle.loads(f.read())
    return answers, identity


def work() -> None:
    """What the worker process does."""
    from ray import cloudpickle

    parcel = sys.argv[1]
    with open(parcel, "rb") as f:
        cls, kwargs, requests = cloudpickle.loads(f.read())
    backend = cls(**kwargs)
    backend.load()
    answers = [plain(a) for a in backend.batch_predict(requests)]
    close_backend(backend)
    with open(parcel, "wb") as f:
        f.write(cloudpickle.dumps((answers, cls.identify(**kwargs))))
