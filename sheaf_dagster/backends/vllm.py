"""Language models through vLLM's offline engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from sheaf_dagster.backends.base import ModelBackend
from sheaf_dagster.backends.digest import weights_digest
from sheaf_dagster.backends.libraries import require
from sheaf_dagster.backends.prompts import Completion, Prompt, Sampling, answer, prompts_of
from sheaf_dagster.contracts import OPENAI_BATCH, TEXT
from sheaf_dagster.errors import SpecError

__all__ = ["VllmBackend"]

_NAME = "vllm"
_MODEL_ID = "Qwen/Qwen3-0.6B"


class VllmBackend(ModelBackend):
    """Generates texts, of rows of the ``text`` contract or of files of the OpenAI batch form.

    A batch is given to vLLM at once, which schedules its rows by itself: large batches (some
    hundred rows) serve it best.

    Args:
        model_id: A model that vLLM supports: local path or hub id.
        dtype: As vLLM has it: ``auto``, ``bfloat16``, ``float16``, ``float32``.
        max_new_tokens: Length of an answer in tokens where the row doesn't say.
        temperature: Of rows of the ``text`` contract that don't say.
        top_p: Likewise.
        top_k: Likewise.
        seed: Mixed into the seeds of the rows.
        engine_args: Further arguments of ``vllm.LLM`` (``{"tensor_parallel_size": 2}``).
        revision: Revision of a hub model.

    Raises:
        MissingDependencyError: At load: vllm is not installed.
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
        dtype: str = "auto",
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        engine_args: dict[str, Any] | None = None,
        revision: str | None = None,
    ) -> None:
        own = {"model", "dtype", "seed", "revision"} & set(engine_args or ())
        if own:
            raise SpecError(f"engine_args must not hold {', '.join(sorted(own))}; set it beside")
        self._model_id = model_id
        self._dtype = dtype
        self._defaults = Sampling(max_new_tokens, temperature, top_p, top_k)
        self._seed = seed
        self._engine_args = dict(engine_args or {})
        self._revision = revision
        self._library: Any = None
        self._llm: Any = None

    def load(self) -> None:
        (self._library,) = require(_NAME, "vllm", "vllm")
        self._llm = self._library.LLM(
            model=self._model_id,
            dtype=self._dtype,
            seed=self._seed,
            revision=self._revision,
            **self._engine_args,
        )

    def close(self) -> None:
        self._llm = None

    def batch_predict(self, requests: Sequence[Any]) -> list[BaseModel]:
        prompts = [prompts_of(r, self._defaults, self._seed) for r in requests]
        flat = [p for of_row in prompts for p in of_row]
        completions: list[list[Completion]] = [[] for _ in flat]
        for chats in (False, True):
            members = [i for i, p in enumerate(flat) if (p.messages is not None) == chats]
            if not members:
                continue
            call = self._llm.chat if chats else self._llm.generate
            given = [flat[i].messages if chats else flat[i].text for i in members]
            params = [self._params(flat[i]) for i in members]
            for i, output in zip(members, call(given, params, use_tqdm=False), strict=True):
                completions[i] = _completions(output)
        done = iter(completions)
        return [
            answer(request, [next(done) for _ in of_row])
            for request, of_row in zip(requests, prompts, strict=True)
        ]

    def _params(self, prompt: Prompt) -> Any:
        s = prompt.sampling
        return self._library.SamplingParams(
            n=s.n,
            max_tokens=s.max_tokens,
            temperature=s.temperature,
            top_p=s.top_p,
            top_k=s.top_k or -1,
            stop=list(s.stop),
            presence_penalty=s.presence_penalty,
            frequency_penalty=s.frequency_penalty,
            seed=prompt.seeds[0],
        )


def _completions(output: Any) -> list[Completion]:
    asked = len(output.prompt_token_ids or ())
    return [
        Completion(one.text, one.finish_reason or "length", asked, len(one.token_ids))
        for one in output.outputs
    ]
