"""The one place that knows vLLM's names: an engine with the request handlers of vLLM's own server.

vLLM's entry point for batches does the same (``vllm run-batch``): one asynchronous engine, and each
line to the handler of its URL. The names of handlers, and the modules that they are in, change
between releases; these are those of the releases in ``KNOWN``.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any

from sheaf_dagster.backends.common.libraries import require
from sheaf_dagster.backends.common.orphans import ChildWatch
from sheaf_dagster.backends.language.overlooked import unknown_fields, without_effect
from sheaf_dagster.backends.language.refusal import RefusedError
from sheaf_dagster.errors import ClusterError, MissingDependencyError, SpecError

__all__ = ["KNOWN", "VllmEngine"]

KNOWN = ("0.32",)
"""Releases of vLLM whose names are known here."""

_CLI = "vllm.entrypoints.launchers.cli_args"
_ENTRY = "vllm.entrypoints.launchers.api_server.entry"
_STATE = "vllm.entrypoints.launchers.api_server.app_state"
_USAGE = "vllm.usage.usage_lib"
_OPENAI = "vllm.entrypoints.openai"
_POOLING = "vllm.entrypoints.pooling"
_HANDLERS = {
    "/v1/chat/completions": (
        f"{_OPENAI}.chat_completion.protocol:ChatCompletionRequest",
        "openai_serving_chat.create_chat_completion",
    ),
    "/v1/completions": (
        f"{_OPENAI}.completion.protocol:CompletionRequest",
        "openai_serving_completion.create_completion",
    ),
    "/v1/responses": (
        f"{_OPENAI}.responses.protocol:ResponsesRequest",
        "openai_serving_responses.create_responses",
    ),
    "/v1/embeddings": (f"{_POOLING}.embed.protocol:EmbeddingRequest", "serving_embedding"),
    "/v1/score": (f"{_POOLING}.scoring.protocol:ScoreRequest", "serving_scores"),
    "/score": (f"{_POOLING}.scoring.protocol:ScoreRequest", "serving_scores"),
    "/v1/rerank": (f"{_POOLING}.scoring.protocol:RerankRequest", "serving_scores"),
    "/v2/rerank": (f"{_POOLING}.scoring.protocol:RerankRequest", "serving_scores"),
    "/rerank": (f"{_POOLING}.scoring.protocol:RerankRequest", "serving_scores"),
}
"""By URL the type of a body, and where its handler is in the state of vLLM's server."""


class VllmEngine:
    """A running engine; it belongs to the event loop that ``start`` ran on.

    Attributes:
        models: Names by which a body may call the model, its adapters among them.
        has_adapters: Whether there are any.
        rows_a_step: Rows that it runs at a time, at most; those beyond wait in it.
    """

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self._client: Any = None
        self._handlers: dict[str, tuple[Any, Any]] = {}
        self._template_reads: Callable[[Mapping[str, Any], set[str]], set[str]] | None = None
        self.models: frozenset[str] = frozenset()
        self.has_adapters = False
        self.rows_a_step = 0

    async def start(self, backend: str, options: dict[str, Any]) -> None:
        """Loads the model and makes the handlers.

        Args:
            backend: Name of the backend, for messages.
            options: Options of ``vllm serve``, by their names in Python.

        Raises:
            MissingDependencyError: vLLM is not installed, or a release that isn't known here.
            SpecError: vLLM has no such option, or not with this value.
        """
        (vllm,) = require(backend, "vllm", "vllm")
        version = str(vllm.__version__)
        if not version.startswith(tuple(f"{known}." for known in KNOWN)):
            raise MissingDependencyError(
                f"backend {backend!r} works with vLLM {' and '.join(KNOWN)}, but {version} is "
                f"installed; install vllm=={KNOWN[-1]}.*, or serve the model with vLLM and use "
                "the backend 'openai_endpoint'"
            )
        cli, entry, state_module, usage = require(backend, "vllm", _CLI, _ENTRY, _STATE, _USAGE)
        args = _parsed(cli, options)
        watch = ChildWatch()
        self._stack.callback(watch.close)
        with watch.over_new():  # a worker may be killed, and vLLM's processes have its GPU
            # vLLM's defaults for offline work: larger steps than those of a server or its batches.
            offline = usage.UsageContext.LLM_CLASS
            engine = entry.build_async_engine_client(args, usage_context=offline)
            self._client = await self._stack.enter_async_context(engine)
        from starlette.datastructures import State

        state = State()
        tasks = await self._client.get_supported_tasks()
        await state_module.init_app_state(self._client, state, args, tasks)
        for url, (request, path) in _HANDLERS.items():
            handler: Any = state
            for name in path.split("."):
                handler = getattr(handler, name, None)
            if handler is not None:
                self._handlers[url] = (_adapter(backend, request), handler)
        served = state.openai_serving_models
        adapters = [card.lora_name for card in served.lora_requests.values()]
        self.has_adapters = bool(adapters)
        self._template_reads = _reader_of_templates(self._client, args)
        self.models = frozenset([*(path.name for path in served.base_model_paths), *adapters])
        self.rows_a_step = int(self._client.vllm_config.scheduler_config.max_num_seqs)

    async def answer(self, url: str, body: dict[str, Any]) -> dict[str, Any]:
        """What vLLM's server would answer to a body.

        Raises:
            RefusedError: The handler, or the type of its bodies, refused it.
            ClusterError: The engine has ended.
        """
        from vllm.entrypoints.serve import create_error_response

        if url not in self._handlers:
            kinds = ", ".join(self._handlers)
            raise RefusedError(
                f"this model doesn't answer {url}; it answers {kinds}", 404, "NotFoundError"
            )
        adapter, handler = self._handlers[url]
        try:
            request = adapter.validate_python(body)
            if unknown := unknown_fields(request, body):
                raise _bad(f"'body' has {', '.join(unknown)}, which vLLM doesn't know")
            if idle := without_effect(url, body) + self._not_in_template(body):
                raise _bad(
                    f"'body' has {', '.join(idle)}, which would have no effect on the answer of this "
                    "model; leave it out"
                )
            response = await handler(request)
        except RefusedError:
            raise
        except Exception as e:
            response = create_error_response(e)
        if self._client.errored:
            raise ClusterError(
                f"vLLM's engine has ended ({self._client.dead_error}); its own log says why. Run "
                "the job again: answered rows are kept"
            )
        return _body_of(response)

    def _not_in_template(self, body: Mapping[str, Any]) -> list[str]:
        """Names of fields that the chat's template doesn't read, where it can be looked at."""
        asked = {
            f"chat_template_kwargs.{name}": name for name in body.get("chat_template_kwargs") or ()
        }
        asked |= {n: n for n in ("documents", "reasoning_effort") if body.get(n) is not None}
        if not asked or self._template_reads is None:
            return []
        reads = self._template_reads(body, {*asked.values(), "enable_thinking"})
        if "enable_thinking" in reads:  # which an effort sets, too
            reads.add("reasoning_effort")
        return sorted(field for field, name in asked.items() if name not in reads)

    async def close(self) -> None:
        """Ends the engine and its processes, and gives its memory back."""
        await self._stack.aclose()
        self._client, self._handlers = None, {}
        # Engine and handlers hold each other: uncollected, they would keep their memory, and end
        # with the interpreter, when vLLM's own modules are half gone.
        gc.collect()


