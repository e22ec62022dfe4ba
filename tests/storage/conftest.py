"""The same tests over every kind of storage."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from sheaf_dagster.storage import Location, store_at
from tests.other_stores import STORES, Emulator, azure, gcs


@dataclass
class Place:
    """A folder on some storage."""

    root: str
    options: dict[str, Any] = field(default_factory=dict)

    def at(self, name: str) -> Location:
        return Location.of(f"{self.root}/{name}", self.options)

    def put(self, name: str, data: bytes) -> Location:
        location = self.at(name)
        store_at(location).make_parents()
        store_at(location).write(data)
        return location

    def names(self) -> list[str]:
        """Files below it, at any depth."""
        folder = store_at(self.at("x").parent)
        fs, path = folder.filesystem or LocalFileSystem(), folder.path
        fs.invalidate_cache()
        base = path.strip("/") + "/"
        return sorted(f.strip("/").removeprefix(base) for f in fs.find(path))


class MountedFileSystem(LocalFileSystem):
    """A store with folders, such as sftp or hdfs: a file shows while it is written."""

    protocol = "mounted"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return LocalFileSystem._strip_protocol(path.removeprefix("mounted://"))


fsspec.register_implementation("mounted", MountedFileSystem, clobber=True)

KINDS = ["local", "file", "memory", "mounted", pytest.param("s3", marks=pytest.mark.s3), *STORES]


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[Emulator]:
    """Google Cloud Storage's emulator."""
    with gcs() as emulator:
        yield emulator


@pytest.fixture(scope="session")
def azure_server(tmp_path_factory) -> Iterator[Emulator]:
    """Azure's emulator."""
    with azure(tmp_path_factory.mktemp("azurite")) as emulator:
        yield emulator


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path) -> Place:
    """An empty folder: on the disk, by path and by URI, in memory, and in a bucket."""
    made: dict[str, Callable[[], Place]] = {
        "local": lambda: Place(str(tmp_path)),
        "file": lambda: Place(f"file://{tmp_path}"),
        "memory": lambda: Place(f"memory://{uuid.uuid4().hex}"),
        "mounted": lambda: Place(f"mounted://{tmp_path}"),
        "s3": lambda: _bucket(request),
        "gcs": lambda: _container(request.getfixturevalue("gcs_server")),
        "azure": lambda: _container(request.getfixturevalue("azure_server")),
    }
    return made[request.param]()


def _bucket(request: pytest.FixtureRequest) -> Place:
    store = request.getfixturevalue("s3")
    return Place(store.uri("some/folder"), store.options())


def _container(emulator: Emulator) -> Place:
    return Place(f"{emulator.bucket()}/some/folder", emulator.options(emulator.endpoint))
