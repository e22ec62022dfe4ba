"""A run in a process of its own, its step in another: ``python -m tests.definitions.orphan_project``."""

from __future__ import annotations

import os
from pathlib import Path

import dagster as dg

from tests.definitions.project import DAYS, KEY, Project


def forecast() -> dg.JobDefinition:
    """The job of the project in the folder that the environment names."""
    root = Path(os.environ["SHEAF_TEST_ROOT"])
    # However busy the machine is: the step is at the fifth day until the test lets it go on.
    arguments = {"slow_while": str(root / "gate"), "slow_from": 400}
    project = Project(root, DAYS, arguments, on_disk=True)
    defs = dg.Definitions(
        assets=project.defs.assets,
        resources=project.defs.resources,
        jobs=[dg.define_asset_job("forecast", [KEY])],
    )
    return defs.resolve_job_def("forecast")


def main() -> None:
    """Runs all days as one run; each step is a process, as the executor makes it by default."""
    from tests.definitions import orphan_project

    keys = DAYS.get_partition_keys()
    dg.execute_job(
        dg.reconstructable(orphan_project.forecast),
        instance=dg.DagsterInstance.local_temp(str(Path(os.environ["SHEAF_TEST_ROOT"], "dagster"))),
        tags={
            "dagster/asset_partition_range_start": keys[0],
            "dagster/asset_partition_range_end": keys[-1],
        },
    )


if __name__ == "__main__":
    main()
