"""What the step of an asset does, and what is shown of it: grouped arguments of the factory."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import dagster as dg
from pydantic import ValidationError

from sheaf_dagster.batch.model_spec import problems_of
from sheaf_dagster.batch.progress import EVERY_SECONDS
from sheaf_dagster.batch.spec import BatchOptions
from sheaf_dagster.definitions.checks import severities_of
from sheaf_dagster.errors import MissingDependencyError, SpecError
from sheaf_dagster.plots import ActualsOf, ForecastAxes, StartOf
from sheaf_dagster.report import require_bokeh

__all__ = ["Launch", "ReportOptions", "StepOptions", "changed_options"]

Launch = Literal["step", "ray_job"]


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """How Dagster runs the step of an asset.

    Attributes:
        launch: ``step``: the step is Ray's driver, on a machine of the cluster or with a local Ray;
            ``ray_job``: the step submits a Ray job to the cluster's dashboard and follows it, from
            anywhere.
        retry_policy: For errors that retrying can mend; the others end the step at once.
        backfill_policy: By default a single run for any range of partitions.
        pool: Dagster pool of the step, by which an instance limits jobs at a time; None: named
            like the ``ray_cluster`` resource, so that
            ``dagster instance concurrency set ray_cluster 2`` lets two jobs run on it at a time;
            ``""``: none. With ``compute="local"`` there is none by default.
        op_tags: Tags of the step, which executors and run launchers read, such as
            ``dagster-k8s/config``.
        progress_every_s: Seconds between two lines in the event log that say how far the step
            is: rows, rate, partitions done, time to go.
    """

    launch: Launch = "step"
    retry_policy: dg.RetryPolicy | None = None
    backfill_policy: dg.BackfillPolicy | None = None
    pool: str | None = None
    op_tags: Mapping[str, Any] | None = None
    progress_every_s: float = EVERY_SECONDS

    def __post_init__(self) -> None:
        """Refuses a launch that there isn't, or whose package isn't installed."""
        if self.launch not in get_args(Launch):
            raise SpecError(
                f"launch={self.launch!r}: must be {' or '.join(map(repr, get_args(Launch)))}"
            )
        if self.launch == "ray_job" and importlib.util.find_spec("dagster_ray") is None:
            raise MissingDependencyError(
                "launch=\"ray_job\" needs dagster-ray; pip install 'sheaf_dagster[ray-jobs]'"
            )

    def pool_of(self, batch: BatchOptions, ray_cluster: str) -> str | None:
        """The pool of a step that runs so on that cluster."""
        if self.pool is None and batch.compute != "local":
            return ray_cluster
        return self.pool or None


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What is shown of an asset's partitions, and how severe its checks are.

    Attributes:
        actuals: For forecasts: called with the partition key (None without partitions) and a
            request, as a dictionary, it gives what happened after the request's history, or
            None where that isn't known. The plot shows it beside the forecast, and picks the
            series to show by their errors.
        forecast_start: For forecasts: called likewise, it gives the date (or datetime) of the
            first forecast value, or None. The plot's axis then shows dates rather than steps.
        unit: For forecasts: the unit of their values, which the plot's axis shows.
        report: ``"html"``: write a page about each partition beside its sink
            (``<sink>.report.html``): plots that answer to the mouse, the first rows beside their
            answers, checks, timings, and what ran. Needs ``sheaf_dagster[html]``.
        redact_rows: Keep row values out of errors, metadata, previews and reports.
        check_severities: Severity by check name, in place of the default. A check that fails
            with ERROR holds downstream assets back; with WARN it is only shown.
        checks_by_partition: Record the result of each check at each partition, too, so that a red
            check stands at its day (a preview of Dagster's). A run of many partitions writes one
            event more for each check and partition.
    """

    actuals: ActualsOf | None = None
    forecast_start: StartOf | None = None
    unit: str = ""
    report: Literal["html"] | None = None
    redact_rows: bool = False
    check_severities: Mapping[str, dg.AssetCheckSeverity] = field(default_factory=dict)
    checks_by_partition: bool = False

    def axes_for(self, partition: str | None) -> ForecastAxes:
        """What the plot of a partition's forecasts is drawn with."""
        actuals, start = self.actuals, self.forecast_start
        return ForecastAxes(
            actuals=(lambda request: actuals(partition, request)) if actuals else None,
            start=(lambda request: start(partition, request)) if start else None,
            unit=self.unit,
        )

    def __post_init__(self) -> None:
        """Refuses a form of report or a check that there isn't, and a report without its library."""
        severities_of(self.check_severities)
        if self.report not in (None, "html"):
            raise SpecError(f"report={self.report!r}: must be 'html' or None")
        if self.report == "html":
            require_bokeh('report="html"')


def changed_options(what: str, options: BatchOptions, changes: Mapping[str, Any]) -> BatchOptions:
    """Options with some of them changed.

    Args:
        what: Where the changes were made, for errors.
        options: The others.
        changes: Values by name.

    Raises:
        SpecError: They can't work together; the message names the field.
    """
    try:
        return BatchOptions(**{**options.model_dump(exclude_unset=True), **changes})
    except ValidationError as e:
        raise SpecError(f"{what}: {problems_of(e)}") from e
