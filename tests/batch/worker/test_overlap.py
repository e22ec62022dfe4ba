"""When reading and writing get threads of their own beside the model."""

from __future__ import annotations

import random
import threading

import pytest

from sheaf_dagster import BatchRunner, ModelSpec
from sheaf_dagster.batch.worker.loading import LoadedBackend
from sheaf_dagster.batch.worker.overlap import in_turns
from tests.batch.jobs import spec
from tests.conftest import read_rows
from tests.toys import Doubler

BESIDE: list[bool] = []
"""Of each call of ``Watching``: whether a reader was at work beside it."""


class Watching(Doubler):
    def batch_predict(self, requests):
        BESIDE.append("sheaf-reader" in [t.name for t in threading.enumerate()])
        return super().batch_predict(requests)


def usual(seconds: list[float]) -> list[float]:
    """What is taken for usual after each of these calls."""
    loaded = LoadedBackend(Doubler(), 0.0, 0.0, None)
    found = []
    for s in seconds:
        loaded.batch_seconds.append(s)
        found.append(loaded.usual_seconds)
    return found


@pytest.mark.parametrize("busy", [0.02, 0.1, 0.2])
def test_a_small_model_is_not_taken_for_a_long_one_on_a_busy_machine(busy):
    rng = random.Random(1)
    calls = [5.0] + [0.02 if rng.random() < busy else 0.0002 for _ in range(20_000)]

    found = usual(calls)

    assert max(found) == 0.0002


def test_a_long_model_is_known_after_five_calls_and_stays_known_where_some_are_short():
    found = usual([5.0, 0.02, 0.02, 0.02, 0.02, *[0.02, 0.0001, 0.02, 0.02, 0.02, 0.02] * 4])

    assert found[:5] == [0.0, 0.0, 0.0, 0.0, 0.02]
    assert set(found[16:]) == {0.02}


@pytest.mark.parametrize(
    ("seconds", "overlapped"), [(0.0, False), (0.01, True)], ids=["small", "long"]
)
def test_reading_goes_on_beside_a_long_model_alone(write_rows, tmp_path, seconds, overlapped):
    BESIDE.clear()
    model = ModelSpec(
        name="watched",
        model_type="number",
        backend=f"{__name__}:Watching",
        backend_kwargs={"batch_seconds": seconds},
    )

    BatchRunner(model).run(
        spec(write_rows(list(range(200))), tmp_path, batch_size=5, compute="local")
    )

    assert any(BESIDE) is overlapped
    values = [r["value"] for r in read_rows(tmp_path / "out" / "out.jsonl")]
    assert values == [2.0 * n for n in range(200)]


def test_what_was_given_before_an_error_is_passed_on_before_it_is_raised():
    def steps():
        yield ["a"]
        yield ["b", "c"]
        raise ConnectionError("the store is gone")

    turns = in_turns(lambda call: call(), steps(), lambda: False)

    assert [next(turns) for _ in range(3)] == ["a", "b", "c"]
    with pytest.raises(ConnectionError, match="the store is gone"):
        next(turns)
