"""The page about a finished file: made of its result and its first rows, and kept beside its sink."""

from __future__ import annotations

import html
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from sheaf_dagster.batch.file_checks import CHECKS, findings_of
from sheaf_dagster.batch.model_spec import ModelSpec
from sheaf_dagster.batch.results import BatchResult
from sheaf_dagster.batch.rows.sample import OutputSample, sample_output
from sheaf_dagster.batch.spec import BatchSpec
from sheaf_dagster.errors import SinkError, SourceNotFoundError
from sheaf_dagster.plots import ForecastAxes
from sheaf_dagster.report import CheckLine, Page, render_page
from sheaf_dagster.storage import Location, store_at
from sheaf_dagster.storage.location import sink_errors

__all__ = ["local_report", "notebook_view", "remove_report", "report_location", "write_report"]

_SUFFIX = ".report.html"


def report_location(sink: Location) -> Location:
    """Where the page about a sink is kept: ``<sink>.report.html``."""
    return sink.parent.child(f"{sink.name}{_SUFFIX}")


def write_report(
    result: BatchResult,
    spec: BatchSpec,
    model: ModelSpec,
    sample: OutputSample | None = None,
    *,
    title: str = "",
    axes: ForecastAxes | None = None,
    redact: bool = False,
) -> Location:
    """Writes the page about a finished file beside its sink; it appears whole or not at all.

    Args:
        result: The finished file.
        spec: The job.
        model: What ran.
        sample: The file's first rows; read here where they aren't given.
        title: What the page is called, such as the partition; by default the sink.
        axes: For the plots of forecasts.
        redact: Leave out all that rows say.

    Returns:
        Where it is.

    Raises:
        SinkError: The sink can't be seen from here, or the page can't be written.
    """
    sink = Location.of(spec.sink, spec.storage_options)
    state = store_at(sink).state()
    if state is None or state.size != result.output_bytes:
        raise SinkError(
            f"on this machine, {sink.uri} is not the file that the job committed, so no page was "
            "written beside it; give this machine access to the storage that the job used"
        )
    if (
        sample is None or len(sample.pairs) < sample.compared
    ):  # a Ray job sends no more than fits its message
        sample = sample_output(model, spec)
    page = _page(result, spec, model, sample, title, axes, redact=redact)
    at = report_location(sink)
    with sink_errors(at):
        store_at(at).write(render_page(page).encode("utf-8", "replace"))
    return at


def remove_report(spec: BatchSpec) -> None:
    """Removes the page about what was at a sink before, if any, where a new one can't be written."""
    with suppress(Exception):
        store_at(report_location(Location.of(spec.sink, spec.storage_options))).remove()


def local_report(sink: str, options: dict[str, Any] | None = None) -> str:
    """The path of the page about a sink on this machine, to which a remote one is copied.

    Args:
        sink: The sink, or the page itself.
        options: Of its file system.

    Raises:
        SourceNotFoundError: There is no page.
        SourceError: It can't be read.
    """
    location = Location.of(sink, options)
    at = location if location.name.endswith(_SUFFIX) else report_location(location)
    store = store_at(at)
    state = store.state()
    if state is None:
        raise SourceNotFoundError(
            f'{at.uri} does not exist; to write it, run the file again with report="html" (an '
            "asset) or `run --report`"
        )
    if store.local_path is not None:
        return store.local_path
    copy = Path(tempfile.mkdtemp(prefix="sheaf-report-")) / at.name
    copy.write_bytes(store.read_range(0, state.size))
    return str(copy)


def notebook_view(result: BatchResult, job: tuple[ModelSpec, BatchSpec, bool] | None) -> str:
    """The page in a frame of a notebook, apart from the notebook's own scripts.

    Args:
        result: The finished file.
        job: The model, the job, and whether rows must not be shown; None where that was not kept,
            as in a result that was read from JSON. The page then shows numbers alone.
    """
    if job is None:
        page = _page(result, None, None, None, "", None, redact=True)
    else:
        model, spec, redact = job
        sample = None
        try:
            sample = sample_output(model, spec)
        except Exception:  # the files may be gone by now
            redact = True
        page = _page(result, spec, model, sample, "", None, redact=redact)
    return (
        f'<iframe srcdoc="{html.escape(render_page(page))}" sandbox="allow-scripts allow-downloads" '
        'style="width:100%;height:720px;border:1px solid #d9dce3"></iframe>'
    )


def _page(
    result: BatchResult,
    spec: BatchSpec | None,
    model: ModelSpec | None,
    sample: OutputSample | None,
    title: str,
    axes: ForecastAxes | None,
    *,
    redact: bool,
) -> Page:
    return Page(
        title=title or result.sink.rsplit("/", 1)[-1],
        model=model.name if model else result.model_version[:12],
        rows=result.rows,
        facts=_facts(result, spec, model),
        seconds=_seconds(result),
        checks=_checks(result, sample) if sample else (),
        sample=None if redact else sample,
        axes=axes,
    )


def _facts(result: BatchResult, spec: BatchSpec | None, model: ModelSpec | None) -> dict[str, str]:
    facts: dict[str, str] = {}
    if model is not None:
        facts |= {"model": model.name, "model type": model.model_type, "backend": model.backend}
    facts |= {
        "weights": result.model_digest or "not known to the backend",
        "model version": result.model_version,
        "source": result.source,
        "source digest": result.source_digest,
        "sink": result.sink,
        "bytes of the sink": f"{result.output_bytes:,}",
    }
    if spec is not None:
        facts["compute"] = spec.compute if spec.num_actors is None else f"{spec.num_actors} actors"
        facts["on error"] = spec.on_error
        if spec.row_limit is not None:
            facts["row limit"] = f"{spec.row_limit:,}"
    facts |= {
        "workers": f"{result.workers:,}",
        **({"processes a worker": f"{result.processes:,}"} if result.processes else {}),
        "rows per second": f"{result.rows_per_second:,.1f}",
        "resumed rows": f"{result.resumed_rows:,}",
        "error rows": f"{result.error_rows:,}",
        "numbers that were not finite": f"{result.non_finite:,}",
    }
    facts |= {f"{k.replace('_', ' ')} rows": f"{n:,}" for k, n in result.deviations.items()}
    shares = {
        "batch size": result.batch_size,
        "batch budget": result.batch_budget,
        "device busy": result.device_busy_fraction,
        "rows in flight": result.in_flight_mean,
        "padding": result.padding_fraction,
        "GPU utilisation": result.gpu_utilisation,
        "cost": result.cost,
    }
    facts |= {name: f"{value:,.4g}" for name, value in shares.items() if value is not None}
    facts |= {f"{name} tokens": f"{n:,}" for name, n in result.tokens.items()}
    return {**facts, "fingerprint": result.fingerprint}


def _seconds(result: BatchResult) -> dict[str, float]:
    return {
        "whole file": result.seconds,
        "validation of all rows": result.validation.seconds,
        "loading the model": result.load_seconds,
        "inference, first to last chunk": result.inference_seconds,
        "inside the model, over all workers": result.predict_seconds,
    }


def _checks(result: BatchResult, sample: OutputSample) -> list[CheckLine]:
    found = findings_of(result, sample)
    return [
        CheckLine(name, name not in found, found.get(name, what)) for name, what in CHECKS.items()
    ]
