"""An S3 endpoint over HTTP on loopback, and what tests look at in it."""

from __future__ import annotations

import logging
import os
import uuid
from dataclasses import dataclass
from typing import Any

import pytest

needs_if_match = pytest.mark.skipif("SHEAF_SWIFT" in os.environ, reason="Swift has no If-Match")
changes_requests = pytest.mark.skipif(
    "SHEAF_SWIFT" in os.environ, reason="Swift checks what is signed, and refuses what was changed"
)
checks_no_keys = pytest.mark.skipif(
    "SHEAF_SWIFT" in os.environ, reason="uses a wrong secret, which Swift refuses"
)

SMALL_PART = 3000
"""Bytes of the least part of an upload, where ``takes_small_parts`` has the store take them."""

KEY = "AKIATESTONLYKEY00001"
SECRET = "test-only-secret-access-key-0123456789"


@dataclass
class ObjectStore:
    """A bucket of its own on a running server."""

    endpoint: str
    bucket: str
    client: Any
    key: str = KEY
    secret: str = SECRET

    def options(self, endpoint: str | None = None, **config: Any) -> dict[str, Any]:
        """``storage_options`` that reach it, directly or through another endpoint."""
        options: dict[str, Any] = {
            "key": self.key,
            "secret": self.secret,
            "endpoint_url": endpoint or self.endpoint,
            "client_kwargs": {"region_name": "us-east-1"},
        }
        return {**options, "config_kwargs": config} if config else options

    def uri(self, key: str) -> str:
        return f"s3://{self.bucket}/{key}"

    def put(self, key: str, data: bytes) -> str:
        self.client.put_object(Bucket=self.bucket, Key=key, Body=data)
        return self.uri(key)

    def get(self, key: str) -> bytes:
        return self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()

    def names(self, prefix: str = "") -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=prefix
        )
        return [o["Key"] for page in pages for o in page.get("Contents", ())]

    def uploads(self) -> list[str]:
        """Keys of multipart uploads that were begun and neither completed nor aborted."""
        found = self.client.list_multipart_uploads(Bucket=self.bucket)
        return [u["Key"] for u in found.get("Uploads", ())]


def bucket_on(endpoint: str, key: str = KEY, secret: str = SECRET) -> ObjectStore:
    """A new bucket of a server."""
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        region_name="us-east-1",
    )
    name = f"bucket-{uuid.uuid4().hex}"
    client.create_bucket(Bucket=name)
    return ObjectStore(endpoint, name, client, key, secret)


class Server:
    """moto's server in a thread of this process."""

    answers_within = 1.0
    """Seconds after which a client may give a request up and make it again."""

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.endpoint = f"http://{host}:{port}"

    def bucket(self) -> ObjectStore:
        return bucket_on(self.endpoint)

    def takes_small_parts(self, monkeypatch: pytest.MonkeyPatch) -> str:
        """The address at which parts of an upload may be small: for this test, everywhere."""
        monkeypatch.setattr("moto.s3.models.S3_UPLOAD_PART_MIN_SIZE", SMALL_PART)
        return self.endpoint

    def stop(self) -> None:
        self._server.stop()
