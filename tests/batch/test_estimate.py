"""What a job will take, before it runs."""

from __future__ import annotations

import json

import pytest

from sheaf_dagster import BatchSpec
from sheaf_dagster.batch.estimate import Past, estimate_job
from sheaf_dagster.batch.rows.requests import RowContract
from sheaf_dagster.contracts import contract_for
from sheaf_dagster.contracts.prompt_size import prompt_tokens

PRICES = {"prompt": 1.0, "completion": 10.0}
PAST = [
    Past(rows=100, rows_per_second=10, load_seconds=4, completion_tokens=2000),
    Past(rows=10, rows_per_second=30, load_seconds=8, completion_tokens=100),
    Past(rows=10, rows_per_second=20, load_seconds=6),
]


def chat(i: int, **body) -> dict:
    said = [{"role": "user", "content": "a" * 40}]
    return {
        "custom_id": f"row-{i}",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"messages": said, "max_tokens": 30, **body},
    }


def job(tmp_path, rows, **options) -> BatchSpec:
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return BatchSpec(source=str(source), sink=str(tmp_path / "out.jsonl"), **options)


def contract(model_type: str = "openai_batch") -> RowContract:
    return RowContract.of(contract_for(model_type))


def test_tokens_are_counted_and_the_rest_is_as_it_was(tmp_path):
    spec = job(tmp_path, [chat(i) for i in range(60)], price_per_million=PRICES)

    found = estimate_job(contract(), [spec], PAST)

    assert (found.files, found.rows, found.invalid_rows, found.based_on) == (1, 60, 0, 3)
    assert found.prompt_tokens == 60 * 10
    assert found.most_completion_tokens == 60 * 30
    assert found.completion_tokens == 60 * 15  # the median of 20 and 10
    assert found.seconds == 6 + 60 / 20
    assert found.cost == pytest.approx((600 * 1.0 + 900 * 10.0) / 1e6)
    assert found.most_cost == pytest.approx((600 * 1.0 + 1800 * 10.0) / 1e6)


def test_what_nobody_knows_is_not_made_up(tmp_path):
    rows = [chat(0), chat(1, max_tokens=None), {"custom_id": "row-2"}]

    found = estimate_job(contract(), [job(tmp_path, rows[:2])], [])
    invalid = estimate_job(contract(), [job(tmp_path, rows)], PAST)

    assert found.prompt_tokens == 20
    assert (found.most_completion_tokens, found.completion_tokens) == (None, None)
    assert (found.seconds, found.cost, found.most_cost) == (None, None, None)
    assert invalid.invalid_rows == 1


@pytest.mark.parametrize(
    ("limits", "invalid", "errors"),
    [({"max_error_rows": 2}, 0, 2), ({"max_error_rows": 1}, 2, 0), ({"on_invalid": "fail"}, 2, 0)],
)
def test_invalid_rows_that_are_recorded_are_error_rows(tmp_path, limits, invalid, errors):
    rows = [chat(0), {"custom_id": "row-1"}, chat(2, sku=1), chat(3) | {"sku": 1}]
    spec = job(tmp_path, rows, **{"on_invalid": "record", "on_error": "record"} | limits)

    found = estimate_job(contract(), [spec.model_copy(update={"strict": True})], PAST)

    assert (found.rows, found.invalid_rows, found.error_rows) == (4, invalid, errors)
    assert found.prompt_tokens == 2 * 10
    assert found.seconds == 6 + (4 - errors) / 20


def test_rows_of_other_models_have_a_time_and_no_tokens(tmp_path):
    rows = [{"model_type": "time_series", "model_name": "m", "history": [1, 2], "horizon": 2,
             "frequency": "1d"}]  # fmt: skip

    found = estimate_job(contract("time_series"), [job(tmp_path, rows)], PAST)

    assert (found.rows, found.invalid_rows) == (1, 0)
    assert found.seconds == 6 + 1 / 20
    assert found.prompt_tokens is found.completion_tokens is found.cost is None


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"prompt": "a" * 9}, 3),
        ({"prompt": ["abcd", "ab"]}, 2),
        ({"prompt": [5, 6, 7]}, 3),
        ({"prompt": [[5, 6], [7]]}, 3),
        ({"input": ["abcd"], "encoding_format": "base64"}, 1),
        ({"text_1": "abcd", "text_2": ["abcd", "abcd"]}, 3),
        ({"query": "abcd", "documents": ["abcd"]}, 2),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "abcd"}]}]}, 1),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image_url", "image_url": {"url": "data:" + "A" * 10**6}}
                        ],
                    }
                ]
            },
            1000,
        ),
    ],
)
def test_a_token_is_four_characters_and_a_picture_is_no_text(body, tokens):
    assert prompt_tokens(body) == tokens
