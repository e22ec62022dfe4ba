"""A backend whose library is not installed says which extra brings it."""

from __future__ import annotations

import sys

import pytest

from sheaf_dagster import MissingDependencyError
from sheaf_dagster.backends import resolve_backend


@pytest.mark.parametrize(
    ("backend", "module", "extra"),
    [
        ("sklearn", "sklearn", "sklearn"),
        ("mlflow", "mlflow", "mlflow"),
        ("tabicl", "tabicl", "tabicl"),
        ("torch_export", "torch", "torch"),
        ("onnx", "onnxruntime", "onnx"),
        ("transformers_pipeline", "transformers", "transformers"),
        ("vllm", "vllm", "vllm"),
        ("image_embedder", "transformers", "vision"),
    ],
)
def test_a_missing_package_names_the_extra(backend, module, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=rf"'{backend}'.*sheaf_dagster\[{extra}\]"):
        resolve_backend(backend)().load()
