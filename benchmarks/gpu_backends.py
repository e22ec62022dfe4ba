"""Built-in backends on a GPU, against what a user would write: as ``make bench`` does on a CPU.

    python -m benchmarks.gpu_backends

The texts, images and series are those of ``text_embedder``, ``images`` and ``real_model``, but more
of them. It needs the packages of these three, and a GPU.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.images import images
from benchmarks.real_model import real_model
from benchmarks.text_embedder import text_embedder

RESULT = Path(__file__).parent / "results" / "gpu_backends.json"
ROUNDS = 3


def main() -> None:
    """Measures, prints, and keeps the figures in ``results/gpu_backends.json``."""
    cases: dict[str, Callable[[Path], dict[str, Any]]] = {
        "text_embedder": lambda folder: text_embedder(folder, 4_000, "cuda", ROUNDS),
        "images": lambda folder: images(folder, 4, "cuda", ROUNDS),
        "real_model": lambda folder: real_model(folder, 9_600, "cuda", ROUNDS),
    }
    found = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for name, case in cases.items():
        print(f"\n{name}, on a GPU", flush=True)
        with tempfile.TemporaryDirectory(prefix="sheaf-bench-") as folder:
            found[name] = case(Path(folder))
        RESULT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
