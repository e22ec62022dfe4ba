"""Every backend of an installed sheaf-serve, as ``backend="sheaf:<name>"``: one adapter for all."""

from __future__ import annotations

import asyncio
import base64
import importlib
import os
import re
from collections import defaultdict
from collections.abc import Hashable, Sequence
from contextlib import suppress
from enum import Enum
from typing import Any, ClassVar, Literal, get_origin

from pydantic import BaseModel

from sheaf_dagster.backends.base import ModelBackend
from sheaf_dagster.backends.common.digest import weights_digest
from sheaf_dagster.backends.common.files import read_uri, resolve_options
from sheaf_dagster.backends.sheaf.arguments import defaults, made, parsed
from sheaf_dagster.backends.sheaf.deviations import Asked, deviations, note
from sheaf_dagster.backends.sheaf.drawing import RowDraws, seeded
from sheaf_dagster.backends.sheaf.pictures import as_shown
from sheaf_dagster.backends.sheaf.refusals import refuse, refuse_answer
from sheaf_dagster.backends.sheaf.watching import temporary_files_removed, watch
from sheaf_dagster.contracts.sheaf_serve import (
    broken_install,
    has_sheaf_serve,
    sheaf_serve_types,
    warn_once,
)
from sheaf_dagster.errors import (
    MissingDependencyError,
    ResponseMismatchError,
    SpecError,
    UnknownBackendError,
)

__all__ = ["PREFIX", "SheafServeBackend", "adapter_of", "sheaf_serve_names"]

PREFIX = "sheaf:"

_ADAPTERS: dict[str, type[SheafServeBackend]] = {}
_HUB_ID = re.compile(r"(?:hf-hub:)?([\w.-]+/[\w.-]+)")
_NAMES_WEIGHTS = re.compile(
    r"(?:.*_)?(?:model|weights?|checkpoint|ckpt|repo|pretrained|hub|adapter|tokenizer|processor|"
    r"encoder|decoder|backbone|vae|unet|vocoder|scheduler)(?:_?(?:id|name|path|dir|repo|or|file))*",
    re.IGNORECASE,
)
"""Arguments that may name a model of a hub; "image/png" of another is no such name."""

_RANDOM_WEIGHTS = frozenset({"pointnet", "imagebind"})
"""Backends that draw their weights where they are given none."""


def sheaf_serve_names() -> list[str]:
    """Names of all its backends, with the prefix; none where it isn't installed.

    Those of the modules in ``SHEAF_EXTRA_BACKENDS`` are among them. What can't be imported is
    left out, with a warning; ``adapter_of`` says why.
    """
    if not has_sheaf_serve():
        return []
    registry, trouble = _registry()
    if trouble is not None:
        warn_once(f"some backends are left out: {trouble}")
    return [PREFIX + name for name in sorted(registry)]


def adapter_of(name: str) -> type[SheafServeBackend]:
    """The adapter of one of its backends.

    Args:
        name: ``sheaf:<name>``.

    Raises:
        MissingDependencyError: sheaf-serve is not installed, or can't be imported.
        UnknownBackendError: It has no backend of that name.
        SpecError: A module of ``SHEAF_EXTRA_BACKENDS`` can't be imported.
    """
    if name in _ADAPTERS:
        return _ADAPTERS[name]
    if not has_sheaf_serve():
        raise MissingDependencyError(
            f"backend {name!r} needs sheaf-serve: pip install 'sheaf_dagster[sheaf]'"
        )
    registry, trouble = _registry()
    theirs = registry.get(name.removeprefix(PREFIX))
    if theirs is None and trouble is not None:
        raise type(trouble)(f"backend {name!r} is not available: {trouble}") from trouble
    if theirs is None:
        raise UnknownBackendError(
            f"unknown backend {name!r}; sheaf-serve has "
            f"{', '.join(PREFIX + known for known in sorted(registry))}. If the backend is your own, "
            "name its module in the environment variable SHEAF_EXTRA_BACKENDS"
        )
    # Workers find the class of a built-in one here, see __getattr__; any other travels whole.
    built_in = theirs.__module__.startswith("sheaf.")
    adapter = type(
        name,
        (SheafServeBackend,),
        {
            "__module__": __name__ if built_in else theirs.__module__,
            "__qualname__": name,
            "__doc__": f"sheaf-serve's ``{theirs.__name__}``.",
            "model_type": _model_type(theirs, name),
            "theirs": theirs,
        },
    )
    return _ADAPTERS.setdefault(name, adapter)


