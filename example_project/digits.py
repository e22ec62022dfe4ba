"""A catalogue of pictures → their embeddings, with a model that is trained on the way."""

import hashlib
import json
from functools import lru_cache

import dagster as dg
import numpy as np
from pydantic import Field

import sheaf_dagster as sd
from example_project.accuracy import read_responses
from example_project.digit_encoder import SIDE, train_encoder
from example_project.root import ROOT

__all__ = ["DIGIT_ASSETS", "DIGIT_CHECKS", "DIGIT_RESOURCES", "neighbour_agreement"]

FOLDER = ROOT / "digits"
WEIGHTS = FOLDER / "encoder.npz"
_GROUP = "digits"


class Catalogue(dg.Config):
    """Which pictures there are today."""

    replaced_every: int | None = Field(
        default=None, ge=1, description="Replace each n-th picture by one that is a pixel aside."
    )


@dg.asset(group_name=_GROUP, kinds={"png", "jsonl"})
def digit_pictures(context: dg.AssetExecutionContext, config: Catalogue) -> None:
    """1,797 handwritten digits (Alpaydin and Kaynak, UCI) as PNG files, and one request each."""
    from PIL import Image

    pixels, labels = load_pictures()
    (FOLDER / "pictures").mkdir(parents=True, exist_ok=True)
    lines = []
    for i, picture in enumerate(pixels):
        if config.replaced_every and i % config.replaced_every == 0:
            picture = np.roll(picture.reshape(SIDE, SIDE), 1, axis=1)
        path = FOLDER / "pictures" / f"{i:04}.png"
        Image.fromarray((picture.reshape(SIDE, SIDE) * 255).round().astype(np.uint8)).save(path)
        row = {
            "model_type": "embedding",
            "model_name": f"digit-{i:04}",
            "image_uris": [str(path)],
            # No fields of the contract: the model doesn't see them. The map is coloured by the first
            # one. The second one makes a row with another picture another row.
            "digit": int(labels[i]),
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        lines.append(json.dumps(row))
    temporary = FOLDER / ".requests.tmp"
    temporary.write_text("\n".join(lines) + "\n")
    temporary.replace(FOLDER / "requests.jsonl")
    context.add_output_metadata({"dagster/row_count": len(lines)})


@dg.asset(group_name=_GROUP, kinds={"scikitlearn"})
def digit_encoder(context: dg.AssetExecutionContext) -> None:
    """A network that is trained on every other picture, in a few seconds."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    pixels, labels = load_pictures()
    accuracy = train_encoder(pixels[::2], labels[::2], WEIGHTS)
    context.add_output_metadata(
        {"accuracy on what it was trained on": accuracy, "pictures": len(pixels[::2])}
    )


digit_embeddings = sd.build_batch_inference_asset(
    dg.AssetSpec(
        "digit_embeddings",
        group_name=_GROUP,
        description="32 numbers for each picture, read by its URI where the model runs.",
    ),
    deps=[digit_pictures, digit_encoder],
    source="{root}/digits/requests.jsonl",
    sink="{root}/digits/embeddings.jsonl",
    model="digit_encoder",
    batch_size=128,
    batch=sd.BatchOptions(reuse="previous"),
)


@dg.asset_check(asset=digit_embeddings, blocking=True)
def neighbours_show_the_same_digit() -> dg.AssetCheckResult:
    """The picture nearest to one that the model has not seen shows the same digit.

    It does only if each embedding is that of its own row's picture: were they shifted by one row,
    about one in six would be right.
    """
    _, labels = load_pictures()
    responses = read_responses(FOLDER / "embeddings.jsonl")
    vectors = np.array([r["embeddings"][0] for r in responses])
    named = [r["model_name"] == f"digit-{i:04}" for i, r in enumerate(responses)]
    agreement = neighbour_agreement(vectors, labels)
    shifted = neighbour_agreement(np.roll(vectors, 1, axis=0), labels)
    return dg.AssetCheckResult(
        passed=bool(len(responses) == len(labels) and all(named) and agreement > 0.95),
        metadata={
            "pictures": len(responses),
            "same digit": round(agreement, 4),
            "same digit if the rows were shifted by one": round(shifted, 4),
        },
    )


def neighbour_agreement(vectors: np.ndarray, labels: np.ndarray) -> float:
    """Share of the odd rows whose nearest even row (by cosine) has the same label."""
    similar = vectors[1::2] @ vectors[::2].T
    return float(np.mean(labels[::2][similar.argmax(axis=1)] == labels[1::2]))


@lru_cache(maxsize=1)
def load_pictures() -> tuple[np.ndarray, np.ndarray]:
    """Pixels from 0 to 1 (shape: 1797 × 64) and digits, from scikit-learn's own files."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.data / 16.0, digits.target


DIGIT_ASSETS = [digit_pictures, digit_encoder, digit_embeddings]
DIGIT_CHECKS = [neighbours_show_the_same_digit]
DIGIT_RESOURCES = {
    "digit_encoder": sd.ModelResource(
        name="digit-encoder",
        model_type="embedding",
        backend="example_project.digit_encoder:DigitEncoder",
        backend_kwargs={"weights": str(WEIGHTS)},
    )
}
