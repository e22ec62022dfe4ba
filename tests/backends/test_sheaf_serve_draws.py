"""What sheaf-serve's backends draw depends on its own row alone."""

from __future__ import annotations

import random

import numpy as np
import pytest

from sheaf_dagster.backends import resolve_backend
from sheaf_dagster.backends.sheaf.drawing import RowDraws, seeded
from tests.backends.sheaf_rows import asked_of


def ids(n: int) -> list:
    return [asked_of("depth") for _ in range(n)]


def test_rows_that_are_drawn_do_not_depend_on_their_batch_mates():
    def draw(rows):
        return [(random.random(), float(np.random.rand())) for _ in rows]  # noqa: NPY002

    rows, state = ids(4), random.getstate()

    together = RowDraws(draw).answer(rows, "kind")
    alone = [RowDraws(draw).answer([row], "kind")[0] for row in rows]
    draws = RowDraws(draw)
    again = draws.answer(rows[:2], "kind") + draws.answer(rows[2:], "kind")

    assert together == alone == again
    assert len(set(together)) == 4
    assert random.getstate() == state, "the caller's own generator is left as it was"


def test_rows_that_are_not_drawn_stay_together():
    calls: list[int] = []

    def answer(rows):
        calls.append(len(rows))
        return [row.request_id for row in rows]

    draws, rows = RowDraws(answer), ids(5)

    assert draws.answer(rows, "kind") == [row.request_id for row in rows]
    assert draws.answer(rows, "kind") == [row.request_id for row in rows]
    assert calls == [1, 5, 5], "one row is asked alone, once"


def test_a_draw_of_another_thread_meanwhile_is_not_taken_for_the_backends():
    calls: list[int] = []

    def answer(rows):
        calls.append(len(rows))
        if len(calls) == 1:
            random.random()
        return list(rows)

    draws = RowDraws(answer)
    draws.answer(ids(3), "kind")

    assert calls == [1, 1, 3]


def test_some_rows_of_a_kind_may_draw():
    def answer(rows):
        return [random.random() if row.normalize else 0.0 for row in rows]

    rows = [asked_of("depth", normalize=n) for n in (False, True, True)]

    together = RowDraws(answer).answer(rows, "kind")

    assert together == [RowDraws(answer).answer([row], "kind")[0] for row in rows]
    assert together[1] != together[2]


def test_generators_of_torch_are_seeded_and_put_back():
    torch = pytest.importorskip("torch")
    before = torch.get_rng_state()

    with seeded(b"a"):
        first = torch.rand(3)
    with seeded(b"a"):
        again = torch.rand(3)

    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_worker_draws_the_same_weights():
    pytest.importorskip("torch")
    request = asked_of("point_cloud", task="classify")
    answers = []
    for _ in range(2):
        backend = resolve_backend("sheaf:pointnet")()
        backend.load()
        answers.append(backend.predict(request).scores)

    assert answers[0] == answers[1]
