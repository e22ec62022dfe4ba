"""Image (and joint text) embeddings through transformers: CLIP, SigLIP, DINOv2 and others."""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from sheaf_dagster.backends.base import ModelBackend
from sheaf_dagster.backends.common.digest import weights_digest
from sheaf_dagster.backends.common.files import read_uri, resolve_options
from sheaf_dagster.backends.common.images import decode_image
from sheaf_dagster.backends.common.libraries import (
    check_dtype,
    pick_device,
    require,
    use_own_threads,
)
from sheaf_dagster.contracts import EmbeddingRequest, EmbeddingResponse, ModelType

__all__ = ["ImageEmbedderBackend"]

_NAME = "image_embedder"
_MODEL_ID = "openai/clip-vit-base-patch32"


class ImageEmbedderBackend(ModelBackend):
    """Embeds images, and texts where the model has a text tower (CLIP, SigLIP).

    Images come inline (``images_b64``) or by URI (``image_uris``), which are read, decoded and
    resized by threads while the network runs. Rows may hold any number of images of any size and
    mode. One that can't be read or decoded is its row's error. Models with a joint space give
    their projected features for both kinds, so that texts find images; others give the pooled
    output of their last layer. A text that is longer than the model reads is cut, which is noted
    in its answer.

    Args:
        model_id: A transformers model: local path or hub id.
        device: ``"auto"`` (a GPU where there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"`` …
        dtype: ``float32``, ``bfloat16``, ``float16``, or ``auto`` as saved.
        pooling: For models without a joint space: ``auto`` (the model's own pooler, else the
            first token), ``cls`` (the first token), or ``mean`` (of all but the first).
        encode_batch_size: Images or texts that go through the network at once.
        read_threads: Images that are read and decoded at once.
        storage_options: Arguments of the fsspec file system of remote ``image_uris``; a value
            ``{"env": "NAME"}`` is read from the worker's environment.
        revision: Revision of a hub model.

    Raises:
        MissingDependencyError: At load: transformers, torch or Pillow is not installed.
    """

    model_type = ModelType.EMBEDDING

    @classmethod
    def identify(
        cls, *, model_id: str = _MODEL_ID, revision: str | None = None, **_: Any
    ) -> str | None:
        return weights_digest(model_id, revision)

    def __init__(
        self,
        model_id: str = _MODEL_ID,
        device: str = "auto",
        dtype: str = "float32",
        pooling: Literal["auto", "cls", "mean"] = "auto",
        encode_batch_size: int = 32,
        read_threads: int = 16,
        storage_options: dict[str, Any] | None = None,
        revision: str | None = None,
    ) -> None:
        self._model_id = model_id
        self._device = device
        self._dtype = check_dtype(dtype)
        self._pooling = pooling
        self._encode_batch_size = encode_batch_size
        self._read_threads = read_threads
        self._storage_options = storage_options
        self._revision = revision
        self._options: dict[str, Any] = {}
        self._model: Any = None
        self._processor: Any = None
        self._tokenizer: Any = None
        self._no_tokenizer: Exception | None = None
        self._dim = 0

    def load(self) -> None:
        transformers, torch, _ = require(_NAME, "vision", "transformers", "torch", "PIL.Image")
        use_own_threads(torch)
        self._options = resolve_options(self._storage_options)
        self._device = pick_device(torch, self._device)
        own = {} if self._revision is None else {"revision": self._revision}
        dtype = "auto" if self._dtype == "auto" else getattr(torch, self._dtype)
        self._model = transformers.AutoModel.from_pretrained(self._model_id, dtype=dtype, **own)
        self._model = self._model.to(self._device).eval()
        self._processor = _image_processor(transformers, self._model_id, own)
        if hasattr(self._model, "get_text_features"):
            try:
                self._tokenizer = transformers.AutoTokenizer.from_pretrained(self._model_id, **own)
            except Exception as e:  # images can be embedded without
                self._no_tokenizer = e
        from PIL import Image

        # Warms the network up, too.
        blank = self._pixels(Image.new("RGB", (64, 64)))
        self._dim = int(self._embed_pixels([blank]).shape[1])

    def batch_predict(self, requests: Sequence[EmbeddingRequest]) -> list[EmbeddingResponse]:  # type: ignore[override]
        import numpy as np

        vectors: dict[tuple[int, int], Any] = {}
        cut: set[int] = set()
        for keys, found in self._text_vectors(requests, cut):
            vectors.update(zip(keys, found, strict=True))
        for keys, found in self._image_vectors(requests):
            vectors.update(zip(keys, found, strict=True))
        responses = []
        for i, request in enumerate(requests):
            n = len(_inputs(request))
            own = np.array([vectors[i, j] for j in range(n)], dtype=np.float32)
            own = own.reshape(n, self._dim)
            if not np.isfinite(own).all():
                raise ValueError(
                    f"request {request.request_id}: its embedding isn't finite in {self._dtype}; "
                    "use dtype 'bfloat16' or 'float32'"
                )
            if request.normalize:
                own = own / np.maximum(np.linalg.norm(own, axis=1, keepdims=True), 1e-12)
            response = EmbeddingResponse(
                request_id=request.request_id,
                model_name=request.model_name,
                embeddings=own.tolist(),
                dim=self._dim,
            )
            responses.append(response.deviates("truncated") if i in cut else response)
        return responses

    def _image_vectors(
        self, requests: Sequence[EmbeddingRequest]
    ) -> Iterator[tuple[list[tuple[int, int]], Any]]:
        places = [
            (i, j)
            for i, request in enumerate(requests)
            if request.texts is None
            for j in range(len(_inputs(request)))
        ]
        if not places:
            return
        threads = max(1, min(self._read_threads, len(places)))
        pool = ThreadPoolExecutor(threads, thread_name_prefix="sheaf-images")
        try:
            ready = pool.map(lambda place: self._prepare(requests[place[0]], place[1]), places)
            # Most processors give one size; where one doesn't, sizes don't mix.
            groups: dict[tuple[int, ...], list[tuple[tuple[int, int], Any]]] = defaultdict(list)
            for place, pixels in zip(places, ready, strict=True):
                group = groups[pixels.shape]
                group.append((place, pixels))
                if len(group) == self._encode_batch_size:
                    yield [p for p, _ in group], self._embed_pixels([x for _, x in group])
                    group.clear()
            for group in groups.values():
                if group:
                    yield [p for p, _ in group], self._embed_pixels([x for _, x in group])
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _prepare(self, request: EmbeddingRequest, j: int) -> Any:
        """One image of a row as pixel values (runs in a thread)."""
        if request.image_uris is not None:
            name = request.image_uris[j]
            try:
                data = read_uri(name, self._options)
            except OSError as e:
                raise type(e)(f"request {request.request_id}: {e}") from e
        else:
            name = f"image {j}"
            data = base64.b64decode((request.images_b64 or ())[j])
        try:
            return self._pixels(decode_image(data))
        except ValueError as e:
            raise ValueError(f"request {request.request_id}: {name} {e}") from e

    def _pixels(self, image: Any) -> Any:
        return self._processor(images=image, return_tensors="np")["pixel_values"][0]

    def _embed_pixels(self, pixels: list[Any]) -> Any:
        import numpy as np
        import torch

        values = torch.from_numpy(np.stack(pixels)).to(self._device, self._model.dtype)
        with torch.inference_mode():
            if hasattr(self._model, "get_image_features"):
                return _array(self._model.get_image_features(pixel_values=values))
            output = self._model(pixel_values=values)
            pooled = getattr(output, "pooler_output", None)
            if self._pooling == "auto" and pooled is not None:
                return _array(pooled.flatten(1))
            hidden = output.last_hidden_state
            if self._pooling == "mean":
                return _array(hidden[:, 1:].mean(dim=1))
            return _array(hidden[:, 0])

    def _text_vectors(
        self, requests: Sequence[EmbeddingRequest], cut: set[int]
    ) -> Iterator[tuple[list[tuple[int, int]], Any]]:
        """The texts' places and vectors; rows of which a text is cut are added to ``cut``."""
        import torch

        places = [(i, j) for i, r in enumerate(requests) for j in range(len(r.texts or ()))]
        if not places:
            return
        if self._tokenizer is None:
            request = requests[places[0][0]]
            why = f": {self._no_tokenizer}" if self._no_tokenizer else ""
            raise ValueError(
                f"request {request.request_id} has texts, but {self._model_id} embeds images only"
                f"{why}; give 'images_b64' or 'image_uris', or a model with a text tower"
            )
        config = self._model.config
        length = getattr(getattr(config, "text_config", config), "max_position_embeddings", 64)
        # SigLIP was trained on, and pools, texts that fill their whole length.
        padding = "max_length" if "siglip" in str(config.model_type) else True
        for start in range(0, len(places), self._encode_batch_size):
            some = places[start : start + self._encode_batch_size]
            texts = [(requests[i].texts or ())[j] for i, j in some]
            whole = self._tokenizer(texts, truncation=False, padding=False, verbose=False)
            lengths = map(len, whole["input_ids"])
            cut.update(i for (i, _), n in zip(some, lengths, strict=True) if n > length)
            tokens = self._tokenizer(
                texts,
                padding=padding,
                truncation=True,
                max_length=length,
                return_tensors="pt",
            ).to(self._device)
            tokens = {k: v for k, v in tokens.items() if k in ("input_ids", "attention_mask")}
            with torch.inference_mode():
                yield some, _array(self._model.get_text_features(**tokens))


def _inputs(request: EmbeddingRequest) -> Sequence[str]:
    for given in (request.texts, request.images_b64, request.image_uris):
        if given is not None:
            return given
    return ()


def _array(features: Any) -> Any:
    # transformers 5 gives an output object whose pooler_output is the projection.
    return getattr(features, "pooler_output", features).float().cpu().numpy()


def _image_processor(transformers: Any, model_id: str, own: dict[str, Any]) -> Any:
    """The processor over PIL and numpy: the same pixels with or without torchvision."""
    try:
        return transformers.AutoImageProcessor.from_pretrained(model_id, backend="pil", **own)
    except TypeError:  # transformers 4
        return transformers.AutoImageProcessor.from_pretrained(model_id, use_fast=False, **own)
