"""sheaf-serve's own backends where weights can be made: they keep the rules, and run."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path

import pytest

import sheaf_dagster as sd
from sheaf_dagster.backends import resolve_backend
from sheaf_dagster.backends.sheaf.drawing import seeded
from sheaf_dagster.testing import check_backend
from sheaf_dagster.testing.comparison import difference
from tests.backends.rules import WITHOUT_A_WORKER
from tests.backends.sheaf_rows import (
    floats,
    png,
    requests,
)
from tests.conftest import read_rows


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, models) -> dict[str, str]:
    """Random weights of small architectures, saved as the hub has them."""
    import torch
    from transformers import BertConfig, BertForMaskedLM, BertTokenizer

    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("tiny")
    letters = root / "letters"
    letters.mkdir()
    (letters / "vocab.txt").write_text(
        "\n".join(
            ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"acgtno", *map("##{}".format, "acgtno")]
        )
    )
    BertTokenizer(str(letters / "vocab.txt")).save_pretrained(letters)
    config = BertConfig(
        vocab_size=17, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(letters)
    return {
        **{name: models[name] for name in ("dinov2", "bolt", "t5")},
        **_save_models_that_see(root / "seeing"),
        "letters": str(letters),
    }


def _save_models_that_see(root: Path) -> dict[str, str]:
    import transformers as t

    size = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
    square = {"height": 32, "width": 32}
    made = {
        "yolos": (
            t.YolosForObjectDetection(
                t.YolosConfig(
                    **size, intermediate_size=64, image_size=[32, 32], patch_size=8,
                    num_detection_tokens=5,
                )
            ),
            t.YolosImageProcessorPil(size=square),
        ),
        "dpt": (
            t.DPTForDepthEstimation(
                t.DPTConfig(
                    **size, intermediate_size=64, image_size=32, patch_size=8,
                    backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8] * 4,
                    fusion_hidden_size=8,
                )
            ),
            t.DPTImageProcessorPil(size=square),
        ),
        "videomae": (
            t.VideoMAEModel(
                t.VideoMAEConfig(
                    **size, intermediate_size=64, image_size=32, patch_size=8, num_frames=2
                )
            ),
            t.VideoMAEImageProcessorPil(size={"shortest_edge": 32}, crop_size=square),
        ),
        "vitpose": (
            t.VitPoseForPoseEstimation(
                t.VitPoseConfig(
                    backbone_config=t.VitPoseBackboneConfig(
                        **size, image_size=[32, 24], patch_size=[8, 8], out_indices=[4]
                    )
                )
            ),
            t.VitPoseImageProcessorPil(size={"height": 32, "width": 24}),
        ),
    }  # fmt: skip
    for name, (model, processor) in made.items():
        model.save_pretrained(root / name)
        processor.save_pretrained(root / name)
    return {name: str(root / name) for name in made}


CASES = {
    "pointnet": (
        "point_cloud",
        {},
        [{}, {"task": "classify"}, {"points_b64": floats(9, 3), "n_points": 9}],
    ),
    "dinov2": (
        "embedding",
        {"model_name": "dinov2"},
        [
            {"texts": None, "images_b64": [png(), png((40, 50), 1)]},
            {"texts": None, "images_b64": [png((64, 20), 2)], "normalize": False},
        ],
    ),
    "nucleotide_transformer": (
        "genomic",
        {"model_name": "letters"},
        [{}, {"sequences": ["AACC", "GGTTA"], "pooling": "cls"}],
    ),
    "molformer": ("small_molecule", {"model_name": "letters"}, [{}, {"smiles": ["CO", "N"]}]),
    "chronos2": (
        "time_series",
        {"model_id": "bolt"},
        [
            {"history": [float(t % 7) for t in range(30)]},
            {"history": [float(t % 5) for t in range(41)], "horizon": 5},
            {"history": [1, 2, 3.5, 4] * 8, "output_mode": "quantiles", "quantile_levels": [0.1]},
        ],
    ),
    "chronos2 that draws": (
        "time_series",
        {"model_id": "t5"},
        [
            {"history": [float(t % 7) for t in range(30)]},
            {"history": [1.0, 2, 3] * 9, "output_mode": "samples", "num_samples": 3},
            {"history": [3.0, 2, 2] * 9, "output_mode": "samples", "num_samples": 3},
            {"history": [1.0, 2] * 9, "output_mode": "quantiles", "quantile_levels": [0.05]},
        ],
    ),
    "esmc": (
        "protein_language",
        {"model_name": "letters"},
        [{"sequences": ["ACGT", "AC"]}, {"sequences": ["TTGGA"], "return_embeddings": True}],
    ),
    "detr": (
        "detection",
        {"model_name": "yolos"},
        [{"threshold": 0.1}, {"image_b64": png((64, 20), 2), "threshold": 0.1}],
    ),
    "depth-anything": (
        "depth",
        {"model_name": "dpt"},
        [{}, {"image_b64": png((64, 20), 2), "normalize": False}],
    ),
    "videomae": (
        "video",
        {"model_name": "videomae"},
        [{}, {"frames_b64": [png(seed=4), png(seed=5)], "pooling": "mean"}],
    ),
    "prithvi": (
        "geospatial",
        {"model_name": "videomae"},
        [
            {
                "pixels_b64": floats(2, 3, 32, 32),
                "n_time": 2,
                "n_bands": 3,
                "height": 32,
                "width": 32,
                "band_names": ["r", "g", "b"],
                "normalize": normalize,
            }
            for normalize in (True, False)
        ],
    ),
    "vitpose": (
        "pose",
        {"model_name": "vitpose"},
        [{}, {"image_b64": png((64, 20), 2), "bboxes": [[0, 0, 30, 20], [5, 5, 20, 10]]}],
    ),
}


@pytest.mark.model
@pytest.mark.parametrize("name", CASES)
def test_those_that_run_offline_keep_the_rules(name, tiny):
    model_type, kwargs, rows = CASES[name]
    kwargs = {k: tiny[v] for k, v in kwargs.items()}
    backend, asked = resolve_backend(f"sheaf:{name.split()[0]}"), requests(model_type, rows)
    check_backend(backend, asked, backend_kwargs=kwargs, rules=WITHOUT_A_WORKER)

    ours = backend(**kwargs)
    ours.load()
    for request, answer in zip(asked, ours.batch_predict(asked), strict=True):
        with seeded(request.request_id.bytes):
            by_hand = ours._backend.predict(ours._request.model_validate(request.model_dump()))
        found = answer.model_dump(exclude={"metadata"})
        assert difference(by_hand.model_dump(exclude={"metadata"}), found, 1e-5) is None
    if kwargs:
        (argument,) = kwargs
        assert backend.identify(**kwargs).startswith(f"{argument}=sha256:")


@pytest.mark.model
def test_null_in_a_history_is_a_missing_value(tiny):
    backend = resolve_backend("sheaf:chronos2")(model_id=tiny["bolt"])
    backend.load()
    history = [float(t % 7) for t in range(30)]
    (request,) = requests("time_series", [{"history": [*history[:9], None, *history[10:]]}])

    (answer,) = backend.batch_predict([request])

    asked = {**request.model_dump(), "history": [*history[:9], math.nan, *history[10:]]}
    by_hand = backend._backend.predict(backend._request.model_validate(asked))
    assert answer.mean == by_hand.mean
    assert all(map(math.isfinite, answer.mean))


@pytest.mark.model
def test_a_sampler_draws_the_same_paths_again(tiny):
    backend = resolve_backend("sheaf:chronos2")(model_id=tiny["t5"])
    backend.load()
    rows = requests(
        "time_series",
        [{"history": [1.0, 2, 3] * 9, "output_mode": "samples", "num_samples": n} for n in (2, 3)],
    )

    first = backend.batch_predict(rows)
    again = backend.batch_predict(rows)

    assert [len(a.samples) for a in first] == [2, 3], "each row its own number"
    assert [a.model_dump() for a in first] == [a.model_dump() for a in again]


@pytest.mark.model
@pytest.mark.ray
def test_a_file_runs_on_workers_with_pictures_by_uri(tiny, tmp_path, ray_cluster):
    (tmp_path / "a.png").write_bytes(base64.b64decode(png()))
    inline = {"model_type": "embedding", "model_name": "m", "images_b64": [png()]}
    by_uri = {"model_type": "embedding", "model_name": "m", "image_uris": [str(tmp_path / "a.png")]}
    (tmp_path / "in.jsonl").write_text(json.dumps(inline) + "\n" + json.dumps(by_uri) + "\n")
    model = sd.ModelSpec(
        name="dinov2",
        model_type="embedding",
        backend="sheaf:dinov2",
        backend_kwargs={"model_name": tiny["dinov2"]},
    )

    result = sd.BatchRunner(model).run(
        sd.BatchSpec(
            source=str(tmp_path / "in.jsonl"),
            sink=str(tmp_path / "out.jsonl"),
            compute="actors",
            num_actors=1,
        )
    )

    one, two = read_rows(tmp_path / "out.jsonl")
    assert result.rows == 2
    assert result.model_digest.startswith("model_name=sha256:")
    assert one["embeddings"] == two["embeddings"]
