"""The example as a newcomer runs it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import date, timedelta

import pytest

from example_project.accuracy import Accuracy, score
from example_project.choose_model import CANDIDATES, HELD_OUT_FROM, VALIDATION, evaluate
from example_project.definitions import defs
from example_project.demo import BROKEN, FIRST, LAST
from example_project.series import HISTORY_DAYS, HORIZON, load_series
from tests.conftest import ROOT

ROUTES, FEW = 80, 8


def test_the_series_are_a_year_of_eighty_routes():
    series = load_series()
    assert (len(series.routes), len(series.minutes)) == (ROUTES, 365)
    history = series.before(date(2013, 3, 1), HISTORY_DAYS)
    ahead = series.ahead(date(2013, 1, 4), HORIZON)
    assert len(history) == len(ahead) == ROUTES
    assert history[0][:7] == ahead[0], "the first week of that history is the week from 4 January"
    gaps = sum(minutes is None for day in series.minutes for minutes in day)
    assert 0 < gaps < 100, "days on which a route was not flown are null"


def test_scores_are_what_one_computes_by_hand():
    response = {
        "mean": [1.0, 5.0, 9.0],
        "quantiles": {"0.1": [0.0] * 3, "0.5": [1.0, 5.0, 9.0], "0.9": [2.5] * 3},
    }

    result = score([response], [[2.0, 3.0, None]])

    assert result.wape == pytest.approx((1 + 2) / 5)
    first = 0.1 * 2 + 0.5 * 1 + 0.1 * 0.5
    second = 0.1 * 3 + 0.5 * 2 + 0.9 * 0.5
    assert result.quantile_loss == pytest.approx(2 * (first + second) / 3 / 5)
    assert (result.coverage, result.values) == (0.5, 2)
    assert Accuracy.of({**result.to_dict("naive_"), "other": 1}, "naive_") == result


def test_the_model_was_chosen_on_days_that_no_report_covers():
    horizon = timedelta(days=HORIZON)
    assert max(VALIDATION) + horizon <= HELD_OUT_FROM
    assert date.fromisoformat(FIRST) >= HELD_OUT_FROM
    assert (date.fromisoformat(LAST) - date.fromisoformat(FIRST)).days + 1 >= 30


@pytest.mark.model
def test_the_model_beats_last_week_in_both_scores_on_held_out_days():
    """A few of the demo's days: ``make demo`` and ``make backfill`` print all of them."""
    days = [date.fromisoformat(FIRST) + timedelta(days=6 * n) for n in range(5)]

    ours, naive = (evaluate(name, days) for name in ("AR(1), eight weeks", "last week again"))

    assert ours.wape < 0.9 * naive.wape
    assert ours.quantile_loss < 0.9 * naive.quantile_loss
    assert 0.7 < ours.coverage < 0.9
    model = defs.resources["model"]
    history_days, arguments = CANDIDATES["AR(1), eight weeks"]
    assert (model.backend_kwargs, HISTORY_DAYS) == (arguments, history_days)


@pytest.fixture
def place(tmp_path) -> dict[str, str]:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    return {
        **os.environ,
        "DAGSTER_HOME": str(tmp_path / "home"),
        "SHEAF_EXAMPLE_ROOT": str(tmp_path / "data"),
        "SHEAF_EXAMPLE_ROUTES": str(FEW),
    }


@pytest.mark.ray
@pytest.mark.model
def test_the_demo_goes_through_all_three_doors_and_beats_last_week(place, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "example_project.demo"], cwd=ROOT, env=place,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    said = done.stdout
    assert f"1. Materialise a day, {FIRST}" in said
    assert f"{FEW} rows in, {FEW} rows out" in said
    assert "30 days materialised" in said
    assert f"{BROKEN}: line 3, field 'history.55': Input should be a valid number" in said
    assert f"The sensor asked for a run of partition 'august': {FEW} forecasts" in said
    assert said.count("In the UI: ") == 3
    overall = re.search(r"^all +31 (.*)$", said, re.MULTILINE)
    assert overall, said
    wape, naive_wape, loss, naive_loss, inside, _ = (
        float(number.rstrip("%")) for number in overall[1].split()
    )
    assert 2 < wape < 0.95 * naive_wape
    assert 1 < loss < 0.95 * naive_loss
    assert 65 <= inside <= 90
    for day in (FIRST, BROKEN, LAST):
        path = tmp_path / "data" / "forecasts" / f"{day}.jsonl"
        rows = [json.loads(line) for line in path.read_bytes().splitlines()]
        assert [r["model_name"] for r in rows] == list(load_series().routes[:FEW])
        assert all(len(r["mean"]) == HORIZON for r in rows)


@pytest.mark.long
@pytest.mark.long
@pytest.mark.ray
@pytest.mark.model
def test_a_backfill_of_days_is_one_run_with_a_table_by_month(place):
    done = subprocess.run(
        [sys.executable, "-m", "example_project.backfill", "2013-06-28", "2013-07-04"], cwd=ROOT,
        env=place, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    days = {
        m[1]: int(m[2]) for m in re.finditer(r"^(.+?)  +(\d+)  +\d+\.", done.stdout, re.MULTILINE)
    }
    assert days == {"2013-06": 3, "2013-07": 4, "held out, from July": 4}
    assert "7 of 7 partitions, 56 rows" in done.stdout


def test_the_definitions_load_in_dagster():
    done = subprocess.run(
        [sys.executable, "-m", "dagster", "definitions", "validate", "-w", "workspace.yaml"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
