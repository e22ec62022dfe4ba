"""Exported torch programs and ONNX files, made here, over rows of named arrays."""

from __future__ import annotations

import json
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


def test_a_program_in_half_precision_takes_plain_numbers(tmp_path):
    import torch

    layer = torch.nn.Linear(3, 2).to(torch.bfloat16)
    example = torch.ones(2, 3, dtype=torch.bfloat16)
    path = tmp_path / "half.pt2"
    torch.export.save(torch.export.export(layer, (example,)), path)
    backend = TorchExportBackend(str(path), device="cpu")
    backend.load()

    answers = backend.batch_predict([*backend.warmup_requests(), row(1, input=[1.0, 2.0, 3.0])])

    assert len(answers[1].outputs["output"]) == 2
