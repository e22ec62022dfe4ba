"""Text embeddings through sentence-transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from sheaf_dagster.backends.base import ModelBackend
from sheaf_dagster.backends.digest import weights_digest
from sheaf_dagster.backends.libraries import require, use_own_threads
from sheaf_dagster.backends.prompts import embeddings_body
from sheaf_dagster.contracts import (
    OPENAI_BATCH,
    EmbeddingRequest,
    EmbeddingResponse,
    ModelType,
    OpenAIBatchRequest,
)

__all__ = ["SentenceTransformersBackend"]

_NAME = "sentence_transformers"
_MODEL_ID = "sentence-transformers/all-MiniLM-L6-v2"


class SentenceTransformersBackend(ModelBackend):
    """Embeds the texts of a whole batch in one pass, whatever number each row has.

    Rows are those of the ``embedding`` contract, or lines for ``/v1/embeddings`` of a file of the
    OpenAI batch form, whose vectors have length 1 as that API's have.

    Args:
        model_id: A sentence-transformers model: local path or hub id.
        device: ``"auto"`` (a GPU where there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"`` …
        encode_batch_size: Texts that go through the network at once.
        trust_remote_code: Allow a hub model's own code to run.

    Raises:
        MissingDependencyError: At load: sentence-transformers is not installed.
    """

    model_type = (ModelType.EMBEDDING, OPENAI_BATCH)

    @classmethod
    def identify(cls, *, model_id: str = _MODEL_ID, **_: Any) -> str | None:
        return weights_digest(model_id)

    def __init__(
        self,
        model_id: str = _MODEL_ID,
        device: str = "auto",
        encode_batch_size: int = 64,
        trust_remote_code: bool = False,
    ) -> None:
        self._model_id = model_id
        self._device = device
        self._encode_batch_size = encode_batch_size
        self._trust_remote_code = trust_remote_code
        self._model: Any = None

    def load(self) -> None:
        torch, library = require(_NAME, "sentence-transformers", "torch", "sentence_transformers")
        use_own_threads(torch)
        self._model = library.SentenceTransformer(
            self._model_id,
            device=None if self._device == "auto" else self._device,
            trust_remote_code=self._trust_remote_code,
        )

    def warmup_requests(self) -> Sequence[Any]:
        return [EmbeddingRequest(model_name="warm-up", texts=["a", "a longer text"])]

    def batch_predict(self, requests: Sequence[Any]) -> list[BaseModel]:
        import numpy as np

        for request in requests:
            if isinstance(request, OpenAIBatchRequest):
                _check_line(request)
            elif request.texts is None:
                raise ValueError(
                    f"request {request.request_id} has images, but this model embeds text; "
                    "give 'texts', or use an image backend"
                )
        texts = [text for request in requests for text in request.texts or ()]
        vectors = (
            self._model.encode(
                texts,
                batch_size=self._encode_batch_size,
                convert_to_numpy=True,
                normalize_embeddings=False,
                show_progress_bar=False,
            )
            if texts
            else np.zeros((0, self._dimension()), dtype=np.float32)
        )
        responses: list[BaseModel] = []
        at = 0
        for request in requests:
            own = vectors[at : at + len(request.texts or ())]
            at += len(own)
            line = isinstance(request, OpenAIBatchRequest)
            if len(own) and (line or request.normalize):
                own = own / np.maximum(np.linalg.norm(own, axis=1, keepdims=True), 1e-12)
            if isinstance(request, OpenAIBatchRequest):
                tokens = sum(len(self._model.tokenizer(t)["input_ids"]) for t in request.texts)
                responses.append(request.answer(embeddings_body(request, own.tolist(), tokens)))
                continue
            responses.append(
                EmbeddingResponse(
                    request_id=request.request_id,
                    model_name=request.model_name,
                    embeddings=own.tolist(),
                    dim=int(vectors.shape[1]),
                )
            )
        return responses

    def _dimension(self) -> int:
        get = getattr(self._model, "get_embedding_dimension", None)
        return int((get or self._model.get_sentence_embedding_dimension)())


def _check_line(request: OpenAIBatchRequest) -> None:
    row = f"row {request.custom_id!r}"
    if request.url != "/v1/embeddings":
        raise ValueError(
            f"{row}: this model embeds, and doesn't answer {request.url}; use the backend "
            "'transformers_pipeline' or 'vllm'"
        )
    if request.body.get("dimensions") or request.body.get("encoding_format") == "base64":
        raise ValueError(f"{row}: 'dimensions' and base64 vectors aren't supported")
