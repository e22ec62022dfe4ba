"""A store that fails for a passing reason, and one that fails for good."""

from __future__ import annotations

import pickle

import dagster as dg
import pytest

import sheaf_dagster as sd
from sheaf_dagster.batch.messages import ErrorMessage
from sheaf_dagster.storage import Location, retry
from tests.toys import doubler

NOBODY_LISTENS = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(retry, "FIRST_WAIT_SECONDS", 0.01)


def restarts(storage: sd.StorageResource) -> int:
    """How often the retry policy of an asset had its step tried again."""
    asset = sd.build_batch_inference_asset(
        "predictions",
        source="{root}/in.jsonl",
        sink="{root}/out.jsonl",
        compute="local",
        step=sd.StepOptions(retry_policy=dg.RetryPolicy(max_retries=2)),
    )
    result = dg.materialize(
        [asset],
        resources={
            "model": sd.ModelResource.from_spec(doubler()),
            "ray_cluster": sd.RayClusterResource(),
            "storage": storage,
        },
        raise_on_error=False,
    )
    assert not result.success
    return sum(e.event_type_value == "STEP_RESTARTED" for e in result.all_events)


def test_a_step_is_tried_again_while_its_store_is_out_of_reach():
    options = {
        "endpoint_url": NOBODY_LISTENS,
        "key": "k",
        "secret": "not-a-secret",
        "config_kwargs": {"retries": {"total_max_attempts": 1}},
    }

    found = restarts(sd.StorageResource(root="s3://bucket", storage_options=options))

    assert found == 2


@pytest.mark.s3
def test_a_step_is_not_tried_again_where_its_store_knows_no_such_bucket(s3):
    storage = sd.StorageResource(root="s3://no-such-bucket", storage_options=s3.options())

    found = restarts(storage)

    assert found == 0


@pytest.mark.parametrize(
    ("cause", "helps"),
    [(ConnectionResetError(), True), (PermissionError(), False), (TimeoutError(), True)],
    ids=["reset", "forbidden", "timed out"],
)
def test_whether_a_retry_helps_survives_the_way_from_a_worker(cause, helps):
    error = Location.of("in.jsonl").error(sd.SourceError, "in.jsonl can't be read", cause)

    arrived = [
        pickle.loads(pickle.dumps(error)),
        ErrorMessage.of(error, "in.jsonl").rebuilt(),
    ]

    assert [e.retryable for e in arrived] == [helps] * 2
    assert {type(e) for e in arrived} == {sd.SourceError}
