"""Classifying, tagging and filling texts through pipelines of transformers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from copy import copy, deepcopy
from inspect import isgeneratorfunction
from threading import Lock
from typing import Any, NamedTuple

from sheaf_dagster.backends.language.lengths import tokens_at_most
from sheaf_dagster.backends.language.pipeline_options import most_tokens
from sheaf_dagster.backends.tables.records import grouped, plain
from sheaf_dagster.contracts import TextRequest, TextResponse
from sheaf_dagster.contracts.text import Label, MaskLabel
from sheaf_dagster.errors import SpecError

__all__ = ["PIPELINE_TASKS", "Inputs", "TextPipeline"]

_CLASSES, _ZERO_SHOT = "text-classification", "zero-shot-classification"
_TOKENS, _MASKS = "token-classification", "fill-mask"
PIPELINE_TASKS = (_CLASSES, _ZERO_SHOT, _TOKENS, _MASKS)

_OF_GENERATION = ("max_new_tokens", "temperature", "top_p", "top_k", "stop", "seed")


class Inputs(NamedTuple):
    """A tokenised row."""

    parts: list[dict[str, Any]]
    """What goes through the network: one, or one for each label or window."""
    size: int
    """Tokens of all of them."""
    windows: bool
    """Whether it is too long, and read in windows."""
    truncated: bool
    """Whether it is too long, and was cut."""


class TextPipeline:
    """A loaded pipeline in steps, whose answers to a row are the same in any batch.

    The steps are the library's own, each on its side of the device.

    A text that is longer than the model is cut, which is noted in its answer. Entities
    (``token-classification`` with an ``aggregation_strategy``) are looked for in overlapping
    windows instead.

    Args:
        task: One of ``PIPELINE_TASKS``.
        pipeline: Made by ``transformers.pipeline``.
        call: ``transformers.Pipeline.__call__``.
        options: Further arguments of its calls.
        prefix: Put before each text.
        batch_size: Texts that go through the network at once.
    """

    def __init__(
        self,
        task: str,
        pipeline: Any,
        call: Any,
        options: dict[str, Any],
        prefix: str,
        batch_size: int,
    ) -> None:
        self._task = task
        self._pipeline = pipeline
        self._options = options
        self._prefix = prefix
        tokenizer = pipeline.tokenizer
        # Without a padding token a model can't tell which tokens of a batch are none.
        self._batch_size = 1 if tokenizer.pad_token is None else batch_size
        tokenizer.model_max_length = min(tokenizer.model_max_length, _positions(pipeline.model))
        self._limit = most_tokens(options, tokenizer.model_max_length)
        self._call = call
        self._in_parts = isgeneratorfunction(pipeline.preprocess)
        self._network = copy(pipeline)
        self._reader = copy(pipeline)
        # A fast tokenizer is set anew at each call, which can't be while another thread uses it.
        self._reader.tokenizer = deepcopy(tokenizer)
        self._tokenizing = Lock()

    def prove(self) -> None:
        """Answers a row, where there are arguments that may not work.

        Raises:
            SpecError: That can't be done.
        """
        tokenizer = self._pipeline.tokenizer
        if self._task == _ZERO_SHOT and self._pipeline.entailment_id == -1:
            raise SpecError(
                "zero-shot-classification needs a model with a label 'entailment'; its labels are "
                f"{', '.join(self._pipeline.model.config.label2id)}"
            )
        if not self._options:
            return
        targets = self._options.get("targets") or []
        unknown = {targets} if isinstance(targets, str) else set(targets)
        if unknown := unknown - tokenizer.get_vocab().keys():
            # The library would take another token for each.
            raise SpecError(
                f"pipeline_kwargs.targets: the model has no token {', '.join(sorted(unknown))}"
            )
        text = tokenizer.mask_token if self._task == _MASKS else "a"
        row = TextRequest(model_name="proof", text=text, candidate_labels=["a"])
        try:
            self.respond(row, self.infer([self.prepare(row)])[0])
        except (AttributeError, LookupError, TypeError, ValueError) as e:
            raise SpecError(
                f"pipeline_kwargs {self._options!r} can't work with task {self._task!r}: {e}"
            ) from e

    def prepare(self, request: Any) -> Inputs:
        """A row as the network takes it.

        Raises:
            ValueError: It is not text, or lacks what the task needs.
        """
        if not isinstance(request, TextRequest) or request.text is None:
            raise ValueError(f"task {self._task!r} takes rows of the contract 'text' with 'text'")
        if self._task == _ZERO_SHOT and not request.candidate_labels:
            raise ValueError(f"request {request.request_id}: needs 'candidate_labels'")
        text = self._prefix + request.text
        with self._tokenizing:
            cut = self._is_long(text, request)
            windows = cut and self._has_windows
            settings, _ = self._settings(request.candidate_labels, windows)
            made = self._reader.preprocess(text, **settings)
            parts = [dict(part) for part in (made if self._in_parts else [made])]
        size = sum(int(part["input_ids"].shape[-1]) for part in parts)
        return Inputs(parts, size, windows, cut and not windows)

    def infer(self, rows: Sequence[Inputs]) -> list[Any]:
        """What the network says of some rows, before it is made of it what the task asks."""

        def inputs(i: int, **_: Any) -> Any:
            # Copies: the library takes out of them what isn't the network's.
            parts = [dict(part) for part in rows[i].parts]
            return iter(parts) if self._in_parts else parts[0]

        self._network.preprocess = inputs
        self._network.postprocess = lambda found, **_: found
        by_row: dict[int, Any] = {}
        for some in self._together(rows):
            # The call of the base: the tasks' own look into what they get, which is numbers here.
            found = self._call(self._network, some, batch_size=self._batch_size)
            by_row |= zip(some, found, strict=True)
        return [(by_row[i], rows[i].truncated) for i in range(len(rows))]

    def _together(self, rows: Sequence[Inputs]) -> Collection[list[int]]:
        """Rows that the library gets together, by their places, the longest first."""
        order = sorted(range(len(rows)), key=lambda i: -rows[i].size)
        # Those in windows apart: beside them short ones would be padded to the model's length.
        return grouped(order, lambda i: rows[i].windows).values()

    def device_size(self, rows: Sequence[Inputs]) -> int:
        """Tokens of some rows, each part filled up to the longest of those beside it."""
        found = 0
        for some in self._together(rows):
            lengths = [int(part["input_ids"].shape[-1]) for i in some for part in rows[i].parts]
            starts = range(0, len(lengths), self._batch_size)
            batches = (lengths[i : i + self._batch_size] for i in starts)
            found += sum(len(batch) * max(batch) for batch in batches)
        return found

    def respond(self, request: Any, output: Any) -> TextResponse:
        """A row's answer."""
        found, truncated = output
        _, settings = self._settings(request.candidate_labels, windows=False)
        answer = self._response(request, plain(self._pipeline.postprocess(found, **settings)))
        return answer.deviates("truncated") if truncated else answer

    def _is_long(self, text: str, request: TextRequest) -> bool:
        """Whether the model can't read it all."""
        if tokens_at_most(text) <= self._limit and self._task != _ZERO_SHOT:
            return False
        pairs: list[str | None] = [None]
        if self._task == _ZERO_SHOT:
            template = self._options.get("hypothesis_template", "This example is {}.")
            pairs = [template.format(label) for label in request.candidate_labels or ()]
        tokenize = self._reader.tokenizer
        return any(
            len(tokenize(text, pair, truncation=False, verbose=False)["input_ids"]) > self._limit
            for pair in pairs
        )

    @property
    def _has_windows(self) -> bool:
        strategy = self._options.get("aggregation_strategy", "none")
        return (
            self._task == _TOKENS
            and strategy.lower() != "none"
            and bool(self._pipeline.tokenizer.is_fast)
        )

    def _settings(self, labels: Any, windows: bool) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the library's steps before and after the network are told."""
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
        else:
            options.setdefault("is_split_into_words", False)
            if windows:
                options.setdefault("stride", self._limit // 4)
        before, _, after = self._pipeline._sanitize_parameters(**options)
        return (
            {**self._pipeline._preprocess_params, **before},
            {**self._pipeline._postprocess_params, **after},
        )

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
