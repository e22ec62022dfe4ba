"""The docs' pictures: how they are kept, and of which code they are."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sheaf_dagster.definitions.checks import CHECKS
from tests.conftest import ROOT

FOLDER = ROOT / "docs" / "images"
WIDTH, HEIGHT, DENSITY = 1600, 1000, 2
NAMES = ("backfill", "forecasts", "launchpad", "materialisation", "red_check")

_CODE = "pictured-code"


def pictured_code() -> str:
    """A digest of what the pictures show of this library: its plots, and the names of its checks."""
    plots = sorted((ROOT / "sheaf_dagster" / "plots").glob("*.py"))
    assert plots, "the plots have moved"
    parts = [path.read_bytes() for path in plots] + [" ".join(sorted(CHECKS)).encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def save(png: bytes, path: Path) -> None:
    """With a palette: a user interface needs no more, and the README loads fast."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.open(io.BytesIO(png)).convert("RGB")
    palette = image.quantize(128, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    written = PngInfo()
    written.add_text(_CODE, pictured_code())
    palette.save(path, optimize=True, pnginfo=written)


def code_of(image: Image.Image) -> str | None:
    """Of which code a picture is."""
    return image.info.get(_CODE)
