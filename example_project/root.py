"""Where the example keeps its files."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["ROOT"]

ROOT = Path(os.environ.get("SHEAF_EXAMPLE_ROOT") or Path(__file__).parent.parent / "data")
