"""Image (and joint text) embeddings through transformers: CLIP, SigLIP, DINOv2 and others."""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

from pydantic import BaseModel

from sheaf_dagster.backends.base import ModelBackend
from sheaf_dagster.backends.common.device import from_device
from sheaf_dagster.backends.common.digest import weights_digest
from sheaf_dagster.backends.common.files import read_uri, resolve_options
from sheaf_dagster.backends.common.gates import Gate
from sheaf_dagster.backends.common.images import decode_image
from sheaf_dagster.backends.common.libraries import (
    check_dtype,
    pick_device,
    require,
    use_own_threads,
)
from sheaf_dagster.backends.common.vectors import embedding_responses, normalized
from sheaf_dagster.contracts import EmbeddingRequest, ModelType
from sheaf_dagster.errors import SpecError

__all__ = ["ImageEmbedderBackend"]

_NAME = "image_embedder"
_MODEL_ID = "openai/clip-vit-base-patch32"


@dataclass
class _Prepared:
    """A row's images as pixel values, or its texts as token ids."""

    inputs: Sequence[Any]
    are_texts: bool = False
    is_cut: bool = False
    """Whether a text is longer than the model reads."""


class _Embedded(NamedTuple):
    vectors: Any
    is_cut: bool


class ImageEmbedderBackend(ModelBackend):
    """Embeds images, and texts if the model has a text tower (CLIP, SigLIP).

    Images are given inline (``images_b64``) or by URI (``image_uris``). Threads read, decode and
    resize the images of the next batches while the network runs. A row may hold any number of images,
    of any size and mode. An image that can't be read or decoded fails its row. Models with a joint
    space return their projected features for images and texts, so that texts find images. Other
    models return the pooled output of their last layer. A text that is too long for the model is cut,
    and its answer is marked ``truncated``.

    Args:
        model_id: A transformers model: local path or hub id.
        device: ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"`` …
        dtype: ``float32``, ``bfloat16``, ``float16``, or ``auto`` for the saved type.
        pooling: For models without a joint space: ``auto`` (the model's own pooler, or else the
            first token), ``cls`` (the first token), or ``mean`` (of all tokens but the first).
        encode_batch_size: Images or texts that go through the network at once.
        read_threads: Images that are read at once. The number of images decoded at once is the
            number of CPUs.
        storage_options: Arguments of the fsspec file system for remote ``image_uris``. A value
            ``{"env": "NAME"}`` is read from the worker's environment.
        revision: Revision of a hub model.

    Raises:
        SpecError: ``encode_batch_size`` or ``read_threads`` is less than 1.
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
        for name, value in (
            ("encode_batch_size", encode_batch_size),
            ("read_threads", read_threads),
        ):
            if value < 1:
                raise SpecError(f"{name!r} must be at least 1 (got {value})")
        self._model_id = model_id
        self._device = device
        self._dtype = check_dtype(dtype)
        self._pooling = pooling
        self._encode_batch_size = encode_batch_size
        self.prepare_threads = read_threads
        self._storage_options = storage_options
        self._revision = revision
        self._options: dict[str, Any] = {}
        self._model: Any = None
        self._config_of_model: Any = None
        self._processor: Any = None
        self._tokenizer: Any = None
        self._no_tokenizer: Exception | None = None
        self._tokenizing = Gate(1)  # a tokenizer's settings are those of its last call
        self._dim = 0

    def load(self) -> None:
        transformers, torch, _ = require(_NAME, "vision", "transformers", "torch", "PIL.Image")
        use_own_threads(torch)
        self._options = resolve_options(self._storage_options)
        self._device = pick_device(torch, self._device)
        self._decoding = Gate()
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

    def without_model(self) -> Self:
        other = copy(self)
        other._config_of_model = self._config
        other._model = None
        return other

    def prepare(self, request: EmbeddingRequest) -> _Prepared:
        """A row's images read, decoded and resized, or its texts as tokens."""
        if request.texts is not None:
            return self._tokens(request)
        names = _inputs(request)
        return _Prepared([self._image(request, j) for j in range(len(names))])

    def size(self, prepared: _Prepared) -> int:
        """Pixels, or tokens."""
        if prepared.are_texts:
            return sum(map(len, prepared.inputs))
        return sum(int(image.shape[-2] * image.shape[-1]) for image in prepared.inputs)

    def device_size(self, prepared: Sequence[_Prepared], sizes: Sequence[int]) -> int:
        """Pixels, of which none is padded, and the tokens to which texts are filled up."""
        of_images = sum(s for row, s in zip(prepared, sizes, strict=True) if not row.are_texts)
        texts = (places for is_text, places in self._passes(prepared) if is_text)
        return of_images + sum(
            len(places) * self._filled([prepared[i].inputs[j] for i, j in places])
            for places in texts
        )

    def infer(self, prepared: Sequence[_Prepared]) -> Any:
        """Each row's vectors (shape: its inputs × dimensions)."""
        import numpy as np
        import torch

        passes = list(self._passes(prepared))

        def by_row(made: Any) -> list[_Embedded]:
            found = [np.zeros((len(row.inputs), self._dim), dtype=np.float32) for row in prepared]
            of_all = [place for _, places in passes for place in places]
            for (i, j), vector in zip(of_all, made, strict=True):
                found[i][j] = vector
            return [_Embedded(v, row.is_cut) for v, row in zip(found, prepared, strict=True)]

        if not passes:
            return by_row(())
        made = [
            (self._embed_tokens if are_texts else self._embed_pixels)(
                [prepared[i].inputs[j] for i, j in places]
            )
            for are_texts, places in passes
        ]
        return from_device(torch.cat(made).float(), by_row)

    def respond(
        self, requests: Sequence[EmbeddingRequest], outputs: Sequence[_Embedded]
    ) -> Sequence[BaseModel]:
        import numpy as np

        for request, (own, _) in zip(requests, outputs, strict=True):
            if not np.isfinite(own).all():
                raise ValueError(
                    f"request {request.request_id}: its embedding isn't finite in {self._dtype}; "
                    "use dtype 'bfloat16' or 'float32'"
                )
        vectors = [
            normalized(own) if request.normalize else own
            for request, (own, _) in zip(requests, outputs, strict=True)
        ]
        return embedding_responses(requests, vectors, [is_cut for _, is_cut in outputs])

    def _image(self, request: EmbeddingRequest, j: int) -> Any:
        """One image of a row as pixel values (shape: channels × height × width)."""
        if request.image_uris is not None:
            name = request.image_uris[j]
            try:
                data = read_uri(name, self._options)
            except OSError as e:
                raise type(e)(f"request {request.request_id}: {e}") from e
        else:
            name = f"image {j}"
            data = base64.b64decode((request.images_b64 or ())[j])
        with self._decoding:
            try:
                return self._pixels(decode_image(data))
            except ValueError as e:
                raise ValueError(f"request {request.request_id}: {name} {e}") from e

    def _passes(
        self, prepared: Sequence[_Prepared]
    ) -> Iterator[tuple[bool, list[tuple[int, int]]]]:
        """What goes through the network at once: whether it is texts, and each one's row and place."""
        # Most processors give one size; where one doesn't, sizes don't mix.
        groups: dict[tuple[int, ...] | None, list[tuple[int, int]]] = defaultdict(list)
        for i, row in enumerate(prepared):
            for j, one in enumerate(row.inputs):
                groups[None if row.are_texts else one.shape].append((i, j))
        for shape, places in groups.items():
            for start in range(0, len(places), self._encode_batch_size):
                yield shape is None, places[start : start + self._encode_batch_size]

    def _pixels(self, image: Any) -> Any:
        return self._processor(images=image, return_tensors="np")["pixel_values"][0]

    def _tokens(self, request: EmbeddingRequest) -> _Prepared:
        texts = list(request.texts or ())
        if not texts:
            return _Prepared([], are_texts=True)
        if self._tokenizer is None:
            why = f": {self._no_tokenizer}" if self._no_tokenizer else ""
            raise ValueError(
                f"request {request.request_id} has texts, but {self._model_id} embeds images only"
                f"{why}; give 'images_b64' or 'image_uris', or a model with a text tower"
            )
        with self._tokenizing:
            ids = self._tokenizer(texts, truncation=False, verbose=False)["input_ids"]
            is_cut = any(len(own) > self._text_length for own in ids)
            if is_cut:
                most = self._text_length
                ids = self._tokenizer(texts, truncation=True, max_length=most)["input_ids"]
        return _Prepared(ids, are_texts=True, is_cut=is_cut)

    @property
    def _config(self) -> Any:
        return self._config_of_model if self._model is None else self._model.config

    @property
    def _text_length(self) -> int:
        """Tokens that the model reads of a text."""
        config = getattr(self._config, "text_config", self._config)
        return int(getattr(config, "max_position_embeddings", 64))

    def _filled(self, ids: Sequence[Sequence[int]]) -> int:
        """Tokens to which texts that go through the network together are filled up."""
        # SigLIP was trained on, and pools, texts that fill their whole length.
        fill = "siglip" in str(self._config.model_type)
        return self._text_length if fill else max(map(len, ids))

    def _embed_pixels(self, pixels: list[Any]) -> Any:
        import torch

        values = self._on_device(pixels)
        with torch.inference_mode():
            if hasattr(self._model, "get_image_features"):
                return _features(self._model.get_image_features(pixel_values=values))
            output = self._model(pixel_values=values)
            pooled = getattr(output, "pooler_output", None)
            if self._pooling == "auto" and pooled is not None:
                return pooled.flatten(1)
            hidden = output.last_hidden_state
            if self._pooling == "mean":
                return hidden[:, 1:].mean(dim=1)
            return hidden[:, 0]

    def _on_device(self, pixels: list[Any]) -> Any:
        """Images of one size as a batch; from pinned memory the copy to a GPU waits for nothing."""
        import torch

        on_gpu = self._device.startswith("cuda")
        images = [torch.from_numpy(image) for image in pixels]
        shape = (len(images), *images[0].shape)
        batch = torch.empty(shape, dtype=images[0].dtype, pin_memory=on_gpu)
        torch.stack(images, out=batch)
        return batch.to(self._device, non_blocking=True).to(self._model.dtype)

    def _embed_tokens(self, ids: list[list[int]]) -> Any:
        import torch

        tokens = self._tokenizer.pad(
            {"input_ids": ids},
            padding="max_length",
            max_length=self._filled(ids),
            return_tensors="pt",
        ).to(self._device)
        tokens = {k: v for k, v in tokens.items() if k in ("input_ids", "attention_mask")}
        with torch.inference_mode():
            return _features(self._model.get_text_features(**tokens))


def _inputs(request: EmbeddingRequest) -> Sequence[str]:
    for given in (request.texts, request.images_b64, request.image_uris):
        if given is not None:
            return given
    return ()


def _features(found: Any) -> Any:
    # transformers 5 gives an output object whose pooler_output is the projection.
    return getattr(found, "pooler_output", found)


def _image_processor(transformers: Any, model_id: str, own: dict[str, Any]) -> Any:
    """The processor over PIL and numpy: the same pixels with or without torchvision."""
    try:
        return transformers.AutoImageProcessor.from_pretrained(model_id, backend="pil", **own)
    except TypeError:  # transformers 4
        return transformers.AutoImageProcessor.from_pretrained(model_id, use_fast=False, **own)
