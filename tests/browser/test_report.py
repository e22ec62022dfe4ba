"""The page about a file as a browser shows it."""

from __future__ import annotations

import math

import pytest

from sheaf_dagster.report import Page, render_page
from tests.drawn import sample

pytestmark = pytest.mark.browser

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def forecast(i: int):
    history = [i + math.sin(t / 3) for t in range(60)]
    request = {"model_name": f"{HOSTILE} {i}", "history": history, "frequency": "1d"}
    mean = [i + math.sin(t / 3) for t in range(7)]
    bands = {"0.1": [v - 1 for v in mean], "0.9": [v + 1 for v in mean]}
    return request, {"mean": mean, "quantiles": bands}


@pytest.fixture
def shown(page, tmp_path):
    """A page of forecasts in a window, and what the browser complained of."""
    pairs = [forecast(i) for i in range(8)]
    content = Page(
        "forecasts, 2026-01-01",
        "a model",
        len(pairs),
        {"backend": HOSTILE},
        {"whole file": 1.5},
        sample=sample(pairs),
    )
    (tmp_path / "page.html").write_text(render_page(content), "utf-8")
    complaints: list[str] = []

    def heard(message) -> None:
        if message.type in ("error", "warning"):
            complaints.append(message.text)

    def asked(dialog) -> None:
        complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def failed(error) -> None:
        complaints.append(str(error))

    listeners = {"console": heard, "dialog": asked, "pageerror": failed}
    for name, listener in listeners.items():
        page.on(name, listener)
    page.goto((tmp_path / "page.html").as_uri())
    yield page, complaints
    for name, listener in listeners.items():
        page.remove_listener(name, listener)


def test_the_page_draws_its_plots_finds_rows_and_runs_nothing_of_theirs(shown):
    from playwright.sync_api import expect

    page, complaints = shown

    expect(page.locator(".bk-Figure")).to_have_count(5)  # four forecasts and the sizes
    page.locator("#words").fill("onerror=alert(2)> 3")
    expect(page.locator("#rows tbody tr:visible")).to_have_count(1)
    expect(page.locator("#shown")).to_have_text("1 of 8 rows")
    canvas = page.locator(".bk-Figure").first
    canvas.hover(position={"x": 200, "y": 100})
    assert complaints == []


def test_a_script_that_got_into_the_page_would_not_run(shown):
    page, complaints = shown

    page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "document.title = 'taken over'";
            document.body.append(script);
        }"""
    )

    assert page.title() == "forecasts, 2026-01-01 – a model"
    assert any("Content Security Policy" in text for text in complaints)
