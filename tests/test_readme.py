"""The README's code runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
AFTER = [
    "assert defs.resolve_all_asset_keys()",
    "assert result.rows == 1",
    "assert 'doubler' in sd.known_backends()",
]


@pytest.mark.model
@pytest.mark.parametrize("index", range(len(BLOCKS)))
def test_python_blocks_run(index, tmp_path):
    row = {
        "model_type": "time_series",
        "model_name": "m",
        "history": [1, 2, 3] * 9,
        "horizon": 2,
        "frequency": "1d",
    }
    (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "block.py").write_text(BLOCKS[index] + "\n" + AFTER[index])
    done = subprocess.run(
        [sys.executable, "block.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_make_targets_named_in_the_readme_exist():
    named = set(re.findall(r"`?make ([a-z-]+)", (ROOT / "README.md").read_text()))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert named <= targets
