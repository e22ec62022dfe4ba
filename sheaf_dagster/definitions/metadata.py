"""What a materialisation says: the one place for its metadata keys.

Numbers (rows, rate, seconds, error rows, …) are plotted over time and partitions by Dagster's
UI. ``plot`` and ``preview`` are short enough to be shown in the table itself; ``plot_large`` and
``preview_rows`` open on a click.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import dagster as dg

from sheaf_dagster.batch.model_spec import ModelSpec
from sheaf_dagster.batch.results import BatchResult, ValidationReport
from sheaf_dagster.batch.rows.sample import OutputSample
from sheaf_dagster.batch.spec import BatchSpec
from sheaf_dagster.contracts import DEVIATIONS
from sheaf_dagster.definitions.column_schema import answers_schema
from sheaf_dagster.definitions.links import file_metadata
from sheaf_dagster.definitions.preview import preview_inline, preview_table
from sheaf_dagster.plots import MAX_INLINE_CHARS, ForecastAxes, plot_of
from sheaf_dagster.report.brief import middle_out

__all__ = [
    "FAILED_CHECKS",
    "FINGERPRINT",
    "MODEL_VERSION",
    "OUTPUT_BYTES",
    "ROW_COUNTS",
    "SOURCE_DIGEST",
    "result_metadata",
]

FINGERPRINT = "sheaf/fingerprint"
OUTPUT_BYTES = "output_bytes"
SOURCE_DIGEST = "source_digest"
MODEL_VERSION = "model_version"
FAILED_CHECKS = "failed_checks"
_NOT_SEEN_INTO = (
    "not known: this backend handles a batch in one call, and only part of it uses the device"
)
_DIGITS = 32
"""Of a digest that is shown and compared. All 64, in one word, would be wider than the UI's table,
which then cuts the preview off at its right edge."""

_LONGEST_WORD = 40
ROW_COUNTS = ("dagster/row_count", "dagster/partition_row_count")


def result_metadata(
    result: BatchResult,
    spec: BatchSpec,
    model: ModelSpec,
    sample: OutputSample,
    *,
    partitioned: bool,
    preview: bool,
    upstream: Iterable[dg.AssetKey] = (),
    axes: ForecastAxes | None = None,
) -> dict[str, Any]:
    """Metadata of one materialisation.

    Args:
        result: The finished job.
        spec: The job.
        model: What ran.
        sample: Its first rows.
        preview: Show the first rows and a plot of them.
        partitioned: Selects ``dagster/partition_row_count`` over ``dagster/row_count``.
        upstream: The assets that wrote the source, to be linked.
        axes: For the plot of forecasts.
    """
    md: dict[str, Any] = {
        "dagster/partition_row_count" if partitioned else "dagster/row_count": result.rows,
        **(_pictures(sample, axes) if preview else {}),
        "rows_per_second": round(result.rows_per_second, 1),
        "seconds": round(result.seconds, 3),
        "validation": _validation(result.validation),
        "error_rows": result.error_rows,
        "non_finite": result.non_finite,
        **{f"{kind}_rows": result.deviations.get(kind, 0) for kind in DEVIATIONS},
        "resumed_rows": result.resumed_rows,
        "reused_rows": result.reused_rows,
        "model": model.name,
        "backend": model.backend,
        "model_digest": _shown(result.model_digest or "not known to the backend"),
        MODEL_VERSION: result.model_version[:_DIGITS],
        "batch_size": spec.batch_size,
        "compute": spec.compute if spec.num_actors is None else f"{spec.num_actors} actors",
        "dagster/uri": result.sink,
        OUTPUT_BYTES: result.output_bytes,
        "source": _source(spec),
        SOURCE_DIGEST: result.source_digest[: len("sha256:") + _DIGITS],
        **_upstream(list(upstream)),
        **_columns(spec, model),
        "workers": result.workers,
        "load_seconds": round(result.load_seconds, 3),
    }
    if result.batch_size is not None:
        md["batch_size"] = result.batch_size
    if spec.receipt:
        md["receipt"] = (
            file_metadata(result.receipt, spec.storage_options)
            if result.receipt
            else "not written; the run's log says why"
        )
    if spec.row_limit is not None:
        md["row_limit"] = spec.row_limit
    if result.device_busy_fraction is not None:
        md["device_busy_fraction"] = round(result.device_busy_fraction, 4)
    elif result.shape == "call":
        md["device_busy"] = _NOT_SEEN_INTO
    if result.processes:
        md["processes"] = result.processes
    if result.in_flight_mean is not None:
        md["in_flight_mean"] = round(result.in_flight_mean, 2)
    if result.padding_fraction is not None:
        md["padding_fraction"] = round(result.padding_fraction, 4)
    if result.gpu_utilisation is not None:
        md["gpu_utilisation"] = round(result.gpu_utilisation, 4)
    if result.gpu_memory_bytes is not None:
        md["gpu_memory_peak_gib"] = round(result.gpu_memory_bytes / 2**30, 3)
    if result.batch_budget is not None:
        md["batch_budget"] = result.batch_budget
    if result.validation.unknown_fields:
        md["unknown_fields"] = dg.MetadataValue.json(result.validation.unknown_fields)
    if result.validation.duplicate_ids:
        md["duplicate_ids"] = result.validation.duplicate_ids
    md |= _tokens(result)
    if result.halved_batches:
        md["halved_batches"] = result.halved_batches
    if spec.reuse is not None or spec.reuse_from is not None:
        md["changed_rows"] = result.rows - result.reused_rows
        md["repeated_rows"] = result.repeated_rows
    md[FINGERPRINT] = result.fingerprint[:_DIGITS]
    return md


def _shown(text: str) -> str:
    """A text of which no word is wider than the UI's table."""
    return " ".join(middle_out(word, _LONGEST_WORD) for word in text.split(" "))


