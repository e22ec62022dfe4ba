"""Rows of 128 floats as Parquet against the same rows as JSON lines, and against Ray Data.

Our jobs validate every row, keep the order, and run in this process, so that their CPU time is
theirs alone. Ray Data reads, maps and writes Parquet: unordered and unvalidated, on as many CPUs as
ours has on Ray (``tasks``). The model gives back what it was asked, by rows or in columns; Ray Data's
in columns.
"""

from __future__ import annotations

import os
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common import in_process, machine

ROWS = 1_000_000
FLOATS = 128
ROUNDS = 3


def tables(folder: Path, rows: int = ROWS) -> dict[str, Any]:
    """Parquet in and out against JSON lines in and out, and Ray Data over Parquet."""
    table, lines = _sources(folder, rows)
    parquet = {"source": table, "sink": f"{folder}/out.parquet"}
    columns = {**parquet, "backend": "EchoColumns"}
    cases: dict[str, tuple[str, dict[str, Any]]] = {
        "JSON lines": ("echo", {"source": lines, "sink": f"{folder}/out.jsonl"}),
        "Parquet": ("echo", parquet),
        "Parquet in columns": ("echo", columns),
        "Parquet, tasks": ("echo", {**parquet, "compute": "tasks"}),
        "Parquet in columns, tasks": ("echo", {**columns, "compute": "tasks"}),
        "Ray Data": ("raw_ray_tables", {"source": table, "sink": f"{folder}/raw.parquet"}),
    }
    rounds: list[dict[str, dict[str, Any]]] = []
    for i in range(ROUNDS):
        names = list(cases) if i % 2 else list(reversed(cases))
        found = {name: in_process(cases[name][0], **cases[name][1]) for name in names}
        if failed := {name: f["error"] for name, f in found.items() if "error" in f}:
            raise RuntimeError(f"a contender failed: {failed}")
        rounds.append(found)
        print(f"    {found}", flush=True)

    def each(figure: str, one: str, other: str) -> list[float]:
        return [r[one][figure] / r[other][figure] for r in rounds]

    ratios = {
        "CPU of a row, Parquet over JSON lines": each("cpu_seconds", "Parquet", "JSON lines"),
        "CPU of a row, Parquet in columns over JSON lines": each(
            "cpu_seconds", "Parquet in columns", "JSON lines"
        ),
        "Parquet by tasks over Ray Data": each("seconds", "Ray Data", "Parquet, tasks"),
        "Parquet in columns by tasks over Ray Data": each(
            "seconds", "Ray Data", "Parquet in columns, tasks"
        ),
        "bytes of the output, Parquet over JSON lines": each("bytes", "Parquet", "JSON lines"),
    }
    return {
        **{name: rounds[-1][name] for name in cases},
        "ratios": {name: median(values) for name, values in ratios.items()},
        "each round": ratios,
        "rows": rows,
        "load": os.getloadavg()[0],
        "machine": machine(),
    }


def _sources(folder: Path, rows: int) -> tuple[str, str]:
    import numpy as np
    import orjson
    import pyarrow as pa
    import pyarrow.parquet as pq

    table, lines = folder / "floats.parquet", folder / "floats.jsonl"
    random = np.random.default_rng(1)
    with lines.open("wb") as text:
        writer: pq.ParquetWriter | None = None
        for start in range(0, rows, 10_000):
            n = min(10_000, rows - start)
            history = random.random(n * FLOATS)
            some = pa.table(
                {
                    "model_name": ["m"] * n,
                    "history": pa.FixedSizeListArray.from_arrays(history, FLOATS),
                    "horizon": [FLOATS] * n,
                    "frequency": ["1d"] * n,
                }
            )
            writer = writer or pq.ParquetWriter(table, some.schema, compression="zstd")
            writer.write_table(some)
            text.writelines(orjson.dumps(row) + b"\n" for row in some.to_pylist())
        assert writer is not None
        writer.close()
    return str(table), str(lines)
