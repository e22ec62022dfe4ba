"""Language models through transformers: generation, rewriting, classification."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import BaseModel

from sheaf_dagster.backends.base import ModelBackend
from sheaf_dagster.backends.common.digest import weights_digest
from sheaf_dagster.backends.common.libraries import (
    check_dtype,
    pick_device,
    require,
    use_own_threads,
)
from sheaf_dagster.backends.language.generation import Generator
from sheaf_dagster.backends.language.pipeline_options import check_options
from sheaf_dagster.backends.language.prompts import Sampling, answer, prompts_of
from sheaf_dagster.backends.language.text_pipelines import PIPELINE_TASKS, Inputs, TextPipeline
from sheaf_dagster.contracts import OPENAI_BATCH, TEXT, TextRequest
from sheaf_dagster.errors import SpecError

__all__ = ["TransformersPipelineBackend"]

_NAME = "transformers_pipeline"
_MODEL_ID = "Qwen/Qwen3-0.6B"
_CAUSAL = ("text-generation",)
_SEQ2SEQ = ("text2text-generation", "summarization", "translation")


class TransformersPipelineBackend(ModelBackend):
    """Runs a task of transformers over text rows, or over files of the OpenAI batch form.

    Rows that generate may differ in everything: lengths, limits, temperatures, stop texts, seeds. Each
    row draws from its own random stream, so its answer is the same in any batch and any run. Chats
    need a tokenizer with a chat template.

    Rows are tokenised ahead of the network. A ``batch_budget`` counts the tokens of a text and the tokens
    that its answer may have.

    There is no beam search. If a model was saved with one (``num_beams``), its answers are generated
    token by token and marked ``fell_back``.

    Args:
        model_id: A transformers model: local path or hub id.
        task: ``text-generation``; ``text2text-generation``, ``summarization`` or ``translation``
            (encoder-decoder models); ``text-classification``, ``zero-shot-classification``,
            ``token-classification``, ``fill-mask``.
        device: ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"`` …
        dtype: ``float32``, ``bfloat16``, ``float16``, or ``auto`` for the saved type.
        max_new_tokens: Length of an answer in tokens, for rows that don't set it.
        temperature: Temperature for rows of the ``text`` contract that don't set it. 0 always takes
            the likeliest token.
        top_p: The same for ``top_p``.
        top_k: The same for ``top_k``.
        seed: Mixed into the seed of each row.
        model_batch_size: Texts that go through the network at once.
        prefix: Text to put before each text (``"summarize: "`` for T5).
        pipeline_kwargs: Further arguments of a classifying pipeline
            (``{"aggregation_strategy": "simple"}``).
        revision: Revision of a hub model.

    Raises:
        SpecError: The task is unknown, or an argument can't work. Some arguments are checked at load.
        MissingDependencyError: At load: transformers or torch is not installed.
    """

    model_type = (TEXT, OPENAI_BATCH)

    @classmethod
    def identify(
        cls, *, model_id: str = _MODEL_ID, revision: str | None = None, **_: Any
    ) -> str | None:
        return weights_digest(model_id, revision)

    def __init__(
        self,
        model_id: str = _MODEL_ID,
        task: str = "text-generation",
        device: str = "auto",
        dtype: str = "auto",
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        model_batch_size: int = 16,
        prefix: str = "",
        pipeline_kwargs: dict[str, Any] | None = None,
        revision: str | None = None,
    ) -> None:
        known = (*_CAUSAL, *_SEQ2SEQ, *PIPELINE_TASKS)
        if task not in known:
            raise SpecError(f"task must be one of {', '.join(known)}, got {task!r}")
        check_options(task, pipeline_kwargs or {})
        for name, value, least in (
            ("max_new_tokens", max_new_tokens, 1),
            ("model_batch_size", model_batch_size, 1),
            ("temperature", temperature, 0),
            ("top_k", top_k, 0),
        ):
            if value < least:
                raise SpecError(f"{name} must be at least {least}, got {value}")
        if not 0 < top_p <= 1:
            raise SpecError(f"top_p must be above 0, and at most 1, got {top_p}")
        self._model_id = model_id
        self._task = task
        self._device = device
        self._dtype = check_dtype(dtype)
        self._max_new_tokens = max_new_tokens
        self._defaults = Sampling(temperature=temperature, top_p=top_p, top_k=top_k)
        self._seed = seed
        self._model_batch_size = model_batch_size
        self._prefix = prefix
        self._pipeline_kwargs = dict(pipeline_kwargs or {})
        self._revision = revision
        self._generator: Generator | None = None
        self._pipeline: TextPipeline | None = None

    def load(self) -> None:
        transformers, torch = require(_NAME, "transformers", "transformers", "torch")
        use_own_threads(torch)
        device = pick_device(torch, self._device)
        own = {} if self._revision is None else {"revision": self._revision}
        dtype = "auto" if self._dtype == "auto" else getattr(torch, self._dtype)
        if self._task in PIPELINE_TASKS:
            made = transformers.pipeline(
                self._task, model=self._model_id, device=device, dtype=dtype, **own
            )
            self._pipeline = TextPipeline(
                self._task,
                made,
                transformers.Pipeline.__call__,
                self._pipeline_kwargs,
                self._prefix,
                self._model_batch_size,
            )
            self._pipeline.prove()
            return
        kind = "CausalLM" if self._task in _CAUSAL else "Seq2SeqLM"
        model = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(
            self._model_id, dtype=dtype, **own
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(self._model_id, **own)
        model = model.to(device).eval()
        self._generator = Generator(model, tokenizer, device, self._max_new_tokens)

    def warmup_requests(self) -> Sequence[Any]:
        if self._generator is None:
            return ()
        settings = {"model_name": "warm-up", "max_new_tokens": 2}
        return [TextRequest(text="a", **settings), TextRequest(text="a b", **settings)]

    def prepare(self, request: Any) -> Any:
        if self._pipeline is not None:
            return self._pipeline.prepare(request)
        assert self._generator is not None
        prompts = prompts_of(request, self._defaults, self._seed)
        return [self._generator.tasks(self._prefixed(prompt)) for prompt in prompts]

    def size(self, prepared: Any) -> int:
        if isinstance(prepared, Inputs):
            return prepared.size
        return sum(task.size for tasks in prepared for task in tasks)

    def device_size(self, prepared: Sequence[Any], sizes: Sequence[int]) -> int:
        if self._pipeline is not None:
            return self._pipeline.device_size(prepared)
        assert self._generator is not None
        flat = [task for row in prepared for tasks in row for task in tasks]
        return self._generator.device_size(flat, self._model_batch_size)

    def infer(self, prepared: Sequence[Any]) -> Sequence[Any]:
        if self._pipeline is not None:
            return self._pipeline.infer(prepared)
        assert self._generator is not None
        flat = [task for row in prepared for tasks in row for task in tasks]
        made = iter(self._generator.run(flat, self._model_batch_size))
        return [[[next(made) for _ in tasks] for tasks in row] for row in prepared]

    def respond(self, requests: Sequence[Any], outputs: Sequence[Any]) -> list[BaseModel]:
        return [self._answer(r, out) for r, out in zip(requests, outputs, strict=True)]

    def _answer(self, request: Any, output: Any) -> BaseModel:
        if self._pipeline is not None:
            return self._pipeline.respond(request, output)
        assert self._generator is not None
        completion = self._generator.completion
        made = answer(request, [[completion(one) for one in of_prompt] for of_prompt in output])
        return made.deviates("fell_back") if self._generator.leaves_out_beams else made

    def _prefixed(self, prompt: Any) -> Any:
        if not self._prefix or prompt.text is None:
            return prompt
        return replace(prompt, text=self._prefix + prompt.text)
