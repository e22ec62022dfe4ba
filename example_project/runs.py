"""Runs of the example from the command line, recorded in the same instance as the UI's."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

import dagster as dg

__all__ = ["materialisations", "materialise", "materialise_group", "quiet", "relative", "table"]


def quiet() -> None:
    """Leaves the screen to the table: no warnings about Dagster's beta parameters."""
    warnings.filterwarnings("ignore", category=dg.BetaWarning)


def materialise(
    instance: dg.DagsterInstance, assets: Sequence[str], first: str, last: str, log_level: str
) -> dg.ExecuteInProcessResult:
    """One run over a range of partitions."""
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
        run_config={"loggers": {"console": {"config": {"log_level": log_level}}}},
        raise_on_error=False,
    )


def materialise_group(
    instance: dg.DagsterInstance, group: str, log_level: str
) -> dg.ExecuteInProcessResult:
    """One run over the assets of a group, with their checks."""
    from example_project.definitions import defs

    job = dg.define_asset_job("example_group", selection=dg.AssetSelection.groups(group))
    resolved = dg.Definitions.merge(defs, dg.Definitions(jobs=[job])).resolve_job_def(
        "example_group"
    )
    return resolved.execute_in_process(
        instance=instance,
        run_config={"loggers": {"console": {"config": {"log_level": log_level}}}},
        raise_on_error=False,
    )


def materialisations(
    instance: dg.DagsterInstance, asset: str, run_id: str
) -> dict[str, dict[str, Any]]:
    """Metadata of a run's materialisations of an asset, by partition."""
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=dg.AssetKey(asset)), limit=1000
    ).records
    return {
        str(r.partition_key): {
            k: v.value for k, v in (r.asset_materialization.metadata or {}).items()
        }
        for r in records
        if r.run_id == run_id and r.asset_materialization is not None
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
