"""A project around one asset of the toy model, and what its runs said."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import dagster as dg

import sheaf_dagster as sd
from tests.toys import doubler

KEY = dg.AssetKey("predictions")
"""The asset's key."""

DAYS = dg.DailyPartitionsDefinition("2026-01-01", end_date="2026-01-11")
"""Ten days."""


_OF_BATCH = set(sd.BatchOptions.model_fields) - {"batch_size", "compute", "num_actors"}
_OF_STEP = {f.name for f in dataclasses.fields(sd.StepOptions)}
_OF_REPORT = {f.name for f in dataclasses.fields(sd.ReportOptions)}
_OF_SPEC = {"automation_condition", "description", "group_name", "metadata"}


def inference_asset(key, **fields) -> dg.AssetsDefinition:
    """``build_batch_inference_asset``, with the fields of its groups side by side."""

    def taken(names: set[str]) -> dict:
        return {name: fields.pop(name) for name in names & fields.keys()}

    return sd.build_batch_inference_asset(
        dg.AssetSpec(key, **taken(_OF_SPEC)),
        batch=sd.BatchOptions(**taken(_OF_BATCH)),
        step=sd.StepOptions(**taken(_OF_STEP)),
        report=sd.ReportOptions(**taken(_OF_REPORT)),
        **fields,
    )


class Project:
    """A source folder, an asset, one downstream asset, an instance.

    Args:
        root: Holds ``in/``, ``out/`` and the instance.
        partitions_def: Partitions of both assets; each has the file that its key names.
        backend_kwargs: How the toy model misbehaves.
        model: Another model than that.
        on_disk: Keep the instance in ``root / "dagster"``, for other processes: runs take three
            times as long.
        fields: Further arguments of ``inference_asset``.
    """

    def __init__(
        self,
        root: Path,
        partitions_def=None,
        backend_kwargs=None,
        model=None,
        on_disk=False,
        **fields,
    ) -> None:
        self.root = root
        self.partitions_def = partitions_def
        self.downstream_ran: list[list[str]] = []
        name = "{partition_key}" if partitions_def else "all"
        self.asset = inference_asset(
            KEY,
            **{
                "source": f"{{root}}/in/{name}.jsonl",
                "sink": f"{{root}}/out/{name}.jsonl",
                "partitions_def": partitions_def,
                "compute": "local",
                "batch_size": 4,
                **fields,
            },
        )

        @dg.asset(
            deps=[KEY],
            partitions_def=partitions_def,
            backfill_policy=dg.BackfillPolicy.single_run() if partitions_def else None,
        )
        def downstream(context) -> None:
            self.downstream_ran.append(list(context.partition_keys) if partitions_def else [])

        self.defs = dg.Definitions(
            assets=[self.asset, downstream],
            resources={
                "model": sd.ModelResource.from_spec(model or doubler(**(backend_kwargs or {}))),
                "ray_cluster": sd.RayClusterResource(),
                "storage": sd.StorageResource(root=str(root)),
            },
        )
        (root / "dagster").mkdir(parents=True, exist_ok=True)
        make = dg.DagsterInstance.local_temp if on_disk else dg.DagsterInstance.ephemeral
        self.instance = make(str(root / "dagster"))

    def write(self, key: str, values: list) -> None:
        """Writes the source of a partition, or ``"all"``: one row a value."""
        path = self.root / "in" / f"{key}.jsonl"
        path.parent.mkdir(exist_ok=True)
        rows = [{"model_name": "m", "value": v} for v in values]
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))

    def run(
        self, first=None, last=None, *, key=None, config=None, only=None, parent=None, tags=None
    ):
        """Runs all days from ``first`` to ``last``, or one ``key``, or all there is, in this process.

        ``only`` leaves the asset downstream out; ``parent`` is the run that this one retries.
        """
        tags = dict(tags or {})
        if first:
            tags["dagster/asset_partition_range_start"] = first
            tags["dagster/asset_partition_range_end"] = last
        if parent:
            tags |= {"dagster/parent_run_id": parent, "dagster/root_run_id": parent}
        job = self.defs.resolve_implicit_global_asset_job_def()
        return job.execute_in_process(
            instance=self.instance,
            tags=tags,
            partition_key=key,
            raise_on_error=False,
            run_config={"ops": {"predictions": {"config": config or {}}}},
            asset_selection=[KEY] if only else None,
        )

    def records(self):
        """Materialisations of the asset, oldest first."""
        found = self.instance.fetch_materializations(
            dg.AssetRecordsFilter(asset_key=KEY), limit=999
        )
        return list(reversed(found.records))

    def logged(self, run_id: str) -> list[str]:
        """Partitions that a run materialised, in its order."""
        return [str(r.partition_key) for r in self.records() if r.run_id == run_id]


def evaluations(result) -> dict[str, dg.AssetCheckEvaluation]:
    """What each check of a run found."""
    return {
        e.event_specific_data.check_name: e.event_specific_data
        for e in result.all_events
        if e.event_type_value == "ASSET_CHECK_EVALUATION"
    }


def checks(result) -> dict[str, bool]:
    """Whether each check of a run passed."""
    return {name: found.passed for name, found in evaluations(result).items()}


def failed_step(result):
    """What a run recorded of its first failed step."""
    return next(
        e.event_specific_data for e in result.all_events if e.event_type_value == "STEP_FAILURE"
    )


def failure(result) -> str:
    """The message of a run's first failed step."""
    return failed_step(result).error.message
