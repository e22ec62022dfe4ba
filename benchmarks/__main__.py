"""``make bench``: every comparison inside one run, on the same files."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.arrivals import arrivals
from benchmarks.backfill import backfill
from benchmarks.common import in_process, machine, requests_file
from benchmarks.images import images
from benchmarks.processes import processes
from benchmarks.real_model import real_model
from benchmarks.reuse import reuse
from benchmarks.stages import stages
from benchmarks.tables import tables
from benchmarks.text_embedder import text_embedder

RESULTS = Path(__file__).parent / "results"
ROUNDS = 3


def throughput(folder: Path) -> dict[str, Any]:
    """Rows per second after ray.init, against the peers and one plain loop; in turn, medians."""
    small, large = (str(requests_file(folder, n)) for n in (100_000, 1_000_000))
    by_ray_data = {"compute": "tasks", "engine": "ray_data"}
    contenders: dict[str, tuple[str, dict[str, Any]]] = {
        "loop 100k": ("loop", {"source": small}),
        "ours tasks 100k": ("ours", {"source": small, "compute": "tasks"}),
        "peer tasks 100k": ("peer", {"source": small, "compute": "tasks"}),
        "ours actors 100k": ("ours", {"source": small, "compute": "actors"}),
        "peer actors 100k": ("peer", {"source": small, "compute": "actors"}),
        "ours local 100k": ("ours", {"source": small, "compute": "local"}),
        "ours by Ray Data, 100k": ("ours", {"source": small, **by_ray_data}),
        "raw Ray Data 100k": ("raw_ray_data", {"source": small}),
        "loop 1M": ("loop", {"source": large}),
        "sheaf-serve's loop 1M": ("loop", {"source": large, "contracts": "sheaf-serve"}),
        "ours tasks 1M": ("ours", {"source": large, "compute": "tasks"}),
        "ours actors 1M": ("ours", {"source": large, "compute": "actors"}),
        "ours by Ray Data, 1M": ("ours", {"source": large, **by_ray_data}),
    }
    found: list[dict[str, dict[str, Any]]] = []
    for i in range(ROUNDS):
        figures = {}
        for name in reversed(contenders) if i % 2 else contenders:
            case, arguments = contenders[name]
            figures[name] = in_process(case, **arguments)
            _show(name, figures[name])
            if "error" in figures[name]:
                raise RuntimeError(f"{name} failed: {figures[name]['error']}")
        found.append(figures)
    each = {
        ratio: [r[ours]["rows_per_second"] / r[other]["rows_per_second"] for r in found]
        for ratio, ours, other in (
            ("tasks over peer, 100k", "ours tasks 100k", "peer tasks 100k"),
            ("actors over peer, 100k", "ours actors 100k", "peer actors 100k"),
            ("tasks over sheaf-serve's loop, 1M", "ours tasks 1M", "sheaf-serve's loop 1M"),
            ("actors over sheaf-serve's loop, 1M", "ours actors 1M", "sheaf-serve's loop 1M"),
            (
                "by Ray Data over sheaf-serve's loop, 1M",
                "ours by Ray Data, 1M",
                "sheaf-serve's loop 1M",
            ),
            ("tasks over loop, 1M", "ours tasks 1M", "loop 1M"),
            ("actors over loop, 1M", "ours actors 1M", "loop 1M"),
            ("tasks over raw Ray Data, 100k", "ours tasks 100k", "raw Ray Data 100k"),
        )
    }
    middle = {
        name: sorted((r[name] for r in found), key=lambda f: f["rows_per_second"])[ROUNDS // 2]
        for name in contenders
    }
    figures = {
        **middle,
        "ratios": {name: median(values) for name, values in each.items()},
        "each round": each,
        "load": os.getloadavg()[0],
        "machine": machine(),
    }
    _ratios(figures)
    return figures


def memory(folder: Path) -> dict[str, Any]:
    """Peak driver and total memory at 15 MB, 150 MB and 1.5 GB of input, for each engine."""
    figures: dict[str, Any] = {}
    growth: dict[str, float] = {}
    for engine in ("ray_data", "ray_core"):
        of_engine = {}
        for rows in (11_000, 110_000, 1_000_000):
            of_engine[f"{engine}, {rows} rows"] = in_process(
                "ours",
                source=str(requests_file(folder, rows)),
                compute="tasks",
                memory=True,
                engine=engine,
            )
            _show(*list(of_engine.items())[-1])
        first, *_, last = of_engine.values()
        growth[f"{engine}: driver growth, MB"] = last["driver_mb"] - first["driver_mb"]
        figures |= of_engine
    figures["ratios"] = growth
    _ratios(figures)
    return figures


def overlap(folder: Path) -> dict[str, Any]:
    """Share of the workers' time inside a model that sleeps 20 ms, or 50 ms, a batch."""
    source = str(requests_file(folder, 30_000))
    figures = {
        mode: in_process("ours", source=source, compute=mode, sleep=0.02)
        for mode in ("local", "actors", "tasks")
    }
    shorter = str(requests_file(folder, 15_000))
    figures["actors, 50 ms"] = in_process("ours", source=shorter, compute="actors", sleep=0.05)
    for name, figure in figures.items():
        _show(f"overlap, {name}", figure)
    return figures


def small_jobs(folder: Path) -> dict[str, Any]:
    """200 rows in a cold process, Ray's start included."""
    source = str(requests_file(folder, 200))
    figures: dict[str, Any] = {}
    for name, case, arguments in (
        ("ours tasks", "ours", {"compute": "tasks"}),
        ("peer tasks", "peer", {"compute": "tasks"}),
        ("ours local", "ours", {"compute": "local"}),
    ):
        times = []
        for _ in range(3):
            started = time.perf_counter()
            in_process(case, source=source, **arguments)
            times.append(time.perf_counter() - started)
        figures[name] = {"seconds": median(times)}
        _show(f"200 rows, {name}", figures[name])
    figures["ratios"] = {
        "tasks over peer's time": figures["ours tasks"]["seconds"]
        / figures["peer tasks"]["seconds"],
        "peer's time over local": figures["peer tasks"]["seconds"]
        / figures["ours local"]["seconds"],
    }
    _ratios(figures)
    return figures


def _show(name: str, figure: dict[str, Any]) -> None:
    cells = [
        f"{key} {value:,.3g}" if abs(value) < 100 else f"{key} {value:,.0f}"
        for key, value in figure.items()
        if isinstance(value, (int, float))
    ]
    print(f"{name:<24}", "  ".join(cells) or figure, flush=True)


def _ratios(figures: dict[str, Any]) -> None:
    for name, value in figures["ratios"].items():
        print(f"    → {name}: {value:.2f}", flush=True)


def main(names: list[str]) -> None:
    """Runs the named benchmarks, by default all."""
    known = {
        f.__name__: f
        for f in (
            throughput,
            memory,
            overlap,
            stages,
            processes,
            small_jobs,
            real_model,
            text_embedder,
            images,
            tables,
            backfill,
            arrivals,
            reuse,
        )
    }
    with tempfile.TemporaryDirectory(prefix="sheaf-bench-", dir=os.environ.get("BENCH_DIR")) as d:
        folder = Path(d)
        for name in names or list(known):
            print(f"\n{name}: {(known[name].__doc__ or '').splitlines()[0]}", flush=True)
            figures = known[name](folder)
            RESULTS.mkdir(exist_ok=True)
            (RESULTS / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
