"""Assets that return rows and take them, and runs of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

import sheaf_dagster as sd
from tests.toys import doubler

DAYS = dg.DailyPartitionsDefinition("2026-01-01", end_date="2026-01-05")
"""Four days."""


def row(value: float, **fields) -> dict[str, Any]:
    """A request of the toy contract."""
    return {"model_type": "number", "model_name": "m", "value": value, **fields}


def run(
    root: Path | str, *assets, key: str | None = None, keys=None, raise_on_error=True, **manager
) -> dg.ExecuteInProcessResult:
    """Materialises assets with a ``RowsIOManager``: all there is, a partition, or a range.

    ``manager`` are its arguments; ``storage`` among them takes the place of ``root``.
    """
    storage = manager.pop("storage", None) or sd.StorageResource(root=str(root))
    tags = {}
    if keys:
        tags = {
            "dagster/asset_partition_range_start": keys[0],
            "dagster/asset_partition_range_end": keys[-1],
        }
    with dg.DagsterInstance.ephemeral() as instance:
        return dg.materialize(
            list(assets),
            partition_key=key,
            tags=tags,
            instance=instance,
            resources={
                "io_manager": sd.RowsIOManager(storage=storage, **manager),
                "storage": storage,
                "model": sd.ModelResource.from_spec(doubler()),
                "ray_cluster": sd.RayClusterResource(),
            },
            raise_on_error=raise_on_error,
        )


def returning(obj: Any, **fields) -> dg.AssetsDefinition:
    """The asset ``numbers``, which returns ``obj``, or what ``obj`` makes of its context."""

    @dg.asset(name="numbers", **fields)
    def numbers(context):
        return obj(context) if callable(obj) else obj

    return numbers


def taking(annotation: Any, seen: list, **fields) -> dg.AssetsDefinition:
    """An asset that takes ``numbers`` so annotated, and adds what it was given to ``seen``."""

    def taker(numbers):
        seen.append(list(numbers) if isinstance(numbers, Iterator) else numbers)

    taker.__annotations__ = {"numbers": annotation, "return": None}
    return dg.asset(taker, **fields)


def failure(result: dg.ExecuteInProcessResult) -> str:
    """The message of a run's only failed step, with its cause's."""
    (event,) = [e for e in result.all_events if e.event_type_value == "STEP_FAILURE"]
    error = event.step_failure_data.error
    return f"{error.message} {error.cause.message if error.cause else ''}"
