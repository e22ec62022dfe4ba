"""Grouped arguments of the asset factory: how its step runs, and what is shown of it."""

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
        launch: ``step``: the step is Ray's driver. It runs on a machine of the cluster, or with a
            local Ray. ``ray_job``: the step submits a Ray job to the cluster's dashboard and
            follows it. It can run anywhere.
        retry_policy: Retries for errors that a retry can fix. Other errors end the step at once.
        backfill_policy: By default one run covers any range of partitions.
        pool: Dagster pool of the step, which limits how many jobs of an instance run at a time.
            None: the pool has the name of the ``ray_cluster`` resource, so that
            ``dagster instance concurrency set ray_cluster 2`` lets two jobs run on it at a time.
            ``""``: no pool. With ``compute="local"`` the default is no pool.
        op_tags: Tags of the step for executors and run launchers, such as ``dagster-k8s/config``.
        progress_every_s: Seconds between two progress lines in the event log. A line gives rows,
            rate, finished partitions and the time left.
    """

    launch: Launch = "step"
    retry_policy: dg.RetryPolicy | None = None
    backfill_policy: dg.BackfillPolicy | None = None
    pool: str | None = None
    op_tags: Mapping[str, Any] | None = None
    progress_every_s: float = EVERY_SECONDS

    def __post_init__(self) -> None:
        """Refuses an unknown launch, and one whose package isn't installed."""
        if self.launch not in get_args(Launch):
            raise SpecError(
                f"launch={self.launch!r}: must be {' or '.join(map(repr, get_args(Launch)))}"
            )
        if self.launch == "ray_job" and importlib.util.find_spec("dagster_ray") is None:
            raise MissingDependencyError(
                "launch=\"ray_job\" needs dagster-ray; pip install 'sheaf_dagster[ray-jobs]'"
            )

    def pool_of(self, batch: BatchOptions, ray_cluster: str) -> str | None:
        """The pool of a step with these options on that cluster."""
        if self.pool is None and batch.compute != "local":
            return ray_cluster
        return self.pool or None


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What is shown of an asset's partitions, and how severe its checks are.

    Attributes:
        actuals: For forecasts: a function that returns what happened after a request's history,
            or None if that isn't known. It is called with the partition key (None without
            partitions) and the request as a dictionary. The plot shows the actual values beside
            the forecast, and uses the errors to pick the series that it shows.
        forecast_start: For forecasts: a function with the same arguments that returns the date (or
            datetime) of the first forecast value, or None. With it the plot's axis shows dates
            instead of steps.
        unit: For forecasts: the unit of the values, shown on the plot's axis.
        report: ``"html"``: write a page about each partition beside its sink
            (``<sink>.report.html``), with interactive plots, the first rows beside their answers,
            checks, timings, and what ran. Needs ``sheaf_dagster[html]``.
        redact_rows: Keep row values out of errors, metadata, previews and reports.
        check_severities: Severity by check name, instead of the default. A check that fails with
            ERROR holds back downstream assets. A check that fails with WARN is only shown.
        checks_by_partition: Also record the result of each check at each partition, so that a
            failed check is shown on its day. Dagster calls this feature a preview. A run of many
            partitions writes one more event for each check and partition.
    """

    actuals: ActualsOf | None = None
    forecast_start: StartOf | None = None
    unit: str = ""
    report: Literal["html"] | None = None
    redact_rows: bool = False
    check_severities: Mapping[str, dg.AssetCheckSeverity] = field(default_factory=dict)
    checks_by_partition: bool = False

    def axes_for(self, partition: str | None) -> ForecastAxes:
        """The actual values, dates and unit for the plot of a partition's forecasts."""
        actuals, start = self.actuals, self.forecast_start
        return ForecastAxes(
            actuals=(lambda request: actuals(partition, request)) if actuals else None,
            start=(lambda request: start(partition, request)) if start else None,
            unit=self.unit,
        )

    def __post_init__(self) -> None:
        """Refuses an unknown check or report format, and a report whose library isn't installed."""
        severities_of(self.check_severities)
        if self.report not in (None, "html"):
            raise SpecError(f"report={self.report!r}: must be 'html' or None")
        if self.report == "html":
            require_bokeh('report="html"')


def changed_options(what: str, options: BatchOptions, changes: Mapping[str, Any]) -> BatchOptions:
    """Options with some of their values changed.

    Args:
        what: Where the changes were made, for errors.
        options: The options to change.
        changes: New values by name.

    Raises:
        SpecError: The values can't work together; the message names the field.
    """
    try:
        return BatchOptions(**{**options.model_dump(exclude_unset=True), **changes})
    except ValidationError as e:
        raise SpecError(f"{what}: {problems_of(e)}") from e
