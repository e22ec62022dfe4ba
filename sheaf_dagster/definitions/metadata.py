"""What a materialisation says: the one place for its metadata keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dagster as dg
import orjson

from sheaf_dagster.batch.results import BatchResult
from sheaf_dagster.batch.sample import OutputSample
from sheaf_dagster.batch.spec import ModelSpec
from sheaf_dagster.definitions.plots import forecast_fan

__all__ = ["FINGERPRINT", "OUTPUT_BYTES", "result_metadata", "row_preview"]

FINGERPRINT = "sheaf/fingerprint"
OUTPUT_BYTES = "output_bytes"
_PREVIEW_ROWS = 5
_CELL = 120


def result_metadata(
    result: BatchResult, model: ModelSpec, sample: OutputSample, *, partitioned: bool, preview: bool
) -> dict[str, Any]:
    """Metadata of one materialisation.

    Args:
        result: The finished job.
        model: What ran.
        sample: Its first rows.
        preview: Show the first rows and a plot of them.
        partitioned: Selects ``dagster/partition_row_count`` over ``dagster/row_count``.
    """
    md: dict[str, Any] = {
        "dagster/partition_row_count" if partitioned else "dagster/row_count": result.rows,
        "dagster/uri": result.sink,
        "rows_per_second": round(result.rows_per_second, 1),
        "seconds": round(result.seconds, 3),
        "model": model.name,
        "backend": model.backend,
        "model_digest": result.model_digest or "not known to the backend",
        "model_version": result.model_version,
        "source": result.source,
        "source_digest": result.source_digest,
        "validation": f"all {result.validation.rows} rows valid, checked in "
        f"{result.validation.seconds:.2f} s",
        "resumed_rows": result.resumed_rows,
        "error_rows": result.error_rows,
        "non_finite": result.non_finite,
        "workers": result.workers,
        "load_seconds": round(result.load_seconds, 3),
        OUTPUT_BYTES: result.output_bytes,
        FINGERPRINT: result.fingerprint,
    }
    if result.device_busy_fraction is not None:
        md["device_busy_fraction"] = round(result.device_busy_fraction, 4)
    if sample.pairs and preview:
        md["preview"] = dg.MetadataValue.md(_preview(sample))
        plot = forecast_fan(sample.pairs) if model.model_type == "time_series" else ""
        if plot:
            md["plot"] = dg.MetadataValue.md(plot)
    return md


def _preview(sample: OutputSample) -> str:
    lines = ["| request | response |", "|---|---|"]
    for request, response in sample.pairs[:_PREVIEW_ROWS]:
        lines.append(f"| {_cell(request)} | {_cell(response)} |")
    return "\n".join(lines)


def _cell(row: dict[str, Any]) -> str:
    shown = {k: v for k, v in row.items() if v is not None and k not in ("model_type", "metadata")}
    text = orjson.dumps(shown).decode().replace("|", "\\|").replace("`", "'")
    return "`" + (text if len(text) <= _CELL else text[: _CELL - 1] + "…") + "`"


def row_preview(rows: Sequence[Any]) -> str:
    """A Markdown table of a file's first rows."""
    return "\n".join(["| row |", "|---|", *(f"| {_cell(row)} |" for row in rows)])
