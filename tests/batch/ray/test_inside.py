"""What this library reaches for inside of Ray is still there, and is what it was."""

from __future__ import annotations

import importlib

import pytest

from sheaf_dagster.batch.ray import inside


def test_ray_still_counts_the_cpus_of_this_machine():
    assert inside.cpus_counted() > 0


def test_ray_still_says_which_cluster_an_address_means(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")

    assert inside.cluster_behind("auto") == "10.0.0.1:6379"
    assert inside.cluster_behind("10.0.0.2:6380") == "10.0.0.2:6380"


def test_an_address_that_ray_itself_refuses_is_left_to_it(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    assert inside.cluster_behind("no address") is None


def test_ray_still_notes_tokens_by_this_logger():
    module = importlib.import_module(inside.LOGGER_OF_TOKENS)

    assert module.logger.name == inside.LOGGER_OF_TOKENS


@pytest.mark.ray
def test_ray_still_says_which_nodes_are_drained(ray_cluster):
    from ray._private.state import state

    assert isinstance(state.get_draining_nodes(), dict)
    assert inside.draining_nodes() == set()


@pytest.mark.parametrize("known", inside.__all__)
def test_each_reach_has_a_test_here(known):
    assert f"inside.{known}" in open(__file__).read()
