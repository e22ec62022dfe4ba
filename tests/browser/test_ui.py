"""What a person does and sees in Dagster's UI, on the example project."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from sheaf_dagster.definitions.checks import CHECKS
from tests.conftest import ROOT
from tests.dagster_dev import DagsterDev

pytestmark = [
    pytest.mark.long,
    pytest.mark.browser,
    pytest.mark.daemon,
    pytest.mark.ray,
    pytest.mark.model,
    pytest.mark.timeout(900),
]

REQUESTS = """
import dagster as dg
from example_project.runs import materialise, quiet
quiet()
with dg.DagsterInstance.get() as instance:
    assert materialise(
        instance, ["forecast_requests"], "2013-06-10", "2013-06-14", "ERROR"
    ).success
"""


@pytest.fixture
def dagster(page, tmp_path):
    """The example in ``dagster dev``: requests of five days, those of the fourth broken."""
    data = tmp_path / "data"
    server = DagsterDev(tmp_path, "-w", "workspace.yaml", env={"SHEAF_EXAMPLE_ROOT": str(data)})
    try:
        subprocess.run(
            [sys.executable, "-c", REQUESTS], cwd=ROOT, env=server.env, check=True, timeout=300
        )
        broken = data / "requests" / "2013-06-13.jsonl"
        lines = broken.read_text().splitlines()
        lines[2] = json.dumps({**json.loads(lines[2]), "history": [3, "many", 2]})
        broken.write_text("\n".join(lines) + "\n")
        server.start()
        yield server
    finally:
        server.stop()


def retype(box, text: str) -> None:
    box.fill("")
    box.fill(text)


def status_of(dagster: DagsterDev, day: str) -> str | None:
    (node,) = dagster.query(
        '{ assetNodes(assetKeys: [{path: ["forecasts"]}]) { assetPartitionStatuses { '
        "... on TimePartitionStatuses { ranges { status startKey endKey } } } } }"
    )["assetNodes"]
    ranges = node["assetPartitionStatuses"]["ranges"]
    return next((r["status"] for r in ranges if r["startKey"] <= day <= r["endKey"]), None)


def run_states(dagster: DagsterDev) -> list[str]:
    answer = dagster.query("{ runsOrError { ... on Runs { results { status } } } }")
    return [run["status"] for run in answer["runsOrError"]["results"]][:2]


def test_a_person_materialises_configures_backfills_and_reads_the_checks(
    dagster, page, keep_picture
):
    from playwright.sync_api import expect

    def open_page(path: str) -> None:
        page.goto(dagster.url + path)

    def partition(day: str, status: str) -> None:
        dagster.until(f"{status} of {day}", lambda: status_of(dagster, day) == status.upper())
        open_page(f"/assets/forecasts?view=partitions&partition={day}")
        # Beside a failed day's name the page has no word for it: it counts them.
        shown = page.get_by_text("Failed (1)" if status == "Failed" else status, exact=True)
        expect(shown).to_be_visible()

    def until_shown(act: Callable[[], None], what: Callable) -> None:
        """What is typed or clicked while the page still loads can be lost, so again."""
        for left in reversed(range(8)):
            act()
            try:
                expect(what()).to_be_visible(timeout=15_000)
            except AssertionError:
                if not left:
                    raise
            else:
                break

    def dialog():
        return page.get_by_role("dialog")

    def choose_partitions(text: str, then: str) -> None:
        def choose() -> None:
            box = dialog().get_by_role("textbox").first
            box.fill(text)
            box.press("Enter")

        page.get_by_role("button", name="Materialize…").click()
        until_shown(choose, lambda: dialog().get_by_role("button", name=then))

    def write_config(*lines: str) -> None:
        page.locator(".CodeMirror").click()
        page.keyboard.press("Control+a")
        page.keyboard.insert_text(
            "ops:\n  forecasts:\n    config:\n" + "".join(f"      {line}\n" for line in lines)
        )
        expect(page.get_by_text("No errors")).to_be_visible()

    # The workspace loads.
    open_page("/locations")
    expect(page.get_by_text("example_project.definitions").first).to_be_visible()
    expect(page.get_by_text("Loaded", exact=True).first).to_be_visible()

    # One day, with another batch size from the Launchpad.
    open_page("/assets/forecasts")
    materialise = page.get_by_role("button", name="Materialize…")
    materialise.locator("xpath=following::button[1]").click()
    page.get_by_text("Open launchpad").click()
    day = page.get_by_role("menuitem", name="2013-06-10")
    partition_box = dialog().get_by_placeholder("Partition")
    until_shown(lambda: retype(partition_box, "2013-06-10"), lambda: day)
    day.click()
    write_config("batch_size: 16", "compute: local")
    launch = dialog().get_by_role("button", name="Materialize")
    expect(launch).to_be_enabled()
    keep_picture("launchpad")
    launch.click()

    # Another day from the asset's page, as the asset was built.
    open_page("/assets/forecasts")
    choose_partitions("2013-06-11", then="Launch 1 run")
    dialog().get_by_role("button", name="Launch 1 run").click()
    expect(dialog()).to_be_hidden()

    # A finished run has no spinner beside its name.
    dagster.until("the end of both runs", lambda: run_states(dagster) == ["SUCCESS"] * 2)

    # Both show their rows, a plot that the browser has drawn, and a preview.
    for day, batch_size in (("2013-06-10", "16"), ("2013-06-11", "64")):
        partition(day, "Materialized")
        expect(page.get_by_text("rows_per_second")).to_be_visible()
        shown = {
            row.locator("td").first.inner_text(): row.locator("td").nth(1)
            for row in page.locator("table tr").filter(has_text=re.compile(r"\w")).all()
            if row.locator("td").count() >= 2
        }
        assert shown["dagster/partition_row_count"].inner_text() == "80"
        assert shown["batch_size"].inner_text() == batch_size
        assert "EWR-ATL" in shown["preview"].inner_text()
        picture = shown["plot"].get_by_role("img", name="history and forecast")
        assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") == 240
    keep_picture("materialisation")
    shown["plot_large"].get_by_text("[Show Markdown]").click()
    expect(dialog().get_by_role("img", name="histories and forecasts")).to_be_visible()
    keep_picture("forecasts")
    dialog().get_by_role("button", name="Close").click()

    # A backfill of three days, of which one has a broken file.
    open_page("/assets/forecasts")
    choose_partitions("[2013-06-12...2013-06-14]", then="Launch backfill")
    expect(dialog().get_by_text("Backfills all partitions in a single run.")).to_be_visible()
    keep_picture("backfill")
    dialog().get_by_text("Config", exact=True).click()
    page.get_by_text("Add config", exact=True).click()
    write_config("compute: local")
    page.get_by_role("button", name="Save config").click()
    dialog().get_by_role("button", name="Launch backfill").click()
    for day, status in (
        ("2013-06-12", "Materialized"),
        ("2013-06-14", "Materialized"),
        ("2013-06-13", "Failed"),
    ):
        partition(day, status)

    # All checks but one are green; the red one says in which file and line, which field, and what.
    open_page("/assets/forecasts?view=checks&checkDetail=input_rows_are_valid")
    expect(page.get_by_text("Succeeded", exact=True)).to_have_count(len(CHECKS) - 1)
    expect(page.get_by_text("Failed", exact=True).first).to_be_visible()
    expect(page.get_by_text("line 3, field 'history.1'").first).to_be_visible()
    expect(page.get_by_text("2013-06-13").first).to_be_visible()
    keep_picture("red_check")
