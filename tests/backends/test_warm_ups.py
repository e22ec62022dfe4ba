"""What a backend offers to warm itself up with is answered by it."""

from __future__ import annotations

import pytest

from sheaf_dagster import ModelSpec
from sheaf_dagster.batch.worker.loading import ModelContext, load_backend

pytestmark = pytest.mark.model


def warmed(backend: str, model_type: str, **kwargs) -> int:
    spec = ModelSpec(
        name="m", model_type=model_type, backend=backend, backend_kwargs={**kwargs, "device": "cpu"}
    )
    return len(load_backend(ModelContext.of(spec)).backend.warmup_requests())


def test_array_models_warm_up_with_a_row_of_zeros(programs, onnx_files):
    padded = {"ids": {"dtype": "int64", "pad": 0, "mask": "mask"}, "mask": {}}

    assert warmed("torch_export", "tensors", path=programs["net"]) == 1
    assert warmed("torch_export", "tensors", path=programs["fixed"]) == 1
    assert warmed("torch_export", "tensors", path=programs["bag"], inputs=padded) == 1
    assert all(warmed("onnx", "tensors", path=path) == 1 for path in onnx_files.values())


def test_the_others_warm_up_with_rows_of_their_own(checkpoints, models):
    assert warmed("transformers_pipeline", "openai_batch", model_id=models["causal"]) == 2
    assert warmed("tabicl", "tabular", **checkpoints, load=["classification", "regression"]) == 2
