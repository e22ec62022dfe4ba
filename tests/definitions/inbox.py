"""A watched folder, the sensor on it, and what each tick asks for, without a daemon."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.definitions.sensor_definition import SensorExecutionData
from dagster._core.execution.resources_init import get_transitive_required_resource_keys
from dagster._serdes import deserialize_value, serialize_value

import sheaf_dagster as sd
from tests.object_store import ObjectStore
from tests.toys import doubler

DAYS = dg.DailyPartitionsDefinition("2026-01-01", end_date="2026-01-31")
MANY = dg.DynamicPartitionsDefinition(name="files")
ROW = b'{"model_type": "number", "model_name": "m", "value": 1}\n'


class Disk:
    """Files below a local folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.resources = {"storage": sd.StorageResource(root=str(folder))}

    def put(self, name: str, data: bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def remove(self, name: str) -> None:
        (self.folder / name).unlink()


class Bucket:
    """Objects below a prefix, with credentials from a resource of their own."""

    def __init__(self, store: ObjectStore) -> None:
        from dagster_aws.s3 import S3Resource

        self.store = store
        credentials = S3Resource(
            endpoint_url=store.endpoint,
            region_name="us-east-1",
            aws_access_key_id=store.key,
            aws_secret_access_key=store.secret,
        )
        self.resources = {
            "storage": sd.StorageResource(root=store.uri("data"), s3=credentials),
            "s3": credentials,
        }

    def put(self, name: str, data: bytes) -> str:
        return self.store.put(f"data/{name}", data)

    def remove(self, name: str) -> None:
        self.store.client.delete_object(Bucket=self.store.bucket, Key=f"data/{name}")


class Inbox:
    """Ticks are evaluated as the code server evaluates them, then saved as the daemon saves them."""

    def __init__(
        self,
        files: Disk | Bucket,
        instance: dg.DagsterInstance,
        partitions_def: dg.PartitionsDefinition | None = DAYS,
        source: str | None = "{root}/in/{partition_key}.jsonl",
        batch: sd.BatchOptions | None = None,
        **arguments: Any,
    ) -> None:
        self.files = files
        self.instance = instance
        self.cursor: str | None = None
        key = "all" if partitions_def is None else "{partition_key}"
        self.asset = sd.build_batch_inference_asset(
            "predictions",
            source=f"{{root}}/in/{key}.jsonl",
            sink=f"{{root}}/out/{key}.jsonl",
            partitions_def=partitions_def,
            compute="local",
            batch=batch or sd.BatchOptions(),
        )
        sensor = sd.build_jsonl_arrival_sensor(
            self.asset, source, **{"settle_seconds": 0, **arguments}
        )
        self.resources = {
            **files.resources,
            "model": sd.ModelResource.from_spec(doubler()),
            "ray_cluster": sd.RayClusterResource(),
        }
        assets = [self.asset, *arguments.get("also", ())]
        defs = dg.Definitions(assets, resources=self.resources, sensors=[sensor])
        self.repository = defs.get_repository_def()
        self.sensor = self.repository.get_sensor_def(sensor.name)

    def drop(self, name: str, data: bytes = ROW) -> Any:
        return self.files.put(f"in/{name}", data)

    def tick(self, *, saved: bool = True) -> Any:
        """Evaluates the sensor; not ``saved``, the daemon died before it wrote down the result."""
        resources = self.repository.get_top_level_resources()
        needed = get_transitive_required_resource_keys(
            self.sensor.required_resource_keys, resources
        )
        with dg.build_sensor_context(
            instance=self.instance,
            instance_ref=self.instance.get_ref(),
            cursor=self.cursor,
            repository_def=self.repository,
            resources={k: v for k, v in resources.items() if k in needed},
        ) as context:
            evaluated = self.sensor.evaluate_tick(context)
        self.result = deserialize_value(serialize_value(evaluated), SensorExecutionData)
        if saved:
            for request in self.result.dynamic_partitions_requests or ():
                self.instance.add_dynamic_partitions(
                    request.partitions_def_name, list(request.partition_keys)
                )
            self.cursor = self.result.cursor
        return self.result

    def asked(self, *, saved: bool = True) -> list[str | None]:
        """Keys of the next tick's runs; ranges as ``first..last``."""
        return [
            f"{r.partition_key_range.start}..{r.partition_key_range.end}"
            if r.partition_key_range
            else r.partition_key
            for r in self.tick(saved=saved).run_requests
        ]

    @property
    def reason(self) -> str:
        return self.result.skip_message or ""

    def job(self) -> dg.JobDefinition:
        """The job that the sensor's runs run."""
        return self.repository.get_job(self.sensor.job_name)

    def run(self, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
        """Runs what a tick asked for, here."""
        return self.job().execute_in_process(
            instance=self.instance,
            run_config=request.run_config,
            tags=dict(request.tags),
            raise_on_error=False,
        )


MakeInbox = Callable[..., Inbox]