def __getattr__(name: str) -> type[SheafServeBackend]:
    if name.startswith(PREFIX):
        return adapter_of(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class SheafServeBackend(ModelBackend):
    """Runs a backend of sheaf-serve on our rows.

    Rows of our own contracts (time series, tabular, embedding) are passed on in sheaf-serve's form.
    ``image_uris`` are read here. Pictures that Pillow's plain conversion would turn on their side, or
    make black, are corrected. Requests of a batch are passed on together if all their settings agree
    (numbers, flags, choices), because sheaf-serve's backends take a setting such as the horizon from
    the first request of a batch. Rows whose answers are drawn are answered one at a time, each with a
    seed made from its ``request_id``, so they don't depend on the rest of the batch.

    A row fails if the backend would return other values than asked: for a quantile level that the
    model lacks, for ``samples`` from a model that has none, and for numbers beyond float32 if the model
    computes in float32. Answers that deviate from their row are marked: ``truncated`` if the model reads
    only a part of a history or text, ``ignored_field`` if a field has no effect, ``clipped`` if a
    picture has another size, and ``fell_back`` if GraphCast runs without the sun's radiation.

    Args:
        lora: sheaf-serve's ``LoRAConfig``, as a dictionary. Adapters are loaded once; a row chooses
            them with ``adapters``.
        model_opt: sheaf-serve's ``ModelOptConfig``, as a dictionary.
        feast_repo_path: Feast repository for rows with a ``feature_ref``.
        storage_options: Arguments of the fsspec file system for remote ``image_uris``.
        backend_kwargs: Arguments of the sheaf-serve backend.

    Raises:
        SpecError: The backend refuses these arguments, adapters, or the mode.
        MissingDependencyError: At load: the model's own package is not installed.
    """

    theirs: ClassVar[Any]
    """The sheaf-serve class."""

    @classmethod
    def identify(cls, **backend_kwargs: Any) -> str | None:
        # What the weights are called differs: every argument that is a path counts, and of
        # those that are called like weights every hub id.
        given = {**defaults(cls.theirs), **backend_kwargs}
        revision = given.get("revision")
        adapters = (given.pop("lora", None) or {}).get("adapters") or {}
        found = {}
        for name, value in sorted(given.items()):
            if not isinstance(value, str) or name == "revision":
                continue
            if (weights := _weights(name, value)) is not None:
                found[name] = weights_digest(weights, revision)
        for name, adapter in sorted(adapters.items()):
            source = str(adapter.get("source")).removeprefix("hf:").partition(":")[0]
            found[f"lora {name}"] = weights_digest(source)
        if not found or None in found.values():
            return None
        return "; ".join(f"{name}={digest}" for name, digest in found.items())

    def __init__(
        self,
        *,
        lora: dict[str, Any] | None = None,
        model_opt: dict[str, Any] | None = None,
        feast_repo_path: str | None = None,
        storage_options: dict[str, Any] | None = None,
        **backend_kwargs: Any,
    ) -> None:
        name = type(self).__name__
        self._name = name.removeprefix(PREFIX)
        self._backend = made(self.theirs, name, backend_kwargs)
        self._lora: Any = None
        if lora is not None:
            self._lora = parsed("sheaf.lora", "LoRAConfig", lora, "lora")
            if not self._backend.supports_lora():
                raise SpecError(f"backend {name!r} takes no LoRA adapters; leave out 'lora'")
        if model_opt is not None:
            mode = parsed("sheaf.model_opt", "ModelOptConfig", model_opt, "model_opt")
            try:
                importlib.import_module("sheaf.model_opt").apply_model_opt(
                    self._backend, mode, name
                )
            except ValueError as e:
                raise SpecError(f"backend {name!r}: {e}") from e
        self._feast: Any = feast_repo_path
        self._storage_options = storage_options
        self._options: dict[str, Any] = {}
        self._request: type[BaseModel] = sheaf_serve_types()[str(self.model_type)][0]
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draws = RowDraws(self._run)

    def load(self) -> None:
        name = type(self).__name__
        self._options = resolve_options(self._storage_options)
        if self._name in _RANDOM_WEIGHTS:
            with suppress(ImportError):
                importlib.import_module("torch")  # or else it couldn't be seeded
        try:
            with seeded(name.encode()):  # all workers draw the same weights, where any are drawn
                self._backend.load()
        except ImportError as e:
            raise MissingDependencyError(f"backend {name!r} needs a package: {e}") from e
        watch(self._name, self._backend)
        if self._lora is not None:
            self._backend.load_adapters(self._lora.adapters)
        if self._feast is not None:
            self._feast = importlib.import_module("sheaf.integrations.feast").FeastResolver(
                self._feast
            )
            self._feast.load()

    def batch_predict(self, requests: Sequence[Any]) -> list[BaseModel]:
        theirs = [self._handed_over(request) for request in requests]
        groups: dict[Hashable, list[int]] = defaultdict(list)
        for i, request in enumerate(theirs):
            groups[self._adapters(request), _settings(request)].append(i)
        answers: dict[int, BaseModel] = {}
        for kind, members in groups.items():
            group = [theirs[i] for i in members]
            if self._lora is not None:
                names, weights = self._adapters(group[0])
                self._backend.set_active_adapters(list(names), list(weights))
            with temporary_files_removed(self._backend):
                answers.update(zip(members, self._draws.answer(group, kind), strict=True))
        for i, request in enumerate(theirs):
            refuse_answer(request, answers[i])
            asked = Asked(self._name, self._backend, request, requests[i].model_fields_set)
            if kinds := deviations(asked, answers[i]):
                note(answers[i], *kinds)
        return [answers[i] for i in range(len(requests))]

    def _run(self, group: list[Any]) -> list[BaseModel]:
        answers = self._answers(group)
        if len(answers) != len(group):
            raise ResponseMismatchError(
                f"{type(self._backend).__name__} returned {len(answers)} responses for "
                f"{len(group)} requests; it must return one for each, in the same order"
            )
        return answers

    def _answers(self, group: list[Any]) -> list[BaseModel]:
        base = importlib.import_module("sheaf.backends.base").ModelBackend
        cls = type(self._backend)
        alone = cls.async_predict is not base.async_predict
        together = cls.async_batch_predict is not base.async_batch_predict
        if together or (alone and cls.batch_predict is base.batch_predict):
            return self._run_async(group, together=together)
        return list(self._backend.batch_predict(group))

    def _run_async(self, group: list[Any], *, together: bool) -> list[BaseModel]:
        async def run() -> list[BaseModel]:
            if together:
                return list(await self._backend.async_batch_predict(group))
            return list(await asyncio.gather(*map(self._backend.async_predict, group)))

        if self._loop is None:  # one for life: clients keep connections in it
            self._loop = asyncio.new_event_loop()
        return self._loop.run_until_complete(run())

    def _handed_over(self, request: Any) -> Any:
        if not isinstance(request, self._request):
            fields = request.model_dump()
            uris = fields.pop("image_uris", None)
            if uris is not None:
                files = [read_uri(uri, self._options) for uri in uris]
                fields["images_b64"] = [base64.b64encode(data).decode() for data in files]
            if isinstance(fields.get("history"), list):
                fields["history"] = _with_nan(fields["history"])
            request = self._request.model_validate(fields)
        ref = getattr(request, "feature_ref", None)
        if ref is not None:
            if self._feast is None:
                raise ValueError(
                    "'feature_ref' needs feast_repo_path in backend_kwargs; or give 'history'"
                )
            found = {"history": self._feast.resolve(ref), "feature_ref": None}
            request = request.model_copy(update=found)
        refuse(self._name, self._backend, request)
        return as_shown(request)

    def _adapters(self, request: Any) -> tuple[tuple[str, ...], tuple[float, ...]]:
        asked = getattr(request, "adapters", None)
        if self._lora is None:
            if asked:
                raise ValueError("'adapters' are asked for; name them in backend_kwargs['lora']")
            return (), ()
        resolve = importlib.import_module("sheaf.lora").resolve_active_adapters
        names, weights = resolve(request, self._lora)
        return tuple(names), tuple(weights)

    def close(self) -> None:
        if self._loop is not None:
            self._loop.close()
            self._loop = None
        self._backend = None


def _registry() -> tuple[dict[str, Any], SpecError | None]:
    """Classes by name, and why some are missing."""
    registry: dict[str, Any] = {}
    try:
        registry = importlib.import_module("sheaf.registry")._BACKEND_REGISTRY
        register = importlib.import_module("sheaf.backends._register")
        register.register_builtin_backends()
    except Exception as e:  # a broken install, or a library under it, may raise anything
        trouble: SpecError = broken_install(e)
        trouble.__cause__ = e
        return registry, trouble
    try:
        register.register_extra_backends()
    except Exception as e:
        trouble = SpecError(
            f"a module of SHEAF_EXTRA_BACKENDS={os.environ['SHEAF_EXTRA_BACKENDS']!r} can't be "
            f"imported ({type(e).__name__}: {e}); correct the variable or the module"
        )
        trouble.__cause__ = e
        return registry, trouble
    return registry, None


def _model_type(theirs: Any, name: str) -> str:
    """A property there; the constructor's arguments aren't known yet."""
    try:
        return str(object.__new__(theirs).model_type)
    except Exception as e:
        raise SpecError(
            f"backend {name!r}: {theirs.__name__}.model_type can't be read from the class alone "
            f"({type(e).__name__}: {e}); make it a constant"
        ) from e


def _weights(argument: str, value: str) -> str | None:
    """The path or hub id of weights that an argument names, if any."""
    called_so = _NAMES_WEIGHTS.fullmatch(argument) is not None
    # A folder that happens to be called "cpu" or "medium" is no one's weights.
    path_like = called_so or os.sep in value
    if path_like and os.path.exists(os.path.expanduser(value)):
        return value
    hub = _HUB_ID.fullmatch(value)
    return hub[1] if called_so and hub is not None else None


def _settings(request: Any) -> Hashable:
    """What requests must agree in to be handed over together: all but ids and content."""
    found = []
    for name, field in type(request).model_fields.items():
        value = getattr(request, name)
        choice = get_origin(field.annotation) is Literal
        if choice or value is None or isinstance(value, (bool, int, float, Enum)):
            found.append((name, value))
    return tuple(found)


def _with_nan(history: Any) -> Any:
    """A history whose missing values are NaN: sheaf-serve's contract has no null."""
    if isinstance(history, list):
        return [_with_nan(value) for value in history]
    return float("nan") if history is None else history
