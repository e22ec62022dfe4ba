"""Finding a backend class by name, entry point or import path."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from sheaf_dagster.backends.base import ModelBackend, what_is_missing
from sheaf_dagster.errors import SheafError, SpecError, UnknownBackendError

__all__ = ["ENTRY_POINT_GROUP", "known_backends", "register_backend", "resolve_backend"]

ENTRY_POINT_GROUP = "sheaf_dagster.backends"
"""Entry point group through which other packages offer backends."""

_BUILTIN: dict[str, str] = {
    "chronos2": "sheaf_dagster.backends.chronos:ChronosBackend",
    "statsforecast": "sheaf_dagster.backends.statsforecast:StatsForecastBackend",
    "image_embedder": "sheaf_dagster.backends.image_embedder:ImageEmbedderBackend",
    "mlflow": "sheaf_dagster.backends.mlflow:MlflowBackend",
    "onnx": "sheaf_dagster.backends.onnx:OnnxBackend",
    "openai_endpoint": "sheaf_dagster.backends.openai_endpoint:OpenAIEndpointBackend",
    "sentence_transformers": "sheaf_dagster.backends.text_embedder:SentenceTransformersBackend",
    "sklearn": "sheaf_dagster.backends.sklearn:SklearnBackend",
    "tabicl": "sheaf_dagster.backends.tabicl:TabICLBackend",
    "torch_export": "sheaf_dagster.backends.torch_export:TorchExportBackend",
    "transformers_pipeline": (
        "sheaf_dagster.backends.transformers_text:TransformersPipelineBackend"
    ),
    "vllm": "sheaf_dagster.backends.vllm:VllmBackend",
}

_REGISTRY: dict[str, type[ModelBackend]] = {}

BackendT = TypeVar("BackendT", bound=ModelBackend)


def register_backend(name: str) -> Callable[[type[BackendT]], type[BackendT]]:
    """Class decorator that registers a backend under a name.

    Raises:
        SpecError: The class is not a ``ModelBackend``, or another class has the name.
    """

    def decorate(cls: type[BackendT]) -> type[BackendT]:
        check_class(cls, name)
        other = _REGISTRY.get(name)
        if other is not None and (other.__module__, other.__qualname__) != (
            cls.__module__,
            cls.__qualname__,
        ):
            raise SpecError(
                f"backend name {name!r} is taken by {other.__module__}.{other.__qualname__}; "
                "choose another name"
            )
        _REGISTRY[name] = cls
        return cls

    return decorate


def known_backends() -> list[str]:
    """The names that ``ModelSpec.backend`` accepts, sorted. Import paths are accepted, too.

    Backends of an installed sheaf-serve are called ``sheaf:<name>``. Backends of other packages are
    listed without being imported. If one can't be imported, the error comes when a spec names it.
    """
    from sheaf_dagster.backends.sheaf_serve import sheaf_serve_names

    offered = (e.name for e in _entry_points())
    return sorted({*_BUILTIN, *_REGISTRY, *offered, *sheaf_serve_names()})


def resolve_backend(name: str) -> type[ModelBackend]:
    """The class behind a backend name or a ``"pkg.module:Class"`` path.

    A name that was registered in this process takes precedence over a built-in name, and a built-in
    name over one of an installed package. Names of those have no colon: what has one is a path.

    Raises:
        UnknownBackendError: Nothing has that name, or the path leads nowhere.
        MissingDependencyError: The name starts with ``sheaf:``, and sheaf-serve is not installed or
            is broken.
        SpecError: The object found is not a ``ModelBackend``.
    """
    if name in _REGISTRY:
        return _REGISTRY[name]
    if name in _BUILTIN:
        return _load_path(_BUILTIN[name], name)
    if name.startswith("sheaf:"):
        from sheaf_dagster.backends.sheaf_serve import adapter_of

        return adapter_of(name)
    if ":" in name:  # before installed packages are asked: looking at hundreds takes a while
        return _load_path(name, name)
    for entry_point in _entry_points():
        if entry_point.name == name:
            return check_class(_loaded(entry_point), name)
    raise UnknownBackendError(
        f"unknown backend {name!r}; known: {', '.join(known_backends())}. "
        'A class of your own needs no registration: backend="pkg.module:Class"'
    )


def _loaded(entry_point: EntryPoint) -> object:
    try:
        return entry_point.load()
    except SheafError:
        raise
    except Exception as e:  # a package that is broken may raise anything
        package = entry_point.dist.name if entry_point.dist else "a package"
        raise UnknownBackendError(
            f"backend {entry_point.name!r} is offered by {package} (entry point "
            f"{entry_point.value!r}), which can't be imported: {type(e).__name__}: {e}; repair or "
            "remove that package"
        ) from e


def _load_path(path: str, name: str) -> type[ModelBackend]:
    module_name, _, attribute = path.partition(":")
    try:
        found: object = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except SheafError:
        raise
    except Exception as e:
        raise UnknownBackendError(
            f'backend {name!r} can\'t be imported: {type(e).__name__}: {e}; expected "pkg.module:Class" '
            "that is importable where the job is defined and on every worker"
        ) from e
    return check_class(found, name)


def check_class(found: object, name: str) -> type[ModelBackend]:
    """What was found under a name, if it is a class that can be a backend.

    Raises:
        SpecError: It is none, and why.
    """
    if not (isinstance(found, type) and issubclass(found, ModelBackend)):
        raise SpecError(f"backend {name!r} is {found!r}, which is not a subclass of ModelBackend")
    if not getattr(found, "model_type", None):
        raise SpecError(
            f"backend {name!r}: class {found.__qualname__} must set the class attribute model_type"
        )
    missing = what_is_missing(found)
    if missing:
        raise SpecError(f"backend {name!r}: {missing}")
    return found


def _entry_points() -> list[EntryPoint]:
    return list(entry_points(group=ENTRY_POINT_GROUP))
