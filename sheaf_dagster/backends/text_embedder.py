"""Text embeddings through sentence-transformers."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from copy import copy
from typing import Any, Self

from pydantic import BaseModel

from sheaf_dagster.backends.base import ModelBackend
from sheaf_dagster.backends.common.digest import weights_digest
from sheaf_dagster.backends.common.libraries import check_dtype, require, use_own_threads
from sheaf_dagster.backends.common.vectors import embedding_responses, normalized
from sheaf_dagster.backends.language.prompts import embeddings_body
from sheaf_dagster.backends.language.text_encoder import (
    Encoded,
    Encoder,
    dimension_of,
    encoder_of,
)
from sheaf_dagster.contracts import (
    OPENAI_BATCH,
    EmbeddingRequest,
    ModelType,
    OpenAIBatchRequest,
)
from sheaf_dagster.errors import SpecError

__all__ = ["SentenceTransformersBackend"]

_NAME = "sentence_transformers"
_FIELDS = frozenset({"model", "input", "dimensions", "encoding_format", "user"})
_MODEL_ID = "sentence-transformers/all-MiniLM-L6-v2"


class SentenceTransformersBackend(ModelBackend):
    """Embeds texts, any number of them in a row.

    Texts are tokenised ahead of the network. Rows within a window of the file are sorted by length, so
    that little is padding, both with ``batch_size`` and with ``batch_budget``. A budget counts tokens.

    Rows have the ``embedding`` contract, or are lines for ``/v1/embeddings`` in a file of the OpenAI
    batch form. The vectors of such lines have length 1, like those of that API.

    Args:
        model_id: A sentence-transformers model: local path or hub id.
        device: ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"`` …
        encode_batch_size: Texts that go through the network at once.
        prompt_name: One of the model's own prompts (``query``, ``document`` …), put before each text.
        prompt: A prompt of your own instead.
        truncate_dim: Length to cut vectors to, for models that are trained for it.
        dtype: ``float32``, ``bfloat16``, ``float16``, or ``auto`` for the saved type.
        max_seq_length: Tokens to read of a text, instead of the model's own limit.
        trust_remote_code: Allow a hub model's own code to run.
        revision: Revision of a hub model.

    Raises:
        MissingDependencyError: At load: sentence-transformers is not installed.
        SpecError: ``prompt`` and ``prompt_name`` are both given. At load: the model has no such
            prompt, or has fewer dimensions or tokens.
    """

    model_type = (ModelType.EMBEDDING, OPENAI_BATCH)
    window_rows = 2048

    @classmethod
    def identify(
        cls, *, model_id: str = _MODEL_ID, revision: str | None = None, **_: Any
    ) -> str | None:
        return weights_digest(model_id, revision)

    def __init__(
        self,
        model_id: str = _MODEL_ID,
        device: str = "auto",
        encode_batch_size: int = 64,
        trust_remote_code: bool = False,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate_dim: int | None = None,
        dtype: str = "float32",
        max_seq_length: int | None = None,
        revision: str | None = None,
    ) -> None:
        if prompt is not None and prompt_name is not None:
            raise SpecError("'prompt' and 'prompt_name' are both given; give one of them")
        for name, value in (
            ("truncate_dim", truncate_dim),
            ("max_seq_length", max_seq_length),
            ("encode_batch_size", encode_batch_size),
        ):
            if value is not None and value < 1:
                raise SpecError(f"{name!r} must be at least 1 (got {value})")
        self._prompt_name = prompt_name
        self._prompt = prompt
        self._truncate_dim = truncate_dim
        self._dtype = check_dtype(dtype)
        self._max_seq_length = max_seq_length
        self._model_id = model_id
        self._revision = revision
        self._device = device
        self._encode_batch_size = encode_batch_size
        self._trust_remote_code = trust_remote_code
        self._model: Any = None
        self._encoder: Encoder
        self._lengths = 0, False
        """Of the model's vectors, and whether they may be shorter; where the model isn't here."""

    def load(self) -> None:
        torch, library = require(_NAME, "sentence-transformers", "torch", "sentence_transformers")
        use_own_threads(torch)
        self._model = library.SentenceTransformer(
            self._model_id,
            device=None if self._device == "auto" else self._device,
            trust_remote_code=self._trust_remote_code,
            revision=self._revision,
            truncate_dim=self._truncate_dim,
            model_kwargs={
                "dtype": "auto" if self._dtype == "auto" else getattr(torch, self._dtype)
            },
        )
        self._settle()
        self._model.eval()
        self._encoder = encoder_of(self._model, self._prompt, self._encode_batch_size)

    def without_model(self) -> Self | None:
        encoder = self._encoder.without_model()
        if encoder is None:
            return None
        other = copy(self)
        other._lengths = dimension_of(self._model), self._model.truncate_dim is not None
        other._model, other._encoder = None, encoder
        return other

    def _settle(self) -> None:
        """Takes over what was asked of the loaded model, as far as it has it."""
        model, where = self._model, f"model {self._model_id}"
        name = self._prompt_name or model.default_prompt_name
        if self._prompt is None and name is not None:
            if name not in model.prompts:
                known = ", ".join(sorted(model.prompts)) or "none"
                raise SpecError(f"{where} has no prompt {name!r}; it has {known}")
            self._prompt = model.prompts[name]
        full = self._full_dimension()
        if self._truncate_dim is not None and full is not None and self._truncate_dim > full:
            raise SpecError(f"{where} has {full} dimensions; truncate_dim={self._truncate_dim}")
        if self._max_seq_length is not None:
            config = getattr(getattr(model[0], "auto_model", None), "config", None)
            most = getattr(config, "max_position_embeddings", None)
            if most is not None and self._max_seq_length > most:
                raise SpecError(
                    f"{where} reads {most} tokens; max_seq_length={self._max_seq_length}"
                )
            marks = getattr(model.tokenizer, "num_special_tokens_to_add", int)()
            if self._max_seq_length <= marks:
                raise SpecError(
                    f"{where} adds {marks} special tokens to a text; "
                    f"max_seq_length={self._max_seq_length} leaves no room for the text itself"
                )
            model.max_seq_length = self._max_seq_length

    def warmup_requests(self) -> Sequence[Any]:
        return [EmbeddingRequest(model_name="warm-up", texts=["a", "a longer text"])]

    def prepare(self, request: Any) -> Sequence[Any]:
        if isinstance(request, OpenAIBatchRequest):
            _check_line(request)
        elif request.texts is None:
            raise ValueError(
                f"request {request.request_id} has images, but this model embeds text; "
                "give 'texts', or use an image backend"
            )
        return self._encoder.prepared(request.texts or ())

    def size(self, prepared: Sequence[Any]) -> int:
        return self._encoder.size(prepared)

    def device_size(self, prepared: Sequence[Sequence[Any]], sizes: Sequence[int]) -> int:
        return self._encoder.device_size(prepared)

    def infer(self, prepared: Sequence[Sequence[Any]]) -> Any:
        return self._encoder.encoded(prepared)

    def respond(self, requests: Sequence[Any], outputs: Sequence[Encoded]) -> Sequence[BaseModel]:
        import numpy as np

        for request, found in zip(requests, outputs, strict=True):
            if not np.isfinite(found.vectors).all():
                raise ValueError(
                    f"{_name(request)}: its embedding isn't finite in {self._dtype}; use dtype "
                    "'bfloat16' or 'float32'"
                )
        if not any(isinstance(request, OpenAIBatchRequest) for request in requests):
            return self._embeddings(requests, outputs)
        return [
            self._line(request, found)
            if isinstance(request, OpenAIBatchRequest)
            else self._embeddings([request], [found])[0]
            for request, found in zip(requests, outputs, strict=True)
        ]

    def _embeddings(
        self, requests: Sequence[EmbeddingRequest], outputs: Sequence[Encoded]
    ) -> Sequence[BaseModel]:
        vectors = [
            normalized(found.vectors) if request.normalize else found.vectors
            for request, found in zip(requests, outputs, strict=True)
        ]
        return embedding_responses(requests, vectors, [found.truncated for found in outputs])

    def _line(self, request: OpenAIBatchRequest, found: Encoded) -> BaseModel:
        vectors = found.vectors[:, : self._asked_dimension(request)]
        if len(vectors):
            vectors = normalized(vectors)
        base64_asked = request.body.get("encoding_format") == "base64"
        told = [b64encode(v.astype("<f4").tobytes()).decode() for v in vectors]
        body = embeddings_body(request, told if base64_asked else vectors.tolist(), found.tokens)
        answer = request.answer(body)
        return answer.deviates("truncated") if found.truncated else answer

    def _asked_dimension(self, request: OpenAIBatchRequest) -> int:
        own, may_be_cut = self._lengths
        if self._model is not None:
            own, may_be_cut = dimension_of(self._model), self._model.truncate_dim is not None
        asked = request.body.get("dimensions")
        if asked is None or asked == own:
            return own
        if not may_be_cut or not isinstance(asked, int) or not 0 < asked < own:
            raise ValueError(
                f"{_name(request)}: 'body.dimensions' is {asked}, but the model's vectors have {own}"
                + (
                    " at most"
                    if may_be_cut
                    else "; shorter ones are for models with 'truncate_dim'"
                )
            )
        return asked

    def _full_dimension(self) -> int | None:
        model = self._model
        kept, model.truncate_dim = model.truncate_dim, None
        try:
            return dimension_of(model)
        finally:
            model.truncate_dim = kept


def _name(request: Any) -> str:
    if isinstance(request, OpenAIBatchRequest):
        return f"row {request.custom_id!r}"
    return f"request {request.request_id}"


def _check_line(request: OpenAIBatchRequest) -> None:
    if request.url != "/v1/embeddings":
        raise ValueError(
            f"{_name(request)}: this model embeds, and doesn't answer {request.url}; use the "
            "backend 'transformers_pipeline' or 'vllm'"
        )
    given = {name for name, value in request.body.items() if value is not None}
    if unknown := sorted(given - _FIELDS):
        raise ValueError(
            f"{_name(request)}: 'body' has {', '.join(unknown)}, which isn't supported"
        )
