"""Every command takes tables as it takes lines."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner, Result

from sheaf_dagster.cli import main


def call(*args: str) -> Result:
    return CliRunner().invoke(main, list(args))


def write(amounts: list) -> None:
    table = {"shop": [f"s{i}" for i in range(len(amounts))], "amount": amounts}
    pq.write_table(pa.table(table), "in.parquet")


@pytest.fixture
def job(tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    write([1.0, 2.0, 3.0])
    spec = {
        "imports": ["tests.toys"],
        "model": {"name": "d", "model_type": "number", "backend": "tests.toys:Doubler"},
        "batch": {
            "source": "in.parquet",
            "columns": {"value": "amount"},
            "fields": {"model_name": "m"},
            "sink": "out.parquet",
            "keep": ["shop"],
            "batch_size": 1,
            "compute": "local",
            "receipt": True,
        },
    }
    Path("job.yaml").write_text(yaml.safe_dump(spec))
    return "job.yaml"


def test_each_command_takes_tables(job):
    estimated = call("estimate", job)
    assert estimated.exit_code == 0 and "rows" in estimated.stdout
    ran = call("run", job, "--reuse", "previous", "--report", "--json")
    assert ran.exit_code == 0, ran.output
    table = pq.read_table("out.parquet")
    assert table.column("value").to_pylist() == [2.0, 4.0, 6.0]
    assert table.column("shop").to_pylist() == ["s0", "s1", "s2"]
    assert call("report", "out.parquet", "--path").stdout.strip().endswith(".html")
    verified = call("verify", "out.parquet.receipt.json", "--import", "tests.toys")
    assert verified.exit_code == 0, verified.output

    write([1.0, 2.0, 30.0, 4.0])
    again = call("run", job, "--reuse", "previous", "--json")

    assert json.loads(again.stdout.splitlines()[0])["reused_rows"] == 2
    assert pq.read_table("out.parquet").column("value").to_pylist() == [2.0, 4.0, 60.0, 8.0]
    assert call("verify", "out.parquet.receipt.json", "--import", "tests.toys").exit_code == 0
    out = pq.read_table("out.parquet").to_pylist()
    out[2]["value"] = 61.0
    pq.write_table(pa.Table.from_pylist(out), "out.parquet")
    assert call("verify", "out.parquet.receipt.json", "--import", "tests.toys").exit_code != 0


def test_a_row_that_is_wrong_is_named_by_its_column(job):
    write([1.0, None, 3.0])
    options = ("--model-type", "number", "--import", "tests.toys")
    mapped = ("--column", "value=amount", "--field", "model_name=m")

    done = call("validate", "in.parquet", *options, *mapped)

    assert done.exit_code == 3
    assert "row 2, column 'amount', field 'value'" in done.stdout
    assert call("run", job).exit_code == 3
    assert not Path("out.parquet").exists()
