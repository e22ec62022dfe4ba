"""A model of one's own: a small network, trained here, and the backend that runs it."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np

import sheaf_dagster as sd
from sheaf_dagster.contracts import EmbeddingRequest, EmbeddingResponse

__all__ = ["SIDE", "DigitEncoder", "train_encoder"]

SIDE = 8
"""Height and width of a picture (pixels)."""


class DigitEncoder(sd.ModelBackend):
    """Embeds pictures of digits so that those of the same digit lie close together.

    Args:
        weights: File that ``train_encoder`` wrote.
    """

    model_type = "embedding"

    @classmethod
    def identify(cls, *, weights: str) -> str | None:
        """The hash of the weights: trained anew, it is another model."""
        return sd.weights_digest(weights)

    def __init__(self, weights: str) -> None:
        self._weights = weights
        self._layers: list[tuple[np.ndarray, np.ndarray]] = []

    def load(self) -> None:
        """Reads the weights."""
        with np.load(self._weights) as file:
            self._layers = [(file[f"w{i}"], file[f"b{i}"]) for i in range(len(file.files) // 2)]

    def batch_predict(self, requests: Sequence[EmbeddingRequest]) -> list[Any]:
        """Embeds the pictures of all rows in one pass."""
        pictures = [[_pixels(data) for data in _files(request)] for request in requests]
        flat = [pixels for row in pictures for pixels in row]
        x = np.array(flat, dtype=np.float32).reshape(len(flat), SIDE * SIDE)
        for weights, bias in self._layers:
            x = np.maximum(x @ weights + bias, 0.0)
        rows = np.split(x, np.cumsum([len(row) for row in pictures])[:-1]) if pictures else []
        return [
            EmbeddingResponse(
                request_id=request.request_id,
                model_name=request.model_name,
                embeddings=(_normalised(own) if request.normalize else own).tolist(),
                dim=x.shape[1],
            )
            for request, own in zip(requests, rows, strict=True)
        ]


def train_encoder(pixels: np.ndarray, labels: np.ndarray, weights: Path) -> float:
    """Trains a classifier and keeps all but its last layer; a few seconds on a CPU.

    Args:
        pixels: From 0 to 1 (shape: n × 64).
        labels: Digits (length n).
        weights: File to write.

    Returns:
        The classifier's accuracy on what it was trained on.
    """
    from sklearn.neural_network import MLPClassifier

    network = MLPClassifier((128, 32), max_iter=80, random_state=0, tol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it needn't converge to embed well
        network.fit(pixels, labels)
    layers = {}
    for i, (w, b) in enumerate(zip(network.coefs_[:-1], network.intercepts_[:-1], strict=True)):
        layers[f"w{i}"], layers[f"b{i}"] = w.astype(np.float32), b.astype(np.float32)
    temporary = weights.with_name(f".{weights.name}")
    with temporary.open("wb") as file:
        np.savez(file, **layers)
    temporary.replace(weights)
    return float(network.score(pixels, labels))


def _files(request: EmbeddingRequest) -> list[bytes]:
    if request.texts is not None:
        raise ValueError("this model embeds pictures; give 'image_uris' or 'images_b64'")
    inline = [base64.b64decode(image) for image in request.images_b64 or ()]
    return inline + [_read(uri) for uri in request.image_uris or ()]


def _read(uri: str) -> bytes:
    with fsspec.open(uri) as file:
        return file.read()


def _pixels(data: bytes) -> np.ndarray:
    from PIL import Image

    picture = Image.open(io.BytesIO(data)).convert("L").resize((SIDE, SIDE))
    return np.asarray(picture, dtype=np.float32).ravel() / 255.0


def _normalised(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
