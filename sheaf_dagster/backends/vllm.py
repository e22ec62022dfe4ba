"""Language models through vLLM's engine and its own request handlers."""

from __future__ import annotations

import atexit
from typing import Any

from pydantic import BaseModel

from sheaf_dagster.backends.base import ModelBackend
from sheaf_dagster.backends.common.digest import joined_digest, weights_digest
from sheaf_dagster.backends.language.bodies import body_of, response_of, seeded
from sheaf_dagster.backends.language.refusal import RefusedError
from sheaf_dagster.backends.language.vllm_engine import VllmEngine
from sheaf_dagster.contracts import OPENAI_BATCH, TEXT, TextRequest
from sheaf_dagster.contracts.openai_bodies import CHAT, COMPLETIONS, RESPONSES
from sheaf_dagster.errors import SpecError

__all__ = ["VllmBackend"]

_NAME = "vllm"
_MODEL_ID = "Qwen/Qwen3-0.6B"
_NAME_FILES = frozenset(
    {
        "chat_template",
        "config",
        "default_mm_loras",
        "generation_config",
        "hf_config_path",
        "lora_modules",
        "model_weights",
        "reasoning_parser_plugin",
        "speculative_config",
        "tokenizer",
        "tokenizer_revision",
        "tool_parser_plugin",
    }
)
"""Options of ``vllm serve`` that name what the answers come from; other folders are only places."""

_IN_FLIGHT = 512
_SEEDED = (CHAT, COMPLETIONS, RESPONSES)
"""URLs whose bodies may have a seed in vLLM."""


class VllmBackend(ModelBackend):
    """Answers lines of the OpenAI batch form, and rows of the ``text`` contract, with vLLM.

    Each line goes to the handler that vLLM's own server has for its URL: chats, completions, responses,
    embeddings, scores and rankings, if the model supports them. So every field that vLLM knows has its
    effect. A request that vLLM refuses fails its row, with vLLM's words and status. A field that vLLM
    doesn't know is refused at any depth, and so is a field that would change nothing, such as a variable
    that the model's chat template doesn't read. Rows are in flight together, and the engine schedules
    them.

    The job's model answers, whatever ``model`` a line names. With ``lora_modules``, lines choose an
    adapter by that name, and an unknown name is refused.

    The same file gives the same answers: ids are derived from the rows, ``created`` is 0, and a draw
    without a ``seed`` gets one that is derived from its row.

    Args:
        model_id: A model that vLLM supports: local path or hub id.
        dtype: As in vLLM: ``auto``, ``bfloat16``, ``float16``, ``float32``.
        max_new_tokens: Length of an answer in tokens, for rows that don't set it. By default up to
            the model's length, as in vLLM.
        temperature: Temperature for rows of the ``text`` contract that don't set it.
        top_p: The same for ``top_p``.
        top_k: The same for ``top_k``; 0 means all tokens.
        seed: Mixed into the seed of each row.
        max_in_flight: Rows that the engine has at a time. By default twice as many as it runs
            together, and at least 512.
        engine_args: Further options of ``vllm serve``, by their names in Python
            (``{"tensor_parallel_size": 2, "enable_auto_tool_choice": True,
            "tool_call_parser": "hermes"}``).
        revision: Revision of a hub model.

    Raises:
        SpecError: An option is given twice. At load: vLLM doesn't know the option.
        MissingDependencyError: At load: vLLM is not installed, or its release is unknown.
    """

    model_type = (TEXT, OPENAI_BATCH)
    tunables = frozenset({"max_in_flight"})

    @classmethod
    def identify(
        cls,
        *,
        model_id: str = _MODEL_ID,
        revision: str | None = None,
        engine_args: dict[str, Any] | None = None,
        **_: Any,
    ) -> str | None:
        given = {name.replace("-", "_"): value for name, value in (engine_args or {}).items()}
        named = {name: v for name, v in given.items() if name.split(".")[0] in _NAME_FILES}
        return joined_digest(weights_digest(model_id, revision), named)

    def __init__(
        self,
        model_id: str = _MODEL_ID,
        dtype: str = "auto",
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        max_in_flight: int | None = None,
        engine_args: dict[str, Any] | None = None,
        revision: str | None = None,
    ) -> None:
        own = {"model", "dtype", "seed", "revision", "served_model_name"} & set(engine_args or ())
        if own:
            raise SpecError(
                f"engine_args must not contain {', '.join(sorted(own))}; pass it as a separate argument"
            )
        if max_in_flight is not None and max_in_flight < 1:
            raise SpecError(f"max_in_flight must be 1 or more, got {max_in_flight}")
        self._model_id = model_id
        self._options = {
            "model": model_id,
            "dtype": dtype,
            "seed": seed,
            "revision": revision,
            **(engine_args or {}),
        }
        self._defaults = {
            "max_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
        }
        self._seed = seed
        self._in_flight = max_in_flight
        self._engine: VllmEngine | None = None

    def load(self) -> None:
        engine = VllmEngine()
        self.run_async(engine.start(_NAME, self._options))
        self._engine = engine
        self.max_in_flight = self._in_flight or max(_IN_FLIGHT, 2 * engine.rows_a_step)
        # A process that ends without closing would leave vLLM to kill its own and to complain.
        atexit.register(self.close)

    def close(self) -> None:
        if self._engine is not None:
            atexit.unregister(self.close)
            engine, self._engine = self._engine, None
            self.run_async(engine.close())

    async def predict_async(self, request: Any) -> BaseModel:
        assert self._engine is not None
        url, asked = body_of(request, self._defaults)
        if isinstance(request, TextRequest):
            asked.setdefault("top_k", 0)  # all: without, the number saved with the model would hold
        body = seeded(url, asked, request, self._seed, _SEEDED)
        if body.get("stream"):
            raise RefusedError("a line of a batch can't be streamed", 400, "BadRequestError")
        # The job's model answers, whatever a row calls it. Where there are adapters, lines choose by
        # name, and a name that isn't known is vLLM's to refuse.
        chooses = self._engine.has_adapters and not isinstance(request, TextRequest)
        if body.get("model") not in self._engine.models and not chooses:
            body["model"] = self._model_id
        answered = await self._engine.answer(url, body)
        return response_of(request, url, {**answered, "model": asked.get("model")})
