"""Whether Ray Data or plain Ray starts a job's workers. Imports no ray."""

from __future__ import annotations

from typing import Literal

from sheaf_dagster.batch.ray.cluster_config import ClusterConfig
from sheaf_dagster.batch.spec import BatchSpec
from sheaf_dagster.errors import SheafError
from sheaf_dagster.storage import Location, store_at
from sheaf_dagster.storage.source_files import FOLDER_DEPTH, is_folder, is_in_source

__all__ = ["RAY_DATA_FROM_BYTES", "Engine", "engine_for"]

Engine = Literal["ray_data", "ray_core"]

RAY_DATA_FROM_BYTES = 2 * 2**30
"""Of smaller jobs Ray Data's start takes a tenth and more, with a model that costs nothing, and
its processes twice the memory (benchmarks: throughput, memory)."""


def engine_for(first: BatchSpec, files: int | None, config: ClusterConfig) -> Engine:
    """The engine of a job: as configured, or by the size of what there is to do.

    Args:
        first: The job's first file; the others are taken to be as large.
        files: How many there are; None where that isn't known.
        config: The cluster. One that grows is Ray Data's to ask for more machines.
    """
    if config.engine != "auto":
        return config.engine
    if config.autoscaling or files is None:
        return "ray_data"
    size = sum(_size(uri, first) for uri in first.sources)
    return "ray_data" if size * files >= RAY_DATA_FROM_BYTES else "ray_core"


def _size(uri: str, spec: BatchSpec) -> int:
    location = Location.of(uri, spec.storage_options)
    try:
        if is_folder(location):
            found = store_at(location).list_files(FOLDER_DEPTH)
            return sum(file.state.size for file in found if is_in_source(file.name))
        state = store_at(location).state()
    except SheafError:
        return 0  # whoever reads it will say what is wrong
    return state.size if state is not None else 0
