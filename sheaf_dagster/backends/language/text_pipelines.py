"""Classifying, tagging and filling texts through pipelines of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sheaf_dagster.backends.language.lengths import tokens_at_most
from sheaf_dagster.backends.tables.records import grouped, plain
from sheaf_dagster.contracts import TextRequest, TextResponse
from sheaf_dagster.contracts.text import Label, MaskLabel

__all__ = ["PIPELINE_TASKS", "TextPipeline"]

_CLASSES, _ZERO_SHOT = "text-classification", "zero-shot-classification"
_TOKENS, _MASKS = "token-classification", "fill-mask"
PIPELINE_TASKS = (_CLASSES, _ZERO_SHOT, _TOKENS, _MASKS)

_OF_GENERATION = ("max_new_tokens", "temperature", "top_p", "top_k", "stop", "seed")


class TextPipeline:
    """A loaded pipeline, whose answers to a row are the same in any batch.

    A text that is longer than the model is cut, which is noted in its answer. Entities
    (``token-classification`` with an ``aggregation_strategy``) are looked for in overlapping
    windows instead.

    Args:
        task: One of ``PIPELINE_TASKS``.
        pipeline: Made by ``transformers.pipeline``.
        options: Further arguments of its calls.
        prefix: Put before each text.
        batch_size: Texts that go through the network at once.
    """

    def __init__(
        self, task: str, pipeline: Any, options: dict[str, Any], prefix: str, batch_size: int
    ) -> None:
        self._task = task
        self._pipeline = pipeline
        self._options = options
        self._prefix = prefix
        tokenizer = pipeline.tokenizer
        # Without a padding token a model can't tell which tokens of a batch are none.
        self._batch_size = 1 if tokenizer.pad_token is None else batch_size
        self._limit = min(tokenizer.model_max_length, _positions(pipeline.model))
        tokenizer.model_max_length = self._limit

    def run(self, requests: Sequence[Any]) -> list[TextResponse]:
        """One answer a row.

        Raises:
            ValueError: A row is no text, or lacks what the task needs.
        """
        for request in requests:
            if not isinstance(request, TextRequest) or request.text is None:
                raise ValueError(
                    f"task {self._task!r} takes rows of the contract 'text' with 'text'"
                )
            if self._task == _ZERO_SHOT and not request.candidate_labels:
                raise ValueError(f"request {request.request_id}: needs 'candidate_labels'")
        answers: dict[int, TextResponse] = {}
        texts = [self._prefix + r.text for r in requests]
        long = [self._is_long(t, r) for t, r in zip(texts, requests, strict=True)]
        alike = [(*(r.candidate_labels or ()), cut) for r, cut in zip(requests, long, strict=True)]
        for (*labels, cut), members in grouped(range(len(texts)), alike.__getitem__).items():
            windows = cut and self._has_windows
            found = self._call([texts[i] for i in members], labels, windows)
            for i, one in zip(members, found, strict=True):
                answers[i] = self._response(requests[i], plain(one))
                if cut and not windows:
                    answers[i].deviates("truncated")
        return [answers[i] for i in range(len(requests))]

    def _is_long(self, text: str, request: TextRequest) -> bool:
        """Whether the model can't read it all."""
        if tokens_at_most(text) <= self._limit and self._task != _ZERO_SHOT:
            return False
        pairs: list[str | None] = [None]
        if self._task == _ZERO_SHOT:
            template = self._options.get("hypothesis_template", "This example is {}.")
            pairs = [template.format(label) for label in request.candidate_labels or ()]
        tokenize = self._pipeline.tokenizer
        return any(
            len(tokenize(text, pair, truncation=False, verbose=False)["input_ids"]) > self._limit
            for pair in pairs
        )

    @property
    def _has_windows(self) -> bool:
        strategy = self._options.get("aggregation_strategy", "none")
        return (
            self._task == _TOKENS
            and getattr(strategy, "value", strategy) != "none"
            and bool(self._pipeline.tokenizer.is_fast)
        )

    def _call(self, texts: list[str], labels: Sequence[str], windows: bool) -> list[Any]:
        options = dict(self._options)
        if self._task == _ZERO_SHOT:
            options["candidate_labels"] = list(labels)
        elif self._task == _CLASSES:
            options = {"top_k": None, "truncation": True, **options}
        elif self._task == _MASKS:
            options["tokenizer_kwargs"] = {
                "truncation": True,
                **options.get("tokenizer_kwargs", {}),
            }
        elif windows:
            options.setdefault("stride", self._limit // 4)
        found = self._pipeline(texts, batch_size=self._batch_size, **options)
        # This task unwraps a list of one.
        return [found] if self._task == _MASKS and len(texts) == 1 else list(found)

    def _response(self, row: TextRequest, found: Any) -> TextResponse:
        labels: list[Any] | None = None
        if self._task == _ZERO_SHOT:
            pairs = zip(found["labels"], found["scores"], strict=True)
            labels = [Label(label=label, score=score) for label, score in pairs]
        elif self._task == _CLASSES:
            several = found if isinstance(found, list) else [found]
            labels = [Label(label=one["label"], score=one["score"]) for one in several]
        elif self._task == _MASKS:
            masks = found if isinstance(found[0], list) else [found]
            labels = [
                MaskLabel(label=one["token_str"], score=one["score"], mask=i)
                for i, of_mask in enumerate(masks)
                for one in of_mask
            ]
        response = TextResponse(
            request_id=row.request_id,
            model_name=row.model_name,
            labels=labels,
            entities=found if self._task == _TOKENS else None,
        )
        return response.deviates("ignored_field") if self._ignores(row) else response

    def _ignores(self, row: TextRequest) -> bool:
        """Whether the row asks for what this task doesn't look at."""
        others = [] if self._task == _ZERO_SHOT else ["candidate_labels"]
        return any(getattr(row, name) not in (None, []) for name in (*_OF_GENERATION, *others))


def _positions(model: Any) -> int:
    """Tokens that a model has places for."""
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 10**9
    for module in model.modules():
        # RoBERTa and its kin count from behind the padding token.
        padding = getattr(getattr(module, "position_embeddings", None), "padding_idx", None)
        if padding is not None:
            return int(most) - int(padding) - 1
    return int(most)
