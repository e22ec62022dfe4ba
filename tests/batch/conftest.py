"""Compute modes, and a cluster that nodes can be lost from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sheaf_dagster.contracts import registry
from tests.batch.jobs import MODES
from tests.crashes import TwoNodes


@pytest.fixture(params=MODES)
def mode(request) -> dict:
    """Each compute mode in turn, with a Ray where it needs one."""
    if request.param["compute"] != "local":
        request.getfixturevalue("ray_cluster")
    return request.param


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[TwoNodes]:
    """A cluster of a module's own, whose second node can be killed."""
    cluster = TwoNodes()
    yield cluster
    cluster.stop()


@pytest.fixture
def own_contracts(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(registry, "_CONTRACTS", dict(registry._CONTRACTS))
