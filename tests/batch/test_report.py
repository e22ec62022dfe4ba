"""The page beside a sink, and in a notebook."""

from __future__ import annotations

import html
import json
import re
import webbrowser

import pytest
from click.testing import CliRunner

from sheaf_dagster import BatchResult, BatchRunner, BatchSpec
from sheaf_dagster.batch.report import local_report, write_report
from sheaf_dagster.cli import main
from sheaf_dagster.errors import SinkError, SourceNotFoundError
from tests.batch.jobs import leftovers, spec
from tests.toys import doubler

SECRET = "a word of a row"


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.s3)])
def job(request, tmp_path, write_rows) -> BatchSpec:
    """Three rows, on a disk and in a bucket."""
    path = write_rows([1, 2, 3], note=SECRET)
    if request.param == "disk":
        return spec(path, tmp_path, compute="local")
    s3 = request.getfixturevalue("s3")
    with open(path, "rb") as f:
        s3.put("in.jsonl", f.read())
    return BatchSpec(
        source=s3.uri("in.jsonl"),
        sink=s3.uri("out.jsonl"),
        compute="local",
        storage_options=s3.options(),
    )


def run(job: BatchSpec, **fields) -> BatchResult:
    return BatchRunner(doubler(), on_progress=None, **fields).run(job)


def test_a_page_stands_beside_the_sink_on_any_store(job):
    result = run(job)

    at = write_report(result, job, doubler(), title="2026-01-01")

    assert at.uri == f"{result.sink}.report.html"
    with open(local_report(job.sink, job.storage_options), encoding="utf-8") as f:
        text = f.read()
    assert local_report(at.uri, job.storage_options)
    assert "<title>2026-01-01" in text
    assert result.fingerprint in text
    assert text.count("<details>") == 3
    assert SECRET in text


def test_no_page_is_written_beside_a_sink_that_cannot_be_seen(tmp_path, write_rows):
    job = spec(write_rows([1]), tmp_path, compute="local")
    result = run(job)
    elsewhere = job.model_copy(update={"sink": str(tmp_path / "out" / "other.jsonl")})

    with pytest.raises(SinkError, match="is not the file that the job committed"):
        write_report(result, elsewhere, doubler())

    assert leftovers(tmp_path) == ["out.jsonl"]
    with pytest.raises(SourceNotFoundError, match="run --report"):
        local_report(job.sink)


@pytest.mark.parametrize("redact", [False, True])
def test_a_notebook_shows_the_page_in_a_frame_of_its_own(tmp_path, write_rows, redact):
    result = run(spec(write_rows([1], note=SECRET), tmp_path, compute="local"), redact_rows=redact)

    shown = result._repr_html_()

    found = re.fullmatch(r'<iframe srcdoc="([^"]*)" sandbox="allow-scripts allow-downloads"[^>]*></iframe>', shown)  # fmt: skip
    page = html.unescape(found[1])
    assert result.fingerprint in page
    assert (SECRET in page) is not redact


def test_a_result_without_its_files_shows_numbers_alone(tmp_path, write_rows):
    result = run(spec(write_rows([1], note=SECRET), tmp_path, compute="local"))
    known = result.model_dump(mode="json")

    read = BatchResult.model_validate(known)._repr_html_()
    (tmp_path / "out" / "out.jsonl").unlink()
    gone = result._repr_html_()

    assert all(result.fingerprint in text and SECRET not in text for text in (read, gone))
    assert "_job" not in known


def test_the_command_line_writes_a_page_and_opens_it(tmp_path, write_rows, monkeypatch):
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda uri: opened.append(uri) or True)
    source, sink = write_rows([1]), str(tmp_path / "out" / "out.jsonl")
    job = tmp_path / "job.yaml"
    model = doubler().model_dump(mode="json")
    job.write_text(
        json.dumps({"model": model, "batch": {"source": source, "sink": sink, "compute": "local"}})
    )

    done = CliRunner().invoke(main, ["run", str(job), "--report", "-q"], catch_exceptions=False)
    shown = CliRunner().invoke(main, ["report", sink], catch_exceptions=False)
    path = CliRunner().invoke(main, ["report", "--path", sink], catch_exceptions=False)
    none = CliRunner().invoke(main, ["report", source], catch_exceptions=False)

    assert [r.exit_code for r in (done, shown, path, none)] == [0, 0, 0, 1]
    assert shown.output == path.output == f"{sink}.report.html\n"
    assert opened == [f"file://{sink}.report.html"]
    assert "does not exist" in none.output
