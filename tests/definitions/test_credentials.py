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
        sd.SpecError, match=r"aws_session_token, secret would travel .* in clear.*EnvVar"
    ):
        named(storage)
