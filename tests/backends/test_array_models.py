"""Exported torch programs and ONNX files, made here, over rows of named arrays."""

from __future__ import annotations

import json
import math
import re
from uuid import UUID

import numpy as np
import pytest

from sheaf_dagster import BatchRunner, BatchSpec, ModelSpec, SpecError
from sheaf_dagster.backends.onnx import OnnxBackend
from sheaf_dagster.backends.torch_export import TorchExportBackend
from sheaf_dagster.contracts import TensorsRequest
from sheaf_dagster.testing import check_backend
from tests.backends.rules import WITHOUT_A_WORKER
from tests.conftest import read_rows

pytestmark = pytest.mark.model


def row(i: int, **inputs) -> TensorsRequest:
    return TensorsRequest(request_id=UUID(int=i + 1), model_name="m", inputs=inputs)


def net_rows(n: int) -> list[TensorsRequest]:
    random = np.random.default_rng(0)
    return [row(i, x=random.normal(size=3).tolist(), scale=i + 1) for i in range(n)]


@pytest.mark.parametrize("name", ["net", "fixed"])
def test_a_program_runs_within_its_own_bounds_of_the_batch(name, programs):
    rows = net_rows(19)
    check_backend(
        TorchExportBackend,
        rows,
        backend_kwargs={"path": programs[name], "device": "cpu"},
        rules=WITHOUT_A_WORKER,
    )
    backend = TorchExportBackend(programs[name], device="cpu")
    backend.load()

    answers = [a.outputs for a in backend.batch_predict(rows)]

    assert [a["top"] for a in answers] == [int(np.argmax(a["y"])) for a in answers]
    one = np.array(answers[0]["y"]) / 1
    again = backend.predict(row(0, x=rows[0].inputs["x"], scale=2.0)).outputs["y"]
    np.testing.assert_allclose(again, 2 * one, rtol=1e-5)


def test_padded_rows_of_any_length_answer_like_single_ones(programs):
    kwargs = {
        "path": programs["bag"],
        "device": "cpu",
        "inputs": {"ids": {"dtype": "int64", "pad": 0, "mask": "mask"}, "mask": {}},
        "outputs": {"mean": {}, "tokens": {"trim_to": "ids"}},
    }
    rows = [row(i, ids=[(i * 7 + t) % 20 for t in range(1 + 3 * i)]) for i in range(5)]
    check_backend(TorchExportBackend(**kwargs), rows)
    backend = TorchExportBackend(**kwargs)
    backend.load()

    answers = backend.batch_predict(rows)

    assert [len(a.outputs["tokens"]) for a in answers] == [1, 4, 7, 10, 13]
    np.testing.assert_allclose(
        answers[3].outputs["mean"], np.mean(answers[3].outputs["tokens"], axis=0), rtol=1e-4
    )


def test_rows_of_other_shapes_are_grouped_where_nothing_is_padded(programs):
    backend = TorchExportBackend(
        programs["bag"], device="cpu", inputs={"ids": {"dtype": "int64"}, "mask": {}}
    )
    rows = [row(i, ids=[1] * (1 + i % 2), mask=[1.0] * (1 + i % 2)) for i in range(6)]
    check_backend(backend, rows)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"x": [1.0, 2, 3]}, "lacks scale; the model takes x, scale"),
        ({"x": [1.0, 2, 3], "scale": 1, "z": 1}, "has unknown z"),
        ({"x": ["a", "b", "c"], "scale": 1}, "input 'x'"),
    ],
)
def test_a_row_that_does_not_fit_the_program_is_named(inputs, message, programs):
    backend = TorchExportBackend(programs["net"], device="cpu")
    backend.load()
    with pytest.raises(ValueError, match=rf"{UUID(int=8)}.*{message}"):
        backend.batch_predict([*net_rows(2), row(7, **inputs)])


def test_fields_that_do_not_fit_are_refused_at_load(programs, onnx_files):
    with pytest.raises(SpecError, match=r"takes 2 arguments \(x, scale\)"):
        TorchExportBackend(programs["net"], inputs=["x"], device="cpu").load()
    with pytest.raises(SpecError, match=r"inputs: x\.padding"):
        TorchExportBackend(programs["net"], inputs={"x": {"padding": 0}})
    with pytest.raises(
        SpecError, match="has no outputs z; it has output_label, output_probability"
    ):
        OnnxBackend(onnx_files["iris"], outputs=["z"]).load()
    with pytest.raises(SpecError, match="does not exist"):
        OnnxBackend("/nowhere/model.onnx").load()


def test_a_ragged_input_is_invalid_before_any_model_loads():
    with pytest.raises(ValueError, match="'x' is ragged"):
        row(0, x=[[1, 2], [3]])
    with pytest.raises(ValueError, match="'x' must be a number"):
        row(0, x={"a": 1})


def test_an_onnx_classifier_answers_like_the_estimator_it_was_made_of(onnx_files, tmp_path):
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    x, y = load_iris(return_X_y=True)
    expected = LogisticRegression(max_iter=500).fit(x, y).predict_proba(x)
    model = ModelSpec(
        name="iris",
        model_type="tensors",
        backend="onnx",
        backend_kwargs={"path": onnx_files["iris"], "device": "cpu"},
    )
    source, sink = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [{"model_type": "tensors", "model_name": "m", "inputs": {"X": v}} for v in x.tolist()]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))

    result = BatchRunner(model).run(
        BatchSpec(source=str(source), sink=str(sink), batch_size=64, compute="local")
    )

    answers = [a["outputs"] for a in read_rows(sink)]
    assert [a["output_label"] for a in answers] == expected.argmax(axis=1).tolist()
    found = [[a["output_probability"][k] for k in "012"] for a in answers]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert result.model_digest.startswith("sha256:")


