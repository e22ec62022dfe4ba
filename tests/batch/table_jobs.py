"""Jobs that read or write tables, in this process, and sources with a field ``k`` to keep."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sheaf_dagster import BatchRunner, BatchSpec, ClusterConfig
from tests.toys import doubler


def job(source: str | list[str], sink: Path, **fields) -> BatchSpec:
    return BatchSpec(
        source=source, sink=str(sink), **{"batch_size": 4, "compute": "local", **fields}
    )


def run(spec: BatchSpec, model=None, **cluster):
    return BatchRunner(model or doubler(), ClusterConfig(**cluster), on_progress=None).run(spec)


def tables(tmp_path: Path, *columns: pa.Array) -> list[str]:
    """A file of each column ``k``."""
    paths = [str(tmp_path / f"{i}.parquet") for i in range(len(columns))]
    for path, column in zip(paths, columns, strict=True):
        rows = len(column)
        table = {"model_name": ["m"] * rows, "value": [1.0] * rows, "k": column}
        pq.write_table(pa.table(table), path)
    return paths


def lines(tmp_path: Path, *kept: object) -> str:
    """Rows of which each has a field ``k``."""
    path = tmp_path / "in.jsonl"
    rows = [{"model_name": "m", "value": 1.0, "k": k} for k in kept]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)
