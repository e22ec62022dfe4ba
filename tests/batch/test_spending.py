"""What tokens cost, and what limits may be asked for."""

from __future__ import annotations

import pytest

from sheaf_dagster import BatchOptions, BatchRunner, BatchSpec, SpecError
from sheaf_dagster.batch.spending import cost_of
from tests.toys import doubler

TOKENS = {"prompt": 1_000_000, "output": 500_000, "hit": 200_000}


@pytest.mark.parametrize(
    ("prices", "cost"),
    [
        ({"prompt": 2.0, "completion": 8.0}, 6.0),
        ({"prompt": 2.0, "completion": 8.0, "cached": 0.5}, 5.7),
        ({"completion": 8.0}, 4.0),
        ({}, 0.0),
        (None, None),
    ],
)
def test_a_cached_token_has_a_price_of_its_own_or_that_of_a_prompt(prices, cost):
    assert cost_of(TOKENS, prices) == (None if cost is None else pytest.approx(cost))


def test_nothing_is_known_where_no_answer_told_its_tokens():
    assert cost_of({}, {"prompt": 2.0}) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_cost": 1.0}, "max_cost needs price_per_million"),
        ({"price_per_million": {"output": 1.0}}, "'output' is not a kind of token; known: prompt"),
        ({"price_per_million": {"prompt": -1.0}}, "must be 0 or more"),
        ({"price_per_million": {"prompt": float("nan")}}, "must be 0 or more"),
        ({"max_tokens_total": 0}, "greater than 0"),
    ],
)
def test_limits_that_can_not_work_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BatchOptions(**options)


def test_a_limit_is_refused_where_no_answer_tells_its_tokens(tmp_path):
    (tmp_path / "in.jsonl").write_text("{}\n")
    job = BatchSpec(
        source=str(tmp_path / "in.jsonl"), sink=str(tmp_path / "out.jsonl"), max_tokens_total=5
    )

    with pytest.raises(SpecError, match="don't say how many tokens they took"):
        BatchRunner(doubler()).run(job)