def _validation(report: ValidationReport) -> str:
    valid = (
        f"all {report.rows:,} rows valid"
        if report.ok
        else f"{report.invalid_rows:,} of {report.rows:,} rows invalid (error rows)"
    )
    return f"{valid}, checked in {report.seconds:.2f} s"


def _columns(spec: BatchSpec, model: ModelSpec) -> dict[str, Any]:
    schema = answers_schema(model.model_type, spec)
    return {} if schema is None else {"dagster/column_schema": schema}


def _tokens(result: BatchResult) -> dict[str, Any]:
    """Of language models, what their answers took."""
    if not result.tokens:
        return {}
    md: dict[str, Any] = {
        "prompt_tokens": result.tokens["prompt"],
        "completion_tokens": result.tokens["output"],
        "cached_tokens": result.tokens["hit"],
    }
    if result.new_tokens and result.inference_seconds > 0:
        rate = result.new_tokens["output"] / result.inference_seconds
        md["completion_tokens_per_second"] = round(rate, 1)
    if result.cost is not None:
        md["cost"] = round(result.cost, 6)
        md["run_cost"] = round(result.new_cost or 0.0, 6)
    return md


def _pictures(sample: OutputSample, axes: ForecastAxes | None) -> dict[str, dg.MetadataValue]:
    try:
        plot = plot_of(sample, axes)
        texts = {
            "plot": plot.small if plot else "",
            # One that the table shows in place says no more than the small one, and is cut there.
            "plot_large": plot.large if plot and len(plot.large) > MAX_INLINE_CHARS else "",
            "preview": preview_inline(sample.pairs) if sample.pairs else "",
            "preview_rows": preview_table(sample.pairs) if sample.pairs else "",
        }
    except Exception as e:  # the file is committed: that it can't be shown is no failure
        return {"plot": dg.MetadataValue.text(f"could not be drawn: {type(e).__name__}: {e}")}
    return {name: dg.MetadataValue.md(text) for name, text in texts.items() if text}


def _source(spec: BatchSpec) -> dg.MetadataValue:
    if len(spec.sources) == 1:
        return file_metadata(spec.sources[0], spec.storage_options)
    return dg.MetadataValue.text(
        f"{len(spec.sources)} files, {spec.sources[0]} to {spec.sources[-1]}"
    )


def _upstream(keys: list[dg.AssetKey]) -> dict[str, dg.MetadataValue]:
    if len(keys) == 1:
        return {"source_asset": dg.MetadataValue.asset(keys[0])}
    return {f"source_asset/{k.to_user_string()}": dg.MetadataValue.asset(k) for k in keys[:5]}