def test_onnx_inputs_can_be_padded_and_batches_be_of_fixed_size(onnx_files):
    rows = [row(i, ids=[float(t + i) for t in range(1 + i)]) for i in range(4)]
    inputs = {"ids": {"pad": 9.0, "mask": "mask"}}
    arguments = {"path": onnx_files["bag"], "inputs": inputs, "device": "cpu"}
    check_backend(OnnxBackend, rows, backend_kwargs=arguments)
    backend = OnnxBackend(**arguments)
    backend.load()
    words = OnnxBackend(onnx_files["words"], device="cpu")
    words.load()

    assert [a.outputs["total"] for a in backend.batch_predict(rows)] == [
        sum(r.inputs["ids"]) for r in rows
    ]
    texts = [row(0, text="Ärger"), row(1, text="UP")]
    assert [a.outputs["twice"] for a in words.batch_predict(texts)] == ["ÄrgerÄrger", "UPUP"]


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
def test_a_program_answers_like_its_module_and_refuses_what_is_beyond_its_type(name, tmp_path):
    import torch

    class Squash(torch.nn.Module):
        def forward(self, x):
            return x.clamp(-1000, 1000) / (1 + x.abs().clamp(max=1000))

    dtype = getattr(torch, name)
    example = torch.ones(2, 3, dtype=dtype)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(Squash(), (example,), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "squash.pt2")
    backend = TorchExportBackend(str(tmp_path / "squash.pt2"), device="cpu")
    backend.load()
    values = [[1.0, -2.0, 3], [0, None, 1e-3]]
    too_large = 70000 if name == "float16" else 1e39

    answers = backend.batch_predict(
        [*backend.warmup_requests(), *(row(i, x=v) for i, v in enumerate(values))]
    )

    tensor = torch.tensor([[1.0, -2.0, 3], [0, float("nan"), 1e-3]], dtype=dtype)
    found = [a.outputs["output"] for a in answers[1:]]
    np.testing.assert_array_equal(found, Squash()(tensor).float().numpy())
    with pytest.raises(
        ValueError, match=rf"{UUID(int=9)}: input 'x': .*\(at 2\) is beyond .*{name}"
    ):
        backend.batch_predict([row(0, x=values[0]), row(8, x=[1, 2, too_large])])


@pytest.mark.parametrize(
    ("kind", "too_large"), [("FLOAT16", 70000), ("FLOAT", 1e39), ("INT8", 200)]
)
def test_an_onnx_model_that_clips_never_sees_a_number_beyond_its_type(kind, too_large, tmp_path):
    import onnx
    import onnxruntime
    from onnx import helper as h

    dtype = getattr(onnx.TensorProto, kind)
    graph = h.make_graph(
        [h.make_node("Clip", ["x", "low", "high"], ["y"])],
        "g",
        [h.make_tensor_value_info("x", dtype, ["b", "n"])],
        [h.make_tensor_value_info("y", dtype, ["b", "n"])],
        [h.make_tensor("low", dtype, [], [-100]), h.make_tensor("high", dtype, [], [100])],
    )
    path = str(tmp_path / "clip.onnx")
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 20)], ir_version=9), path)
    backend = OnnxBackend(path, device="cpu")
    backend.load()
    values = [[1, -120], [7, 100]]

    answers = backend.batch_predict([row(i, x=v) for i, v in enumerate(values)])

    by_hand = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(
        None, {"x": np.array(values, dtype=h.tensor_dtype_to_np_dtype(dtype))}
    )
    np.testing.assert_array_equal([a.outputs["y"] for a in answers], by_hand[0])
    with pytest.raises(ValueError, match=rf"{UUID(int=9)}: input 'x': {re.escape(str(too_large))}"):
        backend.batch_predict([row(0, x=values[0]), row(8, x=[too_large, 1])])
    gap = [1, None]
    if kind == "INT8":
        with pytest.raises(ValueError, match=r"input 'x': null \(at 1\) is a missing value"):
            backend.predict(row(1, x=gap))
    else:
        assert math.isnan(backend.predict(row(1, x=gap)).outputs["y"][1])


@pytest.mark.parametrize("column", [["seats"], ["plan", "seats"]])
def test_a_missing_number_of_an_exported_pipeline_is_filled_in_as_by_the_pipeline(column, tmp_path):
    import onnx
    import pandas as pd
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LinearRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    table = pd.DataFrame({"plan": ["a", "b", "a", "b"], "seats": [1.0, 2, np.nan, 4]})[column]
    parts = [(SimpleImputer(), ["seats"]), (OneHotEncoder(handle_unknown="ignore"), column[:-1])]
    columns = make_column_transformer(*parts[: len(column)])
    pipeline = make_pipeline(columns, LinearRegression()).fit(table, [1.0, 2, 3, 5])
    kinds = {"plan": StringTensorType([None, 1]), "seats": FloatTensorType([None, 1])}
    exported = to_onnx(pipeline, initial_types=[(c, kinds[c]) for c in column])
    onnx.save(exported, tmp_path / "m.onnx")
    backend = OnnxBackend(str(tmp_path / "m.onnx"), device="cpu")
    backend.load()
    inputs = {"plan": ["a"], "seats": [None]}

    found = backend.predict(row(0, **{c: inputs[c] for c in column})).outputs["variable"]

    expected = pipeline.predict(pd.DataFrame({"plan": ["a"], "seats": [np.nan]})[column])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