def _parsed(cli: Any, options: dict[str, Any]) -> Any:
    """The options as vLLM's own command line reads them: the same words, checks and defaults."""
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class Parser(FlexibleArgumentParser):  # type: ignore[misc]
        def error(self, message: str) -> Any:
            raise SpecError(f"vLLM refuses engine_args: {message}")

    words: list[str] = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        if value is True or value is False:
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, list):
            words += [f"--{flag}", *(v if isinstance(v, str) else json.dumps(v) for v in value)]
        elif value is not None:
            words += [f"--{flag}", json.dumps(value) if isinstance(value, dict) else str(value)]
    args = cli.make_arg_parser(Parser()).parse_args(words)
    try:
        cli.validate_parsed_serve_args(args)
    except (TypeError, ValueError, KeyError) as e:
        raise SpecError(f"vLLM refuses engine_args: {e}") from e
    return args


def _reader_of_templates(
    client: Any, args: Any
) -> Callable[[Mapping[str, Any], set[str]], set[str]] | None:
    """What finds those of some names that a body's chat template reads.

    None where prompts aren't made by a template of the tokenizer's library.
    """
    from vllm.renderers import hf
    from vllm.renderers.chat_utils import load_chat_template

    renderer = client.renderer
    if type(renderer).__module__ != hf.__name__:
        return None
    own = load_chat_template(args.chat_template)

    def reads(body: Mapping[str, Any], names: set[str]) -> set[str]:
        template = hf.resolve_chat_template(
            renderer.tokenizer,
            chat_template=body.get("chat_template") or own,
            tools=body.get("tools"),
            model_config=client.model_config,
        )
        if template is None:  # vLLM says so itself
            return names
        given = dict.fromkeys(names)
        return set(
            hf.resolve_chat_template_kwargs(
                renderer.tokenizer, template, given, raise_on_unexpected=False
            )
        )

    return reads


def _bad(message: str) -> RefusedError:
    return RefusedError(message, 400, "BadRequestError")


def _adapter(backend: str, path: str) -> Any:
    from pydantic import TypeAdapter

    module, name = path.split(":")
    return TypeAdapter(getattr(require(backend, "vllm", module)[0], name))


def _body_of(response: Any) -> dict[str, Any]:
    """The body of a handler's response, which is a model or a finished response of its server."""
    raw = getattr(response, "body", None)
    body: Any = json.loads(raw) if isinstance(raw, bytes) else None
    if body is None and hasattr(response, "model_dump"):
        body = response.model_dump(mode="json", by_alias=True)  # as its server does
    if not isinstance(body, dict):
        raise RefusedError(
            "a line of a batch can't be answered as a stream", 400, "BadRequestError"
        )
    error = body.get("error")
    if isinstance(error, dict) and "message" in error:
        code: Any = error.get("code") or getattr(response, "status_code", 500)
        raise RefusedError(str(error["message"]), int(code), str(error.get("type")))
    return body
