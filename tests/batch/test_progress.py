"""What a person is told while a job runs: lines at a steady pace, or a bar."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import subprocess
import sys
import time

import pytest
from rich.console import Console

from sheaf_dagster import BatchProgress, BatchRunner, BatchSpec, PredictError
from sheaf_dagster.batch.file_run import FileRun
from sheaf_dagster.batch.progress import progress_bar, progress_lines, progress_text
from tests.batch.jobs import spec
from tests.conftest import ROOT
from tests.toys import doubler, scaler


def at(done: int, total: int, **fields) -> BatchProgress:
    known = {"files_done": 0, "files_total": 1, "rows_per_second": 50.0, "elapsed_seconds": 10.0}
    return BatchProgress(
        **{**known, "rows_done": done, "rows_total": total, "eta_seconds": None, **fields}
    )


@pytest.mark.parametrize(
    ("progress", "files", "text"),
    [
        (at(0, 0), None, "0 of 0 rows, 50 rows/s"),
        (
            at(1200, 5000, eta_seconds=76.0),
            None,
            "1,200 of 5,000 rows, 50 rows/s, about 76 s to go",
        ),
        (at(1, 9, eta_seconds=600.0), 1, "1 of 9 rows, 50 rows/s, about 10 min to go"),
        (
            at(40, 90, files_done=30, files_total=34, eta_seconds=1.0),
            365,
            "40 of 90 rows known so far, 50 rows/s, 30 of 365 partitions done, about 112 s to go",
        ),
        (
            at(40, 90, files_done=1, files_total=3, eta_seconds=5.0),
            3,
            "40 of 90 rows known so far, 50 rows/s, 1 of 3 partitions done, about 5 s to go",
        ),
        (at(1, 9, eta_seconds=9000.0), 1, "1 of 9 rows, 50 rows/s, about 2 h 30 min to go"),
        (
            at(1760, 2000, rows_resumed=1760, rows_per_second=0.0),
            None,
            "1,760 of 2,000 rows (1,760 resumed)",
        ),
        (
            at(1800, 2000, rows_resumed=1760),
            None,
            "1,800 of 2,000 rows (1,760 resumed), 50 rows/s",
        ),
        (at(0, 9, rows_per_second=0.0), None, "0 of 9 rows"),
        (at(2, 9, rows_per_second=0.333), None, "2 of 9 rows, 0.33 rows/s"),
    ],
)
def test_a_line_says_rows_rate_files_and_the_time_to_go(progress, files, text):
    assert progress_text(progress, files=files, noun="partitions") == text


def test_lines_come_at_a_steady_pace_however_often_a_job_reports(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("sheaf_dagster.batch.progress.time.monotonic", lambda: now[0])
    told: list[tuple[float, str]] = []
    tell = progress_lines(lambda line: told.append((now[0], line)), every_s=10)

    for tenth in range(600):
        now[0] = 100 + tenth / 10
        tell(at(tenth, 600))

    assert [when for when, _ in told] == [105, 115, 125, 135, 145, 155]
    assert told[0][1].startswith("50 of 600 rows")


def test_a_bar_shows_the_rows_and_ends_full():
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120, color_system=None)

    with progress_bar("forecasts", console=console) as bar:
        bar(at(40, 80))
        bar(at(80, 80))

    shown = screen.getvalue()
    assert "validating rows and starting workers" in shown
    assert "✓ forecasts ━━━━━━━━━━━━━━━━━━━━━━━━ 80 of 80 rows, 50 rows/s" in shown


def test_a_bar_over_files_counts_files(write_rows, tmp_path):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=140, color_system=None)
    specs = [
        BatchSpec(
            source=write_rows([1, 2], f"{i}.jsonl"), sink=f"{tmp_path}/o{i}.jsonl", compute="local"
        )
        for i in range(3)
    ]

    with progress_bar("numbers", files=3, console=console) as bar:
        outcomes = list(BatchRunner(doubler(), on_progress=bar).run_many(specs))

    assert all(o.ok for o in outcomes)
    assert "6 of 6 rows known so far" in screen.getvalue()
    assert "3 of 3 files done" in screen.getvalue()


def test_a_script_in_a_terminal_has_a_bar(write_rows, tmp_path):
    script = (
        "from sheaf_dagster import BatchRunner, BatchSpec\nfrom tests.toys import doubler\n"
        f"spec = BatchSpec(source={write_rows([1, 2, 3])!r}, sink={str(tmp_path / 'o')!r}, "
        "compute='local')\nprint(BatchRunner(doubler()).run(spec).rows)\n"
    )
    ours, theirs = pty.openpty()

    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=theirs, check=True,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )  # fmt: skip
    os.close(theirs)

    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert done.stdout == b"3\n"
    assert "doubler" in shown
    assert "3 of 3 rows" in shown


def test_elsewhere_it_logs_lines(write_rows, tmp_path, caplog, monkeypatch):
    monkeypatch.setitem(progress_lines.__kwdefaults__, "every_s", 0)
    spec = BatchSpec(source=write_rows([1, 2, 3]), sink=str(tmp_path / "o"), compute="local")

    with caplog.at_level(logging.INFO, logger="sheaf_dagster"):
        BatchRunner(doubler()).run(spec)

    assert "doubler: 3 of 3 rows" in caplog.text


def test_nothing_is_told_where_nothing_is_wanted(write_rows, tmp_path, caplog, capfd):
    spec = BatchSpec(source=write_rows([1]), sink=str(tmp_path / "o"), compute="local")

    with caplog.at_level(logging.INFO, logger="sheaf_dagster"):
        result = BatchRunner(doubler(), on_progress=None).run(spec)

    assert json.loads((tmp_path / "o").read_text())["value"] == 2
    assert result.rows == 1
    assert caplog.text == "" and capfd.readouterr().err == ""


def test_a_resumed_job_tells_how_many_rows_it_took_over(write_rows, tmp_path):
    (tmp_path / "weights").write_text("2")
    trouble = tmp_path / "trouble"
    trouble.touch()
    model = scaler(weights=str(tmp_path / "weights"), fail_while=str(trouble))
    job = spec(write_rows(list(range(120))), tmp_path, batch_size=5, compute="local")
    with pytest.raises(PredictError):
        BatchRunner(model).run(job)
    trouble.unlink()
    seen = []

    result = BatchRunner(model, on_progress=seen.append).run(job)

    assert 0 < result.resumed_rows < 120
    assert seen[-1].rows_resumed == result.resumed_rows


@pytest.mark.ray
def test_a_file_counts_while_it_is_committed(ray_cluster, write_rows, tmp_path, monkeypatch):
    commit = FileRun.commit

    def slow_commit(task):
        time.sleep(1.5)
        return commit(task)

    monkeypatch.setattr(FileRun, "commit", slow_commit)
    seen = []

    BatchRunner(doubler(), on_progress=seen.append).run(
        spec(write_rows(list(range(40))), tmp_path, batch_size=5, compute="tasks")
    )

    done = [p.rows_done for p in seen]
    assert done.count(40) > 1
    assert done == sorted(done)
