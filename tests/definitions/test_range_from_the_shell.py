"""A range of partitions by Dagster's own commands, in a process as a person starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import ROOT
from tests.definitions.backfill_project import days

pytestmark = pytest.mark.daemon


def test_dg_launches_a_range_as_one_run_and_names_its_bad_day(tmp_path):
    keys = days(10).get_partition_keys()[2:7]
    home, source = tmp_path / "home", tmp_path / "in" / "at_once"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    source.mkdir(parents=True)
    for i, key in enumerate(keys):
        row = {"model_name": ["m"], "value": ["x" if i == 3 else i]}
        pq.write_table(pa.table(row), source / f"{key}.parquet")

    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("dg")), "launch",
            "-m", "tests.definitions.backfill_project",
            "--assets", "at_once", "--partition-range", f"{keys[0]}...{keys[-1]}",
        ],
        cwd=ROOT,
        env={**os.environ, "DAGSTER_HOME": str(home), "SHEAF_TEST_ROOT": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )  # fmt: skip

    assert done.returncode != 0
    assert f"1 of 5 partitions failed; the others are materialised:\n{keys[3]}: " in done.stderr
    assert "row 1, column 'value'" in done.stderr
    with dg.DagsterInstance.from_config(str(home)) as instance:
        (run,) = instance.get_runs()
        records = instance.fetch_materializations(dg.AssetKey("at_once"), limit=99).records
    good = [k for k in keys if k != keys[3]]
    assert run.status == dg.DagsterRunStatus.FAILURE
    assert sorted((r.partition_key, r.run_id) for r in records) == [(k, run.run_id) for k in good]
    answers = [pq.read_table(tmp_path / "out" / "at_once" / f"{k}.parquet") for k in good]
    assert [table["value"].to_pylist() for table in answers] == [[0], [2], [4], [8]]
