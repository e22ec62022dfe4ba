"""The fuzz target under atheris; arguments are libFuzzer's, such as ``-max_total_time=60``."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

# What is followed for coverage is what is imported here for the first time.
with atheris.instrument_imports(
    include=["sheaf_dagster.storage", "sheaf_dagster.batch.rows.requests"]
):
    from tests.fuzz.reader import read_any

CORPUS = Path(__file__).parent.parent / "corpus" / "files"

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as seeds:
        for i, path in enumerate(sorted(CORPUS.iterdir())):
            kind = {".gz": 2, ".zst": 3}.get(path.suffix, 0)
            (Path(seeds) / str(i)).write_bytes(bytes([kind, 3, 60]) + path.read_bytes())
        atheris.Setup([*sys.argv, seeds, "-max_len=4096", "-print_final_stats=1"], read_any)
        atheris.Fuzz()
