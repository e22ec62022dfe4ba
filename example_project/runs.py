"""Runs of the example from the command line, recorded in the same instance as the UI's."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

__all__ = [
    "failed_check",
    "forecast_file",
    "materialisations",
    "materialise",
    "materialise_group",
    "quiet",
    "relative",
    "table",
]

_SENSOR_SECONDS = 120
"""How long the sensor may take to see a file, on a machine that is busy with other things."""


def quiet() -> None:
    """Leaves the screen to the table: no warnings about Dagster's beta parameters."""
    warnings.filterwarnings("ignore", category=dg.BetaWarning)


def materialise(
    instance: dg.DagsterInstance,
    assets: Sequence[str],
    first: str,
    last: str,
    log_level: str,
    config: Mapping[str, Any] | None = None,
) -> dg.ExecuteInProcessResult:
    """One run over a range of partitions; ``config`` is the run config by asset."""
    from example_project.definitions import defs

    job = dg.define_asset_job("example_run", selection=dg.AssetSelection.assets(*assets))
    resolved = dg.Definitions(
        assets=defs.assets, resources=defs.resources, jobs=[job]
    ).resolve_job_def("example_run")
    return resolved.execute_in_process(
        instance=instance,
        tags={
            "dagster/asset_partition_range_start": first,
            "dagster/asset_partition_range_end": last,
        },
        run_config={**_logging(log_level), "ops": dict(config or {})},
        raise_on_error=False,
    )


def materialise_group(
    instance: dg.DagsterInstance,
    group: str,
    log_level: str,
    config: Mapping[str, Any] | None = None,
) -> dg.ExecuteInProcessResult:
    """One run over the assets of a group, with their checks; ``config`` is as in ``materialise``."""
    from example_project.definitions import defs

    job = dg.define_asset_job("example_group", selection=dg.AssetSelection.groups(group))
    resolved = dg.Definitions.merge(defs, dg.Definitions(jobs=[job])).resolve_job_def(
        "example_group"
    )
    return resolved.execute_in_process(
        instance=instance,
        run_config={**_logging(log_level), "ops": dict(config or {})},
        raise_on_error=False,
    )


def forecast_file(
    instance: dg.DagsterInstance, name: str, log_level: str
) -> dg.ExecuteInProcessResult:
    """The run that the inbox's sensor asks for when it sees the file ``name``.

    In ``make ui`` the daemon asks the sensor every few seconds and starts the run; here we do.
    """
    from example_project.definitions import defs, inbox_forecasts, inbox_sensor, inbox_storage

    resources = {"inbox": inbox_storage}
    deadline = time.monotonic() + _SENSOR_SECONDS
    while True:
        with dg.build_sensor_context(instance=instance, resources=resources) as context:
            context.log.setLevel(logging.ERROR)
            asked = inbox_sensor(context)
        assert isinstance(asked, dg.SensorResult)
        keys = [r.partition_key for r in asked.run_requests or ()]
        if name in keys:
            break
        if time.monotonic() > deadline:
            raise TimeoutError(f"the sensor asks for {keys}, not for {name}: {asked.skip_reason}")
        time.sleep(0.2)  # until the file has settled
    for wanted in asked.dynamic_partitions_requests or ():
        instance.add_dynamic_partitions(wanted.partitions_def_name, list(wanted.partition_keys))
    return dg.materialize(
        [inbox_forecasts],
        instance=instance,
        partition_key=name,
        resources=dict(defs.resources or {}),
        run_config=_logging(log_level),
        raise_on_error=False,
    )


def _logging(level: str) -> dict[str, Any]:
    return {"loggers": {"console": {"config": {"log_level": level}}}}


def failed_check(result: dg.ExecuteInProcessResult, name: str) -> str:
    """What a check of a run says that did not pass; empty where it passed."""
    found = [e for e in result.get_asset_check_evaluations() if e.check_name == name]
    return next((str(e.description) for e in found if not e.passed), "")


def materialisations(
    instance: dg.DagsterInstance, asset: str, run_id: str | None = None
) -> dict[str, dict[str, Any]]:
    """Metadata of the newest materialisations of an asset (of one run, or at all) by partition."""
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=dg.AssetKey(asset)), limit=1000
    ).records
    return {
        str(r.partition_key): {
            k: v.value for k, v in (r.asset_materialization.metadata or {}).items()
        }
        for r in reversed(records)
        if run_id in (None, r.run_id) and r.asset_materialization is not None
    }


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Aligned columns."""
    cells = [[str(c) for c in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in cells]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


def relative(path: str) -> str:
    """A path as one would type it here."""
    return os.path.relpath(path) if path.startswith(os.getcwd()) else path
