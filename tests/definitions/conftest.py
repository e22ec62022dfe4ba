"""Projects and inboxes that several modules run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from tests.definitions.inbox import Bucket, Disk, Inbox, MakeInbox
from tests.definitions.project import DAYS, Project


@pytest.fixture
def year(tmp_path) -> Project:
    """Ten days of three rows each."""
    project = Project(tmp_path, DAYS)
    for i, key in enumerate(DAYS.get_partition_keys()):
        project.write(key, [i, i + 1, i + 2])
    return project


@pytest.fixture(scope="session")
def new_home(tmp_path_factory) -> Path:
    """The files of an instance in which nothing has happened: copying them is fast."""
    home = tmp_path_factory.mktemp("home")
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        instance.get_dynamic_partitions("")
        instance.get_run_records()
    return home


@pytest.fixture
def instance(tmp_path, new_home) -> Iterator[dg.DagsterInstance]:
    """An instance on disk, closed in the end."""
    home = shutil.copytree(new_home, tmp_path / "home")
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        yield instance


@pytest.fixture
def inbox(tmp_path, instance) -> MakeInbox:
    """Makes an inbox on the disk; its arguments are the sensor's."""
    return lambda *args, **kwargs: Inbox(Disk(tmp_path), instance, *args, **kwargs)


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.s3)])
def files(request, tmp_path) -> Disk | Bucket:
    """Where files land: a folder, then a bucket."""
    return Disk(tmp_path) if request.param == "disk" else Bucket(request.getfixturevalue("s3"))
