"""Backends in stages as jobs run them: over several batches, and where memory runs out."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
from PIL import Image

from sheaf_dagster import BatchRunner, BatchSpec, ModelSpec
from sheaf_dagster.backends.base import ModelBackend, shape_of
from sheaf_dagster.backends.chronos import ChronosBackend
from sheaf_dagster.backends.image_embedder import ImageEmbedderBackend
from sheaf_dagster.backends.onnx import OnnxBackend
from sheaf_dagster.backends.tabicl import TabICLBackend
from sheaf_dagster.backends.torch_export import TorchExportBackend
from sheaf_dagster.batch.worker import local_model, pipeline
from sheaf_dagster.contracts import (
    EmbeddingRequest,
    TabularRequest,
    TensorsRequest,
    TimeSeriesRequest,
)
from tests.conftest import read_rows
from tests.toys import AlwaysBeside

pytestmark = pytest.mark.model
FITS = 3


def scarce(cls: type[ModelBackend]) -> type[ModelBackend]:
    """The backend on a device that has memory for three rows."""

    def infer(self, prepared):
        import torch

        if len(prepared) > FITS:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return cls.infer(self, prepared)

    return type(f"Scarce{cls.__name__}", (cls,), {"infer": infer, "__module__": __name__})


ScarceImages = scarce(ImageEmbedderBackend)
ScarceChronos = scarce(ChronosBackend)
ScarceOnnx = scarce(OnnxBackend)
ScarceProgram = scarce(TorchExportBackend)
ScarceTables = scarce(TabICLBackend)


@pytest.fixture(scope="module")
def weights(models, programs, onnx_files, checkpoints) -> dict[str, str]:
    return {
        "images": models["clip"],
        "bolt": models["bolt"],
        "chronos2": models["chronos2"],
        "onnx": onnx_files["iris"],
        "program": programs["net"],
        "tabicl": checkpoints["classifier_path"],
    }


def picture(i: int) -> str:
    random = np.random.default_rng(i)
    image = Image.fromarray(random.integers(0, 255, (30 + i, 41, 3), dtype=np.uint8))
    out = io.BytesIO()
    image.save(out, "JPEG")
    return base64.b64encode(out.getvalue()).decode()


def embedding(i: int) -> EmbeddingRequest:
    given = {"texts": ["a photo", "red " * i]} if i % 4 == 3 else {"images_b64": [picture(i)]}
    return EmbeddingRequest(request_id=UUID(int=i + 1), model_name="m", **given)


def series(i: int) -> TimeSeriesRequest:
    history = [float((t * (i + 2)) % 7) for t in range(10 + 3 * i)]
    return TimeSeriesRequest(
        request_id=UUID(int=i + 1), model_name="m", history=history, horizon=2, frequency="1d"
    )


def table(i: int) -> TabularRequest:
    """Every third row has the same examples."""
    examples = [[float(k), float((i % 3 + k) % 4)] for k in range(8)]
    return TabularRequest(
        request_id=UUID(int=i + 1),
        model_name="m",
        context_X=examples,
        context_y=[k % 2 for k in range(8)],
        query_X=[[0.3 * i, k] for k in range(1 + i % 2)],
        output_mode="probabilities",
    )


def tensors(i: int, **inputs) -> TensorsRequest:
    return TensorsRequest(request_id=UUID(int=i + 1), model_name="m", inputs=inputs)


ROWS = {
    "images": embedding,
    "bolt": series,
    "chronos2": series,
    "onnx": lambda i: tensors(i, X=[5.0 + 0.1 * i, 3.0, 0.5 * i, 0.2]),
    "program": lambda i: tensors(i, x=[0.5, float(i), -1.0], scale=2.0),
    "tabicl": table,
}
CLASSES = {
    "images": ("ScarceImages", "model_id", "embedding"),
    "bolt": ("ScarceChronos", "model_id", "time_series"),
    "chronos2": ("ScarceChronos", "model_id", "time_series"),
    "onnx": ("ScarceOnnx", "path", "tensors"),
    "program": ("ScarceProgram", "path", "tensors"),
    "tabicl": ("ScarceTables", "classifier_path", "tabular"),
}


def numbers(answer: dict) -> list[float]:
    """All numbers of an answer, in order."""
    if isinstance(answer, dict):
        answer = [v for k, v in sorted(answer.items()) if k != "metadata"]
    if isinstance(answer, list):
        return [n for v in answer for n in numbers(v)]
    return [float(answer)] if isinstance(answer, (int, float)) else []


@pytest.mark.parametrize(
    ("name", "budget"),
    [*((name, None) for name in CLASSES), ("images", 10_000), ("chronos2", 300)],
)
@pytest.mark.parametrize("beside", [False, True], ids=["threads", "processes"])
def test_each_row_is_answered_as_alone_though_memory_runs_out(
    name, budget, weights, tmp_path, beside, monkeypatch, caplog
):
    monkeypatch.setattr(pipeline, "Beside", AlwaysBeside if beside else pipeline.Beside)
    backend, argument, model_type = CLASSES[name]
    cls = globals()[backend]
    arguments = {argument: weights[name], "device": "cpu"}
    rows = [ROWS[name](i) for i in range(20)]
    source, sink = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(r.model_dump_json(exclude_none=True) + "\n" for r in rows))
    model = ModelSpec(
        name=f"{name} {budget} {beside}",  # a loaded model keeps what it has learned of its memory
        model_type=model_type,
        backend=f"{__name__}:{backend}",
        backend_kwargs=arguments,
    )

    result = BatchRunner(model).run(
        BatchSpec(
            source=str(source), sink=str(sink), batch_size=8, batch_budget=budget, compute="local"
        )
    )

    by_hand = cls.__bases__[0](**arguments)
    by_hand.load()
    expected = [by_hand.predict(row).model_dump(mode="json") for row in rows]
    found = read_rows(Path(sink))
    assert shape_of(cls) == result.shape == "stages"
    assert result.halved_batches > 0
    assert "threads do it from here on" not in caplog.text
    (one,) = [m for m in local_model._MODELS.values() if m._context.spec == model]
    pool = one._loaded.beside._pool
    assert (pool is not None and pool.is_ready) == (beside and name != "tabicl")
    one.close()
    assert [f["request_id"] for f in found] == [e["request_id"] for e in expected]
    for ours, alone in zip(found, expected, strict=True):
        np.testing.assert_allclose(numbers(ours), numbers(alone), rtol=1e-3, atol=1e-5)
