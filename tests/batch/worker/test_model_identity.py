"""Other weights behind the same spec are another model."""

from __future__ import annotations

from pathlib import Path

import pytest

from sheaf_dagster import (
    BackendLoadError,
    BatchRunner,
    BatchSpec,
    ModelChangedError,
    PredictError,
)
from sheaf_dagster.backends import weights_digest
from sheaf_dagster.batch.worker import local_model
from tests.conftest import read_rows
from tests.toys import (
    OpaqueScaler,
    OpaqueScalerByProcess,
    Scaler,
    ScalerByProcess,
    scaler,
)


@pytest.fixture
def weights(tmp_path) -> Path:
    path = tmp_path / "factor.txt"
    path.write_text("2")
    return path


def values(path: Path) -> list[float]:
    return [row["value"] for row in read_rows(path)]


def job(source: str, sink: Path, **fields) -> BatchSpec:
    return BatchSpec(**{"source": source, "sink": str(sink), "compute": "local", **fields})


def test_weights_replaced_under_the_same_path_are_another_model(tmp_path, weights, write_rows):
    runner = BatchRunner(scaler(weights=str(weights)))
    spec = job(write_rows([1, 2]), tmp_path / "out.jsonl")
    first = runner.run(spec)
    assert runner.fingerprint(spec) == first.fingerprint
    assert runner.model_identity() == (first.model_digest, first.model_version)

    weights.write_text("3")
    changed = runner.fingerprint(spec)
    second = runner.run(spec)

    assert values(tmp_path / "out.jsonl") == [3, 6], "the process's loaded model is not used again"
    assert second.fingerprint == changed != first.fingerprint
    assert second.model_version == runner.model_identity()[1] != first.model_version
    assert second.model_digest == weights_digest(str(weights)) != first.model_digest


@pytest.mark.parametrize(("replaced", "resumed"), [(None, 95), ("3", 0)])
def test_parts_are_resumed_only_with_the_weights_that_made_them(
    tmp_path, weights, write_rows, replaced, resumed
):
    trouble = tmp_path / "trouble"
    trouble.touch()
    runner = BatchRunner(scaler(weights=str(weights), fail_while=str(trouble)))
    spec = job(write_rows(list(range(100))), tmp_path / "out.jsonl", batch_size=5)
    with pytest.raises(PredictError):
        runner.run(spec)

    trouble.unlink()
    if replaced:
        weights.write_text(replaced)
    result = runner.run(spec)

    factor = float(weights.read_text())
    assert result.resumed_rows == resumed
    assert values(tmp_path / "out.jsonl") == [i * factor for i in range(100)]


def test_parts_of_weights_that_are_known_only_after_the_load_are_not_mixed(
    tmp_path, weights, write_rows
):
    trouble = tmp_path / "trouble"
    trouble.touch()
    arguments = {"weights": str(weights), "fail_while": str(trouble)}
    spec = job(write_rows(list(range(100))), tmp_path / "out.jsonl", batch_size=5)
    with pytest.raises(PredictError):
        BatchRunner(scaler(OpaqueScaler, **arguments)).run(spec)

    trouble.unlink()
    weights.write_text("3")
    local_model._MODELS.clear()  # a process of its own would load anew
    runner = BatchRunner(scaler(OpaqueScaler, **arguments))
    with pytest.raises(ModelChangedError, match="other weights than those that made the parts"):
        runner.run(spec)
    result = runner.run(spec)

    assert result.resumed_rows == 0
    assert result.model_digest == "factor 3"
    assert values(tmp_path / "out.jsonl") == [3.0 * i for i in range(100)]


def test_parts_of_several_weights_that_a_killed_run_left_are_done_anew(
    tmp_path, weights, write_rows
):
    trouble = tmp_path / "trouble"
    trouble.touch()
    arguments = {"weights": str(weights), "fail_while": str(trouble)}
    runner = BatchRunner(scaler(OpaqueScaler, **arguments))
    spec = job(write_rows(list(range(100))), tmp_path / "out.jsonl", batch_size=5)
    with pytest.raises(PredictError):
        runner.run(spec)
    first, *rest = sorted(tmp_path.glob(".out.jsonl.sheaf/run-*/part-*"))
    head, _, tag = first.stem.rpartition("-m")
    first.rename(first.with_name(f"{head}-m{tag[::-1]}.jsonl"))

    trouble.unlink()
    result = runner.run(spec)

    assert rest
    assert result.resumed_rows == 0
    assert values(tmp_path / "out.jsonl") == [2.0 * i for i in range(100)]


def test_weights_that_change_while_they_are_loaded_are_refused(tmp_path, weights, write_rows):
    runner = BatchRunner(scaler(weights=str(weights), replaced_by="5"))
    spec = job(write_rows([1]), tmp_path / "out.jsonl")

    with pytest.raises(ModelChangedError, match="while they were loaded, they became sha256:"):
        runner.run(spec)

    assert not (tmp_path / "out.jsonl").exists()


def test_an_identity_that_cannot_be_found_is_an_error_before_anything_is_read(tmp_path):
    runner = BatchRunner(scaler(weights=3))

    with pytest.raises(BackendLoadError, match=r"identify\(\) of backend 'tests.toys:Scaler'"):
        runner.run(job(str(tmp_path / "missing.jsonl"), tmp_path / "out.jsonl"))


def test_a_model_that_cannot_be_closed_does_not_cost_the_next_one(
    tmp_path, weights, write_rows, monkeypatch, caplog
):
    def cannot(_):
        raise RuntimeError("stuck")

    monkeypatch.setattr(Scaler, "close", cannot)
    monkeypatch.setattr(local_model, "CACHE_SIZE", 1)
    source = write_rows([1])

    for cls in (Scaler, OpaqueScaler):
        BatchRunner(scaler(cls, weights=str(weights))).run(job(source, tmp_path / "out.jsonl"))

    assert "closing Scaler failed: stuck" in caplog.text


@pytest.mark.ray
@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (ScalerByProcess, "the weights of backend .* were process .*; this worker finds process"),
        (OpaqueScalerByProcess, "loaded other weights than those that made the parts of another"),
    ],
)
def test_workers_with_different_weights_end_the_job(
    tmp_path, weights, write_rows, ray_cluster, cls, message
):
    spec = job(
        write_rows(list(range(400))),
        tmp_path / "out.jsonl",
        batch_size=2,
        compute="actors",
        num_actors=2,
    )

    with pytest.raises(ModelChangedError, match=message):
        BatchRunner(scaler(cls, weights=str(weights), seconds=0.005)).run(spec)

    assert not (tmp_path / "out.jsonl").exists()
