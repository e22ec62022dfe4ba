"""The example as a newcomer runs it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import date

import pytest

from example_project.accuracy import score
from example_project.series import HISTORY_DAYS, HORIZON, load_series
from tests.conftest import ROOT


def test_the_series_are_a_year_of_182_routes():
    series = load_series()
    assert (len(series.routes), len(series.counts)) == (182, 365)
    history = series.before(date(2013, 3, 1), HISTORY_DAYS)
    ahead = series.ahead(date(2013, 2, 1), HORIZON)
    assert len(history) == len(ahead) == 182
    assert history[0][:7] == ahead[0], "the first week of that history is the week from 1 February"


def test_scores_are_what_one_computes_by_hand():
    history = [[1.0, 2, 3, 4, 5, 6, 7]]
    quantiles = {"0.1": [0.0] * 2, "0.9": [2.0] * 2}
    result = score([{"mean": [1.0, 5.0], "quantiles": quantiles}], history, [[2.0, 3.0]])
    assert result.wape == pytest.approx(3 / 5)
    assert result.naive_wape == pytest.approx(2 / 5)
    assert result.coverage == 0.5


@pytest.fixture
def place(tmp_path) -> dict[str, str]:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    return {
        **os.environ,
        "DAGSTER_HOME": str(tmp_path / "home"),
        "SHEAF_EXAMPLE_ROOT": str(tmp_path / "data"),
    }


@pytest.mark.ray
@pytest.mark.model
def test_the_demo_forecasts_three_days_and_prints_them(place, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "example_project.demo"], cwd=ROOT, env=place,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("2013-06-1")]
    assert [(d, i, o) for d, i, o, *_ in lines] == [
        (f"2013-06-1{n}", "182", "182") for n in range(3)
    ]
    for *_, wape, naive, coverage, path in lines:
        assert 0 < float(wape.rstrip("%")) < 15
        assert 0 < float(naive.rstrip("%")) < 15
        assert 60 <= float(coverage.rstrip("%")) <= 100
        rows = [json.loads(line) for line in open(path)]
        assert [r["model_name"] for r in rows] == list(load_series().routes)
        assert all(len(r["mean"]) == HORIZON for r in rows)


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.model
def test_a_backfill_of_a_month_is_one_run(place):
    done = subprocess.run(
        [sys.executable, "-m", "example_project.backfill", "2013-05-01", "2013-05-31"], cwd=ROOT,
        env=place, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"2013-05\s+31\s+5642", done.stdout)
    assert "31 of 31 partitions, 5,642 rows" in done.stdout


def test_the_definitions_load_in_dagster():
    done = subprocess.run(
        [sys.executable, "-m", "dagster", "definitions", "validate", "-w", "workspace.yaml"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
