"""The page that an asset writes about each partition."""

from __future__ import annotations

import importlib.util

import pytest

import sheaf_dagster as sd
from sheaf_dagster.errors import MissingDependencyError, SpecError
from tests.definitions.project import DAYS, Project

SECRET = "13.5"


def page_of(project: Project, key: str) -> str:
    return (project.root / "out" / f"{key}.jsonl.report.html").read_text("utf-8")


def reported(project: Project):
    return project.records()[-1].asset_materialization.metadata.get("report")


@pytest.mark.parametrize("redact", [False, True])
def test_each_materialisation_links_the_page_about_its_file(tmp_path, redact):
    project = Project(tmp_path, DAYS, report="html", redact_rows=redact)
    key = DAYS.get_first_partition_key()
    project.write(key, [float(SECRET), 2, 3])

    assert project.run(key=key, only=True).success

    assert reported(project).value == f"{tmp_path}/out/{key}.jsonl.report.html"
    page = page_of(project, key)
    assert f"<title>predictions, {key}" in page
    assert "order_is_kept" in page
    assert (f"<b>value</b> {SECRET}" in page) is not redact
    assert (SECRET in page.split("<script>")[0]) is not redact


def test_a_page_that_cannot_be_written_costs_no_materialisation_and_leaves_no_old_one(year):
    year = Project(year.root, DAYS, report="html")
    key = DAYS.get_first_partition_key()
    assert year.run(key=key, only=True).success
    page = year.root / "out" / f"{key}.jsonl.report.html"
    page.unlink()
    page.mkdir()

    done = year.run(key=key, only=True)

    assert done.success
    assert reported(year).value.startswith("not written: ")


def test_there_is_no_page_unless_one_is_asked_for(year):
    key = DAYS.get_first_partition_key()

    assert year.run(key=key, only=True).success

    assert reported(year) is None
    assert not [*year.root.glob("out/*.html")]


def test_a_report_that_there_is_not_is_refused_when_definitions_load():
    fields = {"source": "{root}/a.jsonl", "sink": "{root}/b.jsonl"}

    with pytest.raises(SpecError, match="report='pdf': must be 'html' or None"):
        sd.build_batch_inference_asset("a", **fields, report=sd.ReportOptions(report="pdf"))
    with pytest.raises(SpecError, match="report='pdf'"):
        sd.build_batch_inference_asset("a", **fields, report="pdf")
    assert sd.build_batch_inference_asset("a", **fields, report="html")


def test_a_report_without_its_library_is_refused_when_definitions_load(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *_: None if name == "bokeh" else found(name)
    )

    with pytest.raises(MissingDependencyError, match=r"pip install 'sheaf_dagster\[html\]'"):
        sd.ReportOptions(report="html")
