"""Who is up, and whether the model kills whoever loads it."""

from __future__ import annotations

from sheaf_dagster.batch.ray.roster import Roster


def killed(slots: int, *steps: tuple[str, str]) -> str | None:
    """What is said after actors began and ended loads, and lost nodes, in this order."""
    roster = Roster(slots, "toy")
    for what, node in steps:
        if what == "lost":
            roster.nodes_lost({node})
        elif what == "begin":
            roster.begin_load(node)
        else:
            roster.end_load(node)
    error = roster.killed_by_their_model()
    return None if error is None else str(error)


def test_a_model_that_kills_whoever_loads_it_is_told_of():
    held_out = killed(2, *[("begin", "a"), ("begin", "b")] * 2, ("begin", "a"))
    said = killed(2, *[("begin", "a"), ("begin", "b")] * 3)

    assert held_out is None, "two are loading and three have died"
    assert "killed 4 actors while they loaded the model" in said


def test_loads_that_a_lost_node_cut_short_are_not_the_models_fault():
    eight = [("begin", "a")] * 8
    elsewhere = [("begin", "b")] * 8
    late = [("begin", "a"), ("end", "a")] * 3 + [("begin", "a")] * 12

    lost = killed(8, *eight, ("lost", "a"), *elsewhere, ("lost", "b"), *late)
    heard_after_the_restart = killed(8, *eight, *elsewhere, ("lost", "a"))
    ended = killed(8, *eight, *[("end", "a")] * 9, *elsewhere)
    too_often = killed(8, *eight, ("lost", "a"), *elsewhere, *[("begin", "b")] * 4)

    assert lost is None
    assert heard_after_the_restart is None
    assert ended is None
    assert too_often is not None


def test_workers_on_lost_nodes_are_not_up():
    roster = Roster(3, "toy")
    for worker, node in (("1", "a"), ("2", "b"), ("3", "b")):
        roster.ready(worker, node)
    before = roster.up
    roster.nodes_lost({"b"})

    assert (before, roster.up) == (3, 1)
