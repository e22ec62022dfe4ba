"""Assets whose files are in S3, with credentials from dagster-aws and the environment."""

from __future__ import annotations

import json
from pathlib import Path

import dagster as dg
import pytest
from dagster._serdes import serialize_value
from dagster_aws.s3 import S3Resource

import sheaf_dagster as sd
from tests.definitions.project import inference_asset
from tests.object_store import SECRET, ObjectStore
from tests.toys import doubler

pytestmark = pytest.mark.s3

DAYS = dg.StaticPartitionsDefinition(["good", "bad row", "bad model", "missing"])


def rows(values: list) -> bytes:
    lines = [{"model_type": "number", "model_name": "m", "value": v} for v in values]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def asset(compute: str = "local", **fields) -> dg.AssetsDefinition:
    return inference_asset(
        "predictions",
        **{
            "source": "{root}/in/{partition_key}.jsonl",
            "sink": "{root}/out/{partition_key}.jsonl",
            "partitions_def": DAYS,
            "compute": compute,
            "batch_size": 4,
            **fields,
        },
    )


def materialize(instance, storage, partition: str, compute: str = "local", run_config=None, **more):
    return dg.materialize(
        [asset(compute)],
        partition_key=partition,
        instance=instance,
        resources={
            "model": sd.ModelResource.from_spec(doubler(fail_on=13)),
            "ray_cluster": sd.RayClusterResource(),
            "storage": storage,
            **more,
        },
        run_config=run_config,
        raise_on_error=False,
    )


@pytest.fixture
def credentials(monkeypatch, s3) -> None:
    monkeypatch.setenv("TEST_S3_KEY", s3.key)
    monkeypatch.setenv("TEST_S3_SECRET", s3.secret)


def storages(s3: ObjectStore) -> dict[str, sd.StorageResource]:
    """The same storage, said in two ways."""
    key, secret = dg.EnvVar("TEST_S3_KEY"), dg.EnvVar("TEST_S3_SECRET")
    return {
        "resource": sd.StorageResource(
            root=s3.uri("data"),
            s3=S3Resource(
                endpoint_url=s3.endpoint,
                region_name="us-east-1",
                aws_access_key_id=key,
                aws_secret_access_key=secret,
            ),
        ),
        "options": sd.StorageResource(
            root=s3.uri("data"),
            storage_options={
                "key": key,
                "secret": secret,
                "endpoint_url": s3.endpoint,
                "client_kwargs": {"region_name": "us-east-1"},
            },
        ),
    }


def put_sources(s3: ObjectStore) -> None:
    s3.put("data/in/good.jsonl", rows(list(range(10))))
    s3.put("data/in/bad row.jsonl", rows([1, "no number"]))
    s3.put("data/in/bad model.jsonl", rows([*range(10), 13]))


@pytest.mark.ray
def test_no_secret_is_shown_or_stored_anywhere(
    s3, ray_cluster, credentials, tmp_path, capfd, caplog
):
    import ray

    put_sources(s3)
    ways = storages(s3)
    how = {
        "good": ("resource", "tasks"),
        "bad row": ("options", "local"),
        "bad model": ("options", "tasks"),
        "missing": ("resource", "local"),
    }
    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
        results = {
            key: materialize(instance, ways[way], key, compute)
            for key, (way, compute) in how.items()
        }
        told = [
            serialize_value(x)
            for result in results.values()
            for x in (
                *instance.all_logs(result.run_id),
                instance.get_run_by_id(result.run_id),
                instance.get_job_snapshot(result.dagster_run.job_snapshot_id),
                instance.get_execution_plan_snapshot(result.dagster_run.execution_plan_snapshot_id),
            )
        ]

    assert {k: r.success for k, r in results.items()} == {
        "good": True,
        "bad row": False,
        "bad model": False,
        "missing": False,
    }
    assert b'"value":18.0' in s3.get("data/out/good.jsonl")
    told += [*capfd.readouterr(), caplog.text, repr(ways)]
    ray_logs = Path(ray._private.worker._global_node.get_session_dir_path()) / "logs"
    on_disk = [f.read_bytes() for d in (tmp_path, ray_logs) for f in d.rglob("*") if f.is_file()]
    in_bucket = [s3.get(k) for k in s3.names()]
    assert any(b"predictions" in text for text in on_disk)
    for text in (*on_disk, *in_bucket, *(t.encode() for t in told)):
        assert SECRET.encode() not in text
    text = "".join(told)
    assert "data/in/missing.jsonl does not exist" in text
    assert "cannot double 13" in text


def test_both_ways_of_credentials_say_the_same(s3, credentials):
    seen = {}
    for way, storage in storages(s3).items():
        with storage.process_config_and_initialize_cm() as ready:
            seen[way] = ready.options
    shared = ("key", "secret", "endpoint_url", "client_kwargs")
    assert {n: seen["resource"][n] for n in shared} == seen["options"]
    assert seen["options"]["secret"] == s3.secret


def test_options_go_over_those_of_the_s3_resource():
    storage = sd.StorageResource(
        root="s3://bucket",
        s3=S3Resource(region_name="eu-west-1", max_attempts=2, profile_name="p", use_ssl=False),
        storage_options={
            "client_kwargs": {"verify": False},
            "config_kwargs": {"read_timeout": 5},
            "anon": True,
        },
    )
    assert storage.options == {
        "profile": "p",
        "use_ssl": False,
        "anon": True,
        "client_kwargs": {"region_name": "eu-west-1", "verify": False},
        "config_kwargs": {
            "retries": {"mode": "standard", "total_max_attempts": 2},
            "read_timeout": 5,
        },
    }


def test_an_s3_resource_may_be_set_up_in_the_launchpad(s3, credentials):
    put_sources(s3)
    later = S3Resource.configure_at_launch()
    config = {
        "endpoint_url": s3.endpoint,
        "region_name": "us-east-1",
        "aws_access_key_id": {"env": "TEST_S3_KEY"},
        "aws_secret_access_key": {"env": "TEST_S3_SECRET"},
    }
    with dg.instance_for_test() as instance:
        result = materialize(
            instance,
            sd.StorageResource(root=s3.uri("data"), s3=later),
            "good",
            run_config={"resources": {"s3": {"config": config}}},
            s3=later,
        )
        run = instance.get_run_by_id(result.run_id)
    assert result.success
    assert SECRET not in json.dumps(run.run_config)
    assert "data/out/good.jsonl" in s3.names()


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        (
            {"root": "s3://b", "storage_options": {"secret": dg.EnvVar("TEST_NOT_SET")}},
            "storage_options.secret: environment variable TEST_NOT_SET is not set",
        ),
        ({"root": "gs://b", "s3": S3Resource()}, "s3 was given, but the root is gs://b"),
        ({"root": "s3://b", "s3": sd.RayClusterResource()}, "give it dagster_aws.s3.S3Resource"),
        ({"root": "gs://b"}, "gs:// needs a package: pip install gcsfs"),
    ],
)
def test_storage_that_cannot_work_is_one_clear_failure(storage, message):
    with dg.instance_for_test() as instance:
        result = materialize(instance, sd.StorageResource(**storage), "good")
    failure = result.failure_data_for_node("predictions")
    assert message in failure.error.to_string()
    assert failure.error.cls_name == "Failure"
