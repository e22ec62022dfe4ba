"""Credentials that are named to another machine, and never handed to it."""

from __future__ import annotations

import json

import dagster as dg
import pytest
from dagster_aws.s3 import S3Resource

import sheaf_dagster as sd


def named(storage: sd.StorageResource, **others) -> dict:
    found = []

    @dg.op(required_resource_keys={"storage"})
    def look(context):
        found.append(context.resources.storage.options_by_name)

    @dg.job(resource_defs={"storage": storage, **others})
    def job():
        look()

    job.execute_in_process()
    return found[0]


@pytest.mark.parametrize("also_a_resource", [False, True])
def test_variables_of_an_s3_resource_are_named(monkeypatch, also_a_resource):
    monkeypatch.setenv("THE_KEY", "abcdefgh")
    monkeypatch.setenv("THE_SECRET", "ijklmnop")
    s3 = S3Resource(
        endpoint_url="http://minio",
        aws_access_key_id=dg.EnvVar("THE_KEY"),
        aws_secret_access_key=dg.EnvVar("THE_SECRET"),
    )
    storage = sd.StorageResource(root="s3://b", s3=s3, storage_options={"anon": False})

    options = named(storage, **({"s3": s3} if also_a_resource else {}))

    assert options["key"] == {"env": "THE_KEY"}
    assert options["secret"] == {"env": "THE_SECRET"}
    assert options["endpoint_url"] == "http://minio"
    assert options["anon"] is False
    assert "token" not in options
    assert "abcdefgh" not in json.dumps(options)


def test_a_secret_given_as_such_does_not_travel():
    storage = sd.StorageResource(
        root="s3://b",
        storage_options={
            "secret": "ijklmnop",
            "config_kwargs": {"signature_version": "s3v4"},
            "client_kwargs": {"aws_session_token": "qrst"},
        },
    )
    with pytest.raises(
        sd.SpecError, match=r"aws_session_token, secret would be sent .* as plain text.*EnvVar"
    ):
        named(storage)


def test_a_variable_is_named_in_the_spec_in_a_run_and_outside_of_one(monkeypatch):
    monkeypatch.setenv("THE_KEY", "abcdefgh")
    model = sd.ModelResource(
        name="m",
        model_type="tensors",
        backend="onnx",
        backend_kwargs={
            "path": "s3://b/m.onnx",
            "storage_options": {"key": dg.EnvVar("THE_KEY"), "several": [dg.EnvVar("THE_KEY")]},
        },
    )
    specs = [model.to_spec()]

    @dg.op(required_resource_keys={"model"})
    def look(context):
        specs.append(context.resources.model.to_spec())

    @dg.job(resource_defs={"model": model})
    def job():
        look()

    job.execute_in_process()

    options = {"key": {"env": "THE_KEY"}, "several": [{"env": "THE_KEY"}]}
    assert [s.backend_kwargs["storage_options"] for s in specs] == [options, options]


def test_options_are_the_same_outside_of_a_run(monkeypatch):
    monkeypatch.setenv("THE_KEY", "abcdefgh")
    storage = sd.StorageResource(root="s3://b", storage_options={"key": dg.EnvVar("THE_KEY")})

    assert storage.options == {"key": "abcdefgh"}
    assert storage.options_by_name == {"key": {"env": "THE_KEY"}}
