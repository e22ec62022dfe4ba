"""What the parts of a file, and the reports of its chunks, say together of how it ran."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from statistics import median_low
from typing import Any

from sheaf_dagster.batch.kept import KEPT, REPEATED
from sheaf_dagster.batch.messages import ChunkReport
from sheaf_dagster.batch.spec import BatchSpec
from sheaf_dagster.batch.spending import cost_of, tokens_in
from sheaf_dagster.contracts import DEVIATIONS
from sheaf_dagster.storage import Part

__all__ = ["counted", "measured"]


def counted(spec: BatchSpec, parts: Sequence[Part], made: Collection[int]) -> dict[str, Any]:
    """Fields of a ``BatchResult`` that are counts of its rows and of their tokens.

    Args:
        spec: The file.
        parts: All of its parts.
        made: The chunks that this run has answered.
    """
    tokens = tokens_in(parts, kept=True)
    new_tokens = tokens_in(p for p in parts if p.chunk in made)
    prices = spec.price_per_million
    return {
        "output_rows": sum(p.rows for p in parts),
        "reused_rows": sum(p.counts.get(KEPT, 0) for p in parts),
        "repeated_rows": sum(p.counts.get(REPEATED, 0) for p in parts),
        "error_rows": sum(p.error_rows for p in parts),
        "non_finite": sum(p.non_finite for p in parts),
        "deviations": _deviations(parts),
        "tokens": tokens,
        "new_tokens": new_tokens,
        "cost": cost_of(tokens, prices),
        "new_cost": cost_of(new_tokens, prices),
        "chunks": len(parts),
    }


def measured(spec: BatchSpec, reports: Sequence[ChunkReport]) -> dict[str, Any]:
    """Fields of a ``BatchResult``, which says what each of them means.

    Args:
        spec: The file.
        reports: Of the chunks that this run has answered; none where all were there.
    """
    return {
        "workers": len({r.worker for r in reports}),
        "load_seconds": max((r.load_seconds for r in reports), default=0.0),
        "inference_seconds": (
            max(r.ended for r in reports) - min(r.started for r in reports) if reports else 0.0
        ),
        "predict_seconds": sum(r.predict_seconds for r in reports),
        "processes": max((r.processes for r in reports), default=0),
        "shape": next((r.shape for r in reports), ""),
        "device_busy_fraction": _busy_fraction(reports),
        "in_flight_mean": _in_flight_mean(reports),
        "padding_fraction": _padding_fraction(reports),
        "gpu_utilisation": _gpu_utilisation(reports),
        "gpu_memory_bytes": max((r.gpu_memory_bytes for r in reports), default=0) or None,
        "halved_batches": sum(r.halved for r in reports),
        "batch_size": _batch_size(spec, reports),
        "batch_budget": _batch_budget(spec, reports),
    }


def _deviations(parts: Sequence[Part]) -> dict[str, int]:
    """Rows that are answered otherwise than asked, by kind; parts name a kind by its first letter."""
    counts = {kind: sum(p.counts.get(kind[0], 0) for p in parts) for kind in DEVIATIONS}
    return {kind: n for kind, n in counts.items() if n}


def _batch_size(spec: BatchSpec, reports: Sequence[ChunkReport]) -> int | None:
    """Rows of a batch: as given, or the (lower) median of what the workers settled at."""
    if spec.batch_budget is not None:
        return None
    if spec.batch_size != "auto":
        return spec.batch_size
    last = {r.worker: r.batch_size for r in sorted(reports, key=lambda r: r.ended)}
    return median_low(last.values()) if last else None


def _batch_budget(spec: BatchSpec, reports: Sequence[ChunkReport]) -> int | None:
    """Padded size of a batch: the (lower) median of what the workers ended with."""
    if spec.batch_budget is None:
        return None
    last = {r.worker: r.batch_budget for r in sorted(reports, key=lambda r: r.ended)}
    used = [budget for budget in last.values() if budget is not None]
    return median_low(used) if used else None


def _busy_fraction(reports: Sequence[ChunkReport]) -> float | None:
    """Time in which the device had work over the time that the workers were up for this file.

    None of a backend in one call: what it does in there besides can't be seen from outside.
    """
    if any(r.shape == "call" for r in reports):
        return None
    spans: dict[str, tuple[float, float]] = {}
    for r in reports:
        start, end = spans.get(r.worker, (r.started, r.ended))
        spans[r.worker] = (min(start, r.started), max(end, r.ended))
    up = sum(end - start for start, end in spans.values())
    busy = sum(r.predict_seconds for r in reports)
    return min(1.0, busy / up) if up > 0 else None


def _in_flight_mean(reports: Sequence[ChunkReport]) -> float | None:
    busy = sum(r.predict_seconds for r in reports if r.shape == "flight")
    return sum(r.flight_seconds for r in reports) / busy if busy > 0 else None


def _padding_fraction(reports: Sequence[ChunkReport]) -> float | None:
    padded = sum(r.padded for r in reports)
    return 1 - sum(r.size for r in reports) / padded if padded else None


def _gpu_utilisation(reports: Sequence[ChunkReport]) -> float | None:
    samples = sum(r.gpu_samples for r in reports)
    return sum(r.gpu_utilisation for r in reports) / samples if samples else None
