"""Models that answer in columns, the same ones with lists, and jobs of both."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sheaf_dagster import (
    BatchResult,
    BatchRunner,
    BatchSpec,
    ModelBackend,
    ModelSpec,
    ResponseColumns,
    request_column,
)
from sheaf_dagster.backends.columns import ColumnRequests
from sheaf_dagster.contracts import TimeSeriesResponse
from tests.toys import NumberResponse

FORMATS = ["parquet", "jsonl"]
COUNTS = (
    "rows",
    "error_rows",
    "non_finite",
    "deviations",
    "tokens",
    "halved_batches",
    "reused_rows",
)


class Doubler(ModelBackend):
    """Doubles numbers; told by its arguments how to misbehave.

    Attributes:
        lists: Whether it takes and gives lists.
    """

    model_type = "number"
    takes_columns = True
    lists = False
    looked_at = "value"

    def __init__(
        self,
        log: str | None = None,
        fail_on: list[float] | None = None,
        fail_while: str | None = None,
        nan_on: list[float] | None = None,
        nan_beside: float | None = None,
        hang_on: float | None = None,
        memory_rows: int | None = None,
        seconds: float = 0.0,
    ) -> None:
        self.log = log
        self.fail_on = fail_on or []
        self.fail_while = fail_while
        self.nan_on = nan_on or []
        self.nan_beside = nan_beside
        self.hang_on = hang_on
        self.memory_rows = memory_rows
        self.seconds = seconds

    def load(self) -> None:
        pass

    def batch_predict(self, requests):
        if self.log is not None:
            kind = "columns" if isinstance(requests, ColumnRequests) else "list"
            with open(self.log, "a") as f:
                f.write(f"{kind} {len(requests)}\n")
        if self.lists:
            self.misbehave([getattr(r, self.looked_at) for r in requests])
        else:
            self.misbehave(request_column(requests, self.looked_at).tolist())
        return (self.in_lists if self.lists else self.in_columns)(requests)

    def misbehave(self, values: list[float]) -> None:
        time.sleep(self.seconds)
        if self.memory_rows is not None and len(values) > self.memory_rows:
            raise RuntimeError("CUDA out of memory (pretended)")
        if self.hang_on in values:
            time.sleep(600)
        if self.fail_while is None or Path(self.fail_while).exists():
            for value in values:
                if value in self.fail_on:
                    raise ValueError(f"cannot double {value:g}")

    def in_columns(self, requests):
        value = request_column(requests, "value")
        with np.errstate(over="ignore"):
            doubled = 2 * value
        doubled[np.isin(value, self.nan_on)] = np.nan
        if self.nan_beside in value:
            doubled[:] = np.nan
        columns = {"value": doubled, "batch": request_column(requests, "group")}
        return ResponseColumns(NumberResponse, requests, columns, copied=["note"])

    def in_lists(self, requests):
        spoilt = any(r.value == self.nan_beside for r in requests)
        return [
            NumberResponse(
                request_id=r.request_id,
                model_name=r.model_name,
                value=float("nan") if spoilt or r.value in self.nan_on else 2 * r.value,
                batch=r.group,
                note=r.note,
            )
            for r in requests
        ]


class DoublerInLists(Doubler):
    takes_columns = False
    lists = True


class Forecaster(Doubler):
    """Goes on as the last steps were."""

    model_type = "time_series"
    looked_at = "horizon"

    def in_columns(self, requests):
        history = request_column(requests, "history")
        mean = 3 * (
            history[:, -2:] if history.dtype != object else np.array([h[-2:] for h in history])
        )
        return ResponseColumns(
            TimeSeriesResponse, requests, {"mean": mean}, copied=["horizon", "frequency"]
        )

    def in_lists(self, requests):
        return [
            TimeSeriesResponse(
                request_id=r.request_id,
                model_name=r.model_name,
                mean=[float("nan") if v is None else 3 * v for v in r.history[-2:]],
                horizon=r.horizon,
                frequency=r.frequency,
            )
            for r in requests
        ]


class ForecasterInLists(Forecaster):
    takes_columns = False
    lists = True


class Staged(Doubler):
    """Doubles in stages."""

    takes_columns = False

    def prepare(self, request):
        return request.value

    def infer(self, prepared):
        self.misbehave(prepared)
        return 2 * np.array(prepared)

    def respond(self, requests, outputs):
        if self.lists:
            return [
                NumberResponse(
                    request_id=r.request_id, model_name=r.model_name, value=value, note=r.note
                )
                for r, value in zip(requests, outputs, strict=True)
            ]
        return ResponseColumns(
            NumberResponse, requests, {"value": np.array(outputs)}, copied=["note"]
        )


class StagedInLists(Staged):
    lists = True


def numbers(count: int = 50) -> dict[str, Any]:
    """Columns of rows for a ``Doubler``."""
    return {
        "model_name": ["m"] * count,
        "value": [float(i) for i in range(count)],
        "group": [i % 3 for i in range(count)],
        "note": [f"note {i}" if i % 4 else None for i in range(count)],
        "shop": [f"shop {i}" for i in range(count)],
    }


def series(count: int = 50) -> dict[str, Any]:
    """Columns of rows for a ``Forecaster``: widths change, and there are gaps."""
    return {
        "model_name": ["m"] * count,
        "history": [
            [float(i + k) / 7 for k in range(3 if i < count // 2 else 3 + i % 2)]
            for i in range(count)
        ],
        "horizon": [2] * count,
        "frequency": ["1d"] * count,
        "shop": [f"shop {i}" for i in range(count)],
    }


def source(folder: Path, suffix: str, columns: dict[str, Any]) -> str:
    """A file of rows."""
    table, path = pa.table(columns), folder / f"in.{suffix}"
    if suffix == "parquet":
        pq.write_table(table, path)
    else:
        rows = [{k: v for k, v in row.items() if v is not None} for row in table.to_pylist()]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def run(
    cls: type[Doubler],
    source: str | list[str],
    sink: Path,
    model: dict[str, Any] | None = None,
    **fields: Any,
) -> BatchResult:
    """One job."""
    spec = BatchSpec(
        source=source, sink=str(sink), **{"batch_size": 8, "compute": "local", **fields}
    )
    return BatchRunner(spec_of(cls, **(model or {})), on_progress=None).run(spec)


def spec_of(cls: type[Doubler], **kwargs: Any) -> ModelSpec:
    return ModelSpec(
        name="m",
        model_type=cls.model_type,
        backend=f"{cls.__module__}:{cls.__name__}",
        backend_kwargs=kwargs,
    )


def assert_same(
    classes: tuple[type[Doubler], type[Doubler]],
    source: str | list[str],
    sink: Path,
    model: dict[str, Any] | None = None,
    **fields: Any,
) -> BatchResult:
    """Runs two models; their answers are the same bytes, and the counts are the same."""
    contents, results = [], []
    for cls in classes:
        path = sink.with_name(f"{cls.__name__}-{sink.name}")
        results.append(run(cls, source, path, model, **fields))
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]
    one, other = ({name: getattr(r, name) for name in COUNTS} for r in results)
    assert one == other
    return results[0]


def messages(
    classes: tuple[type[Doubler], type[Doubler]],
    source: str | list[str],
    sink: Path,
    **fields: Any,
) -> list[str]:
    """What both say when they fail, but for the names of their classes."""
    said = []
    for cls in classes:
        try:
            run(cls, source, sink, **fields)
        except Exception as e:
            said.append(f"{type(e).__name__}: {e}".replace(cls.__name__, "Model"))
    return said
