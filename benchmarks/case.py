"""One measured case in a process of its own: ``python -m benchmarks.case NAME ARGUMENTS``."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.common import MemorySampler, respond, start_ray, trivial
from benchmarks.reuse import reusing


def ours(
    source: str,
    compute: str,
    batch_size: int = 64,
    sleep: float = 0.0,
    workers: int = 2,
    memory: bool = False,
    engine: str = "auto",
) -> dict[str, Any]:
    """Our engine, every row validated first."""
    from sheaf_dagster import BatchRunner, BatchSpec, ClusterConfig

    if compute != "local":
        start_ray()
    spec = BatchSpec(
        source=source,
        sink=source + f".{compute}.out",
        batch_size=batch_size,
        compute=compute,  # type: ignore[arg-type]
        num_actors=workers if compute == "actors" else None,
        resume=False,
    )
    with MemorySampler(memory) as sampler:
        started = time.perf_counter()
        model = trivial(**({"sleep": sleep} if sleep else {}))
        result = BatchRunner(model, ClusterConfig(engine=engine)).run(spec)  # type: ignore[arg-type]
        seconds = time.perf_counter() - started
    Path(spec.sink).unlink()
    return {
        "rows": result.rows,
        "seconds": seconds,
        "rows_per_second": result.rows / seconds,
        **sampler.figures(),
        "validation_seconds": result.validation.seconds,
        "busy": result.device_busy_fraction,
    }


def peer(source: str, compute: str, batch_size: int = 64, memory: bool = False) -> dict[str, Any]:
    """sheaf-serve 0.13's BatchRunner, unchanged."""
    from sheaf.api.base import ModelType
    from sheaf.batch import BatchRunner, BatchSpec, JsonlSink, JsonlSource

    from benchmarks.peer_backend import PeerTrivial

    start_ray()
    spec = BatchSpec(
        name="trivial",
        model_type=ModelType.TIME_SERIES,
        backend="trivial",
        backend_cls=PeerTrivial,
        source=JsonlSource(path=source),
        sink=JsonlSink(path=source + ".peer.out"),
        batch_size=batch_size,
        compute=compute,  # type: ignore[arg-type]
        num_actors=2 if compute == "actors" else None,
    )
    with MemorySampler(memory) as sampler:
        started = time.perf_counter()
        rows = BatchRunner(spec).run()
        seconds = time.perf_counter() - started
    Path(source + ".peer.out").unlink()
    return {
        "rows": rows,
        "seconds": seconds,
        "rows_per_second": rows / seconds,
        **sampler.figures(),
    }


def loop(source: str, batch_size: int = 64, contracts: str = "ours") -> dict[str, Any]:
    """One plain Python loop: parse, run, write; no validation pass first, no Ray.

    With sheaf-serve's contracts it is the loop against which the engine's target was set; with
    ours, which parse faster, it is a harder one.
    """
    if contracts == "sheaf-serve":
        from pydantic import TypeAdapter
        from sheaf.api.time_series import TimeSeriesResponse
        from sheaf.api.union import AnyRequest

        validate = TypeAdapter(AnyRequest).validate_json
    else:
        from sheaf_dagster.contracts import (  # type: ignore[assignment]
            TimeSeriesRequest,
            TimeSeriesResponse,
        )

        validate = TimeSeriesRequest.__pydantic_validator__.validate_json  # type: ignore[assignment]
    dump = TimeSeriesResponse.__pydantic_serializer__.to_json
    started = time.perf_counter()
    rows = 0
    with open(source, "rb") as f, open(source + ".loop.out", "wb") as out:
        batch = []
        for line in f:
            batch.append(validate(line))
            if len(batch) == batch_size:
                out.write(b"".join(dump(respond(r, TimeSeriesResponse)) + b"\n" for r in batch))
                rows += len(batch)
                batch = []
        out.write(b"".join(dump(respond(r, TimeSeriesResponse)) + b"\n" for r in batch))
        rows += len(batch)
    seconds = time.perf_counter() - started
    Path(source + ".loop.out").unlink()
    return {"rows": rows, "seconds": seconds, "rows_per_second": rows / seconds}


def raw_ray_data(source: str, batch_size: int = 64) -> dict[str, Any]:
    """read_json → map_batches → write_json: unordered, unvalidated."""
    import shutil

    start_ray()
    import ray

    ray.data.DataContext.get_current().enable_progress_bars = False

    def run(batch: Any) -> Any:
        batch["mean"] = [[sum(h) / len(h)] * 24 for h in batch["history"]]
        return batch[["request_id", "model_name", "mean", "horizon", "frequency"]]

    started = time.perf_counter()
    ray.data.read_json(source, lines=True).map_batches(
        run, batch_size=batch_size, batch_format="pandas"
    ).write_json(source + ".raw.out")
    seconds = time.perf_counter() - started
    shutil.rmtree(source + ".raw.out")
    rows = sum(1 for _ in open(source, "rb"))
    return {"rows": rows, "seconds": seconds, "rows_per_second": rows / seconds}


def echo(source: str, sink: str, compute: str = "local", backend: str = "Echo") -> dict[str, Any]:
    """Our engine with a model that gives back what it was asked."""
    from sheaf_dagster import BatchRunner, BatchSpec

    if compute != "local":
        start_ray()
    spec = BatchSpec(
        source=source,
        sink=sink,
        batch_size=64,
        compute=compute,  # type: ignore[arg-type]
        resume=False,
    )
    model = trivial().model_copy(update={"backend": f"benchmarks.common:{backend}"})
    started, cpu = time.perf_counter(), time.process_time()
    result = BatchRunner(model).run(spec)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    size = Path(sink).stat().st_size
    Path(sink).unlink()
    return {"rows": result.rows, "seconds": seconds, "cpu_seconds": cpu, "bytes": size}


def raw_ray_tables(source: str, sink: str) -> dict[str, Any]:
    """read_parquet → map_batches → write_parquet: unordered, unvalidated."""
    import shutil

    start_ray()
    import ray

    ray.data.DataContext.get_current().enable_progress_bars = False

    def run(table: Any) -> Any:
        return table.rename_columns(["model_name", "mean", "horizon", "frequency"])

    started = time.perf_counter()
    ray.data.read_parquet(source).map_batches(
        run, batch_size=64, batch_format="pyarrow"
    ).write_parquet(sink)
    seconds = time.perf_counter() - started
    size = sum(p.stat().st_size for p in Path(sink).rglob("*.parquet"))
    shutil.rmtree(sink)
    return {"seconds": seconds, "bytes": size}


def main() -> None:
    """Runs the named case and prints its figures as JSON."""
    cases = {f.__name__: f for f in (ours, peer, loop, raw_ray_data, echo, raw_ray_tables, reusing)}
    print(json.dumps(cases[sys.argv[1]](**json.loads(sys.argv[2]))))


if __name__ == "__main__":
    main()
