"""What a night costs of which little has changed, and what reuse costs where there is nothing to reuse.

The model of ``slow`` sleeps a millisecond for each row: the processor is free meanwhile, as it is
where a GPU computes. Rows are those of the other benchmarks, each of another content.
"""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common import FLOATS, in_process, machine, trivial
from sheaf_dagster import BatchResult, BatchRunner, BatchSpec, ModelSpec

ROWS = 100_000
ROUNDS = 5
SECONDS_A_ROW = 0.001
CHANGED = 0.01


def reuse(folder: Path) -> dict[str, Any]:
    """One row in a hundred changed, nothing changed, everything changed; time, index and memory."""
    rows = int(os.environ.get("BENCH_ROWS", ROWS))
    day = different_rows(folder, rows, changed=0.0)
    next_day = different_rows(folder, rows, changed=CHANGED)
    other = different_rows(folder, rows, changed=1.0)
    no_ids = different_rows(folder, rows, changed=0.0, ids=False)
    figures: dict[str, Any] = {"rows": rows}

    slow = trivial(seconds_a_row=SECONDS_A_ROW)
    full, _ = _timed(slow, day, folder / "full.jsonl")
    first, _ = _timed(slow, day, folder / "first.jsonl", reuse="previous")
    figures["1 ms a row"] = {"full run": full, "the same, with an index": first}
    for name, source in (("1 % changed", next_day), ("nothing changed", day)):
        times = []
        for _ in range(ROUNDS):
            seconds, result = _timed(slow, source, folder / "next.jsonl", folder / "first.jsonl")
            times.append(seconds)
        figures["1 ms a row"][name] = median(times)
        figures[f"rows run, {name}"] = rows - result.reused_rows
        figures[f"models loaded, {name}"] = result.workers
        print(f"    {name}: {median(times) / full:.4f} of the full run", flush=True)

    fast = trivial()
    _timed(fast, day, folder / "first.jsonl", reuse="previous")
    contenders = {
        "plain": (day, {}),
        "first run": (day, {"reuse": "previous"}),
        "everything changed": (other, {"reuse_from": folder / "first.jsonl"}),
        "1 % changed": (next_day, {"reuse_from": folder / "first.jsonl"}),
        "nothing changed": (day, {"reuse_from": folder / "first.jsonl"}),
        "plain, rows without ids": (no_ids, {}),
    }
    rounds: list[dict[str, float]] = []
    for i in range(ROUNDS):
        order = list(contenders) if i % 2 else list(reversed(contenders))
        rounds.append({})
        for name in order:
            source, how = contenders[name]
            rounds[-1][name], _ = _timed(fast, source, folder / "next.jsonl", **how)
    figures["a model that costs nothing"] = {n: median(r[n] for r in rounds) for n in contenders}

    output = (folder / "first.jsonl").stat().st_size
    index = (folder / ".first.jsonl.sheaf-index").stat().st_size
    figures["bytes"] = {"output": output, "index": index}
    figures["memory"] = memory = {
        f"{n} rows, {name}": in_process("reusing", folder=str(folder), rows=n, changed=changed)
        for n in (rows // 10, 10 * rows)
        for name, changed in (("first run", None), ("1 % changed", CHANGED))
    }
    few, many = (
        max(memory[f"{n} rows, {name}"]["driver_mb"] for name in ("first run", "1 % changed"))
        for n in (rows // 10, 10 * rows)
    )
    figures["ratios"] = {
        "1 % changed over a full run": figures["1 ms a row"]["1 % changed"] / full,
        "nothing changed over a full run": figures["1 ms a row"]["nothing changed"] / full,
        **{
            f"{name} over plain": median(r[name] / r["plain"] for r in rounds)
            for name in contenders
            if name != "plain"
        },
        "index over output": index / output,
        "driver growth, MB": many - few,
    }
    figures["load"] = os.getloadavg()[0]
    figures["machine"] = machine()
    for name, value in figures["ratios"].items():
        print(f"    → {name}: {value:.4f}", flush=True)
    return figures


def reusing(folder: str, rows: int, changed: float | None) -> dict[str, float]:
    """Peak memory of a driver whose tasks run on Ray; see ``benchmarks.case``.

    Args:
        folder: Where files are.
        rows: Rows of the source.
        changed: Share of them that changed since the last output; None: there was none.
    """
    from benchmarks.common import MemorySampler, start_ray

    start_ray()
    source = different_rows(Path(folder), rows, changed or 0.0)
    sink = Path(folder) / f"memory-{rows}.jsonl"
    with MemorySampler(True) as sampler:
        seconds, result = _timed(trivial(), source, sink, compute="tasks", reuse="previous")
    return {"seconds": seconds, "reused_rows": result.reused_rows, **sampler.figures()}


def different_rows(folder: Path, rows: int, changed: float, *, ids: bool = True) -> Path:
    """A file of requests of about 1.4 KB, each of another content.

    Args:
        folder: Where it is written, unless it is there.
        rows: How many.
        changed: The share of them, all over the file, that differ from those of ``changed=0``.
        ids: Each has a ``request_id``.
    """
    path = folder / f"different-{rows}-{changed}-{ids}.jsonl"
    if path.exists():
        return path
    rng = random.Random(1)
    rests = [
        json.dumps([round(rng.random() * 100, 6) for _ in range(FLOATS - 1)])[1:]
        for _ in range(1000)
    ]
    is_changed = random.Random(2)
    with path.open("w") as f:
        for i in range(rows):
            first = i + 0.5 if is_changed.random() < changed else i
            id = f'"request_id": "00000000-0000-4000-8000-{i:012x}", ' if ids else ""
            f.write(
                f'{{{id}"model_type": "time_series", "model_name": "m", "horizon": 24, '
                f'"frequency": "1h", "history": [{first}, {rests[i % len(rests)]}}}\n'
            )
    return path


def _timed(
    model: ModelSpec,
    source: Path,
    sink: Path,
    reuse_from: Path | None = None,
    *,
    reuse: Any = None,
    compute: Any = "local",
) -> tuple[float, BatchResult]:
    spec = BatchSpec(
        source=str(source),
        sink=str(sink),
        batch_size=64,
        compute=compute,
        reuse=reuse,
        reuse_from=None if reuse_from is None else str(reuse_from),
    )
    if reuse is None or compute == "local":  # a first run has no output to look at
        sink.unlink(missing_ok=True)
    started = time.perf_counter()
    result = BatchRunner(model, on_progress=None).run(spec)
    return time.perf_counter() - started, result
