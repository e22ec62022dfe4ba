"""A headless Chromium of the system's, driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.pictures import DENSITY, HEIGHT, WIDTH, save

_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
)


@pytest.fixture(scope="module")
def page() -> Iterator:
    """One browser window. While it is open its event loop runs: no other test could start one."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no Chromium is installed (on Debian: apt-get install chromium)")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=120_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=_FLAGS.split())
        # Without a graphics card each pixel costs, and only pictures need as many.
        density = DENSITY if os.environ.get("SHEAF_SCREENSHOTS") else 1
        page = browser.new_page(
            viewport={"width": WIDTH, "height": HEIGHT},
            device_scale_factor=density,
            reduced_motion="reduce",
        )
        page.set_default_timeout(120_000)
        yield page
        browser.close()


@pytest.fixture(scope="module")
def keep_picture(page):
    """Keeps what the window shows as a picture of the README, where SHEAF_SCREENSHOTS asks."""
    folder = os.environ.get("SHEAF_SCREENSHOTS")

    def keep(name: str) -> None:
        if folder:
            page.wait_for_load_state("networkidle")
            # A dialog that fades in is half transparent until it is there.
            save(page.screenshot(animations="disabled"), Path(folder) / f"{name}.png")

    return keep
