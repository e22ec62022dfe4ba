"""Jobs of the toy model in every compute mode."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sheaf_dagster import BatchSpec

MODES = [
    pytest.param({"compute": "local"}, id="local"),
    pytest.param({"compute": "tasks"}, id="tasks", marks=pytest.mark.ray),
    pytest.param({"compute": "actors", "num_actors": 2}, id="actors", marks=pytest.mark.ray),
]
"""How workers are started: fields of a ``BatchSpec``."""

here_and_in_workers = pytest.mark.parametrize(
    "mode",
    [
        MODES[0],
        pytest.param({"compute": "tasks"}, id="tasks", marks=[pytest.mark.ray, pytest.mark.long]),
        MODES[2],
    ],
    indirect=True,
)
"""For what becomes of rows, and not of workers: tasks run on them what actors do, in
``make test-long``."""


local_or_tasks = pytest.mark.parametrize("mode", MODES[:2], indirect=True)


def spec(source, tmp_path, **fields) -> BatchSpec:
    """A job that writes to ``out/out.jsonl``."""
    return BatchSpec(source=str(source), sink=str(tmp_path / "out" / "out.jsonl"), **fields)


def leftovers(tmp_path: Path) -> list[str]:
    """All that lies where ``spec`` writes, hidden files too."""
    return sorted(os.listdir(tmp_path / "out")) if (tmp_path / "out").exists() else []
