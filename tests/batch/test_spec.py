"""Models and jobs as they are written down: what is refused, and how they travel."""

from __future__ import annotations

import pytest

import sheaf_dagster as sd
from sheaf_dagster import BatchRunner, BatchSpec, ModelSpec
from tests.toys import doubler


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"backend": "nope"}, sd.UnknownBackendError, "unknown backend 'nope'; known: chronos2"),
        ({"backend": "tests.toys:Nope"}, sd.UnknownBackendError, "can't be imported"),
        ({"backend": "os:path"}, sd.SpecError, "not a subclass of ModelBackend"),
        ({"model_type": "horoscope"}, sd.UnknownContractError, "'horoscope'"),
        ({"model_type": "embedding"}, sd.SpecError, "serves model type 'number'"),
    ],
)
def test_specs_that_cannot_work_are_refused(fields, error, message):
    model = ModelSpec(**{**doubler().model_dump(), **fields})
    with pytest.raises(error, match=message):
        BatchRunner(model)


def test_batch_specs_say_what_is_wrong(write_rows, tmp_path):
    with pytest.raises(ValueError, match="compute='actors' needs num_actors"):
        BatchSpec(source="a", sink="b", compute="actors")
    with pytest.raises(ValueError, match="Extra inputs"):
        BatchSpec(source="a", sink="b", batchsize=3)
    with pytest.raises(sd.SpecError, match="same file"):
        BatchRunner(doubler()).run(BatchSpec(source="x/../a.jsonl", sink="a.jsonl"))
    with pytest.raises(sd.SpecError, match="bucket_by='colour' is not a field of NumberRequest"):
        BatchRunner(doubler()).run(BatchSpec(source="a", sink="b", bucket_by="colour"))


def test_specs_round_trip_through_json():
    model = doubler(num_gpus=0.5, jitter=True)
    job = BatchSpec(source=["a", "b"], sink="c", compute="actors", num_actors=2, row_limit=5)
    assert ModelSpec.model_validate_json(model.model_dump_json()) == model
    assert BatchSpec.model_validate_json(job.model_dump_json()) == job
