"""Projects that several modules run."""

from __future__ import annotations

import pytest

from tests.definitions.project import DAYS, Project


@pytest.fixture
def year(tmp_path) -> Project:
    """Ten days of three rows each."""
    project = Project(tmp_path, DAYS)
    for i, key in enumerate(DAYS.get_partition_keys()):
        project.write(key, [i, i + 1, i + 2])
    return project
