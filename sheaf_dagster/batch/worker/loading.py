"""A model in a worker process: found once, loaded once."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

from sheaf_dagster.backends import ModelBackend, resolve_backend
from sheaf_dagster.backends.arguments import check_arguments
from sheaf_dagster.backends.base import Shape, answered_in_shape, close_backend, shape_of
from sheaf_dagster.batch.model_spec import ModelSpec
from sheaf_dagster.batch.rows.requests import RowContract
from sheaf_dagster.batch.worker.gpus import GpuSampler
from sheaf_dagster.batch.worker.sizing import BatchSizer, BudgetSizer
from sheaf_dagster.contracts import contract_for
from sheaf_dagster.environment import from_environment
from sheaf_dagster.errors import BackendLoadError, ModelChangedError, SheafError, SpecError
from sheaf_dagster.masking import masked_error

__all__ = ["CACHE_SIZE", "LoadedBackend", "ModelContext", "cached_backend", "load_backend"]

log = logging.getLogger(__name__)

_BACKEND_CACHE: OrderedDict[str, LoadedBackend] = OrderedDict()
_CACHE_LOCK = threading.Lock()
CACHE_SIZE = 4
"""Models that a worker process keeps loaded; one where they sit on a GPU."""


@dataclass(frozen=True)
class ModelContext:
    """All that a worker needs to load a model and parse its rows.

    It travels with the classes themselves, not their names: a backend or contract that was
    registered in the driver, a notebook say, need not be registered again on the workers.
    """

    spec: ModelSpec
    backend_cls: type[ModelBackend]
    rows: RowContract
    identity: str | None = None
    """What ``ModelBackend.identify`` found when the job began."""

    @classmethod
    def of(cls, spec: ModelSpec, *, redact: bool = False) -> ModelContext:
        """Resolves a spec's backend and contract.

        Raises:
            UnknownBackendError, UnknownContractError: With the known names.
            SpecError: The backend serves another model type, or an argument is of a wrong type.
        """
        backend_cls = resolve_backend(spec.backend)
        contract = contract_for(spec.model_type)
        served = backend_cls.model_type
        names = [str(t) for t in ((served,) if isinstance(served, str) else served)]
        if spec.model_type not in names:
            raise SpecError(
                f"model {spec.name!r}: backend {spec.backend!r} serves model type "
                f"{' or '.join(map(repr, names))}, but the spec says {spec.model_type!r}; change one of them"
            )
        check_arguments(backend_cls, spec.name, spec.backend_kwargs)
        return cls(spec, backend_cls, RowContract.of(contract, redact=redact))

    def arguments(self) -> dict[str, Any]:
        """What the backend is constructed with: its arguments, with this process's variables.

        ``{"env": NAME}``, as Dagster's ``EnvVar`` becomes inside of a resource, is filled in only
        here: a spec is hashed, shown and handed on, and holds no secret.

        Raises:
            SpecError: A variable is not set here.
        """
        return from_environment(
            f"model {self.spec.name!r}: backend_kwargs", self.spec.backend_kwargs
        )

    def identify(self) -> str | None:
        """The identity that the weights have now, as seen from this process.

        Raises:
            BackendLoadError: The backend's ``identify`` failed.
        """
        try:
            return self.backend_cls.identify(**self.arguments())
        except SheafError:
            raise
        except Exception as e:
            raise BackendLoadError(
                f"model {self.spec.name!r}: identify() of backend {self.spec.backend!r} failed; "
                "check backend_kwargs (identify() returns None where it can't see the weights): "
                f"{type(e).__name__}: {e}"
            ) from masked_error(e)

    def identified(self) -> ModelContext:
        """This model, with the weights that there are now."""
        return replace(self, identity=self.identify())

    @property
    def version(self) -> str:
        """Hash of what makes this model another one: its spec and its weights (hex)."""
        spec = self.spec.digest(self.backend_cls.tunables)
        identity = f"{spec}\n{self.identity or ''}"
        return hashlib.sha256(identity.encode()).hexdigest()

    @property
    def key(self) -> str:
        """Identity in a worker's cache: the whole spec, the class behind its name, the weights."""
        where = f"{self.backend_cls.__module__}:{self.backend_cls.__qualname__}:{self.identity}:"
        return where + json.dumps(self.spec.model_dump(mode="json"), sort_keys=True)


class Meter:
    """Adds up what a device has done."""

    def __init__(self) -> None:
        self._found = (0.0, 0.0, 0)

    def add(self, size: float, seconds: float) -> None:
        """Notes a batch: what it cost, padded, and how long the device had it."""
        all_size, all_seconds, batches = self._found
        self._found = (all_size + size, all_seconds + seconds, batches + 1)

    def found(self) -> tuple[float, float, int]:
        """Both, so far, and how many batches there were."""
        return self._found


class Closes(Protocol):
    """What is closed with a model."""

    def close(self) -> None:
        """Closes it."""


@dataclass
class LoadedBackend:
    """A backend that is ready to predict."""

    backend: ModelBackend
    load_seconds: float
    ready_at: float
    """``time.time()`` at the end of its load."""
    digest: str | None
    """Identity of its weights, where it is known."""
    batch_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=16))
    """What the last calls of ``batch_predict`` took."""
    sizer: BatchSizer = field(default_factory=BatchSizer)
    """What it has found of the best batch size."""
    budgets: BudgetSizer = field(default_factory=BudgetSizer)
    """What it has found of the best ``batch_budget``."""
    gpus: GpuSampler | None = None
    """What looks at its GPUs while it has chunks."""
    meter: Meter = field(default_factory=Meter)
    """What its device has done."""
    told_seconds: Callable[[], float] | None = None
    """Of a model in another process: seconds that the device took since the last call."""
    beside: Closes | None = None
    """The processes beside its own, if there are any."""

    def close(self) -> None:
        """Ends the processes beside it, and closes the backend."""
        if self.beside is not None:
            self.beside.close()
        close_backend(self.backend)

    @cached_property
    def shape(self) -> Shape:
        """How the backend takes its rows."""
        return shape_of(self.backend)

    @property
    def usual_seconds(self) -> float:
        """What most calls take at least; 0 until there were a few.

        The first call often takes far longer than any other. On a busy machine so does every
        tenth, put aside meanwhile for longer than a small model takes: among thousands of calls
        three of five will have met with that by chance, but not thirteen of sixteen.
        """
        seconds = sorted(self.batch_seconds)
        return seconds[len(seconds) // 4 - 1] if len(seconds) > 4 else 0.0

    @cached_property
    def tag(self) -> str:
        """Short hash of the weights' identity, for names of parts; empty where it isn't known."""
        return hashlib.sha256(self.digest.encode()).hexdigest()[:12] if self.digest else ""


def load_backend(context: ModelContext) -> LoadedBackend:
    """Constructs, loads and warms up a backend.

    Raises:
        BackendLoadError: With the backend's own error at the end of the message.
        ModelChangedError: The weights aren't those that the job began with.
    """
    spec = context.spec
    started = time.perf_counter()
    before = context.identify()
    _require_same(context, context.identity, before, "this worker finds")
    step = "constructor"
    try:
        backend = context.backend_cls(**context.arguments())
        step = "load()"
        backend.load()
        step = "warm-up"
        warmup = list(backend.warmup_requests())
        if warmup:
            answered_in_shape(backend, warmup)
        digest = backend.model_digest() or before or context.identity
    except SheafError:
        raise
    except Exception as e:
        hint = (
            "check backend_kwargs" if step == "constructor" else "check the weights and libraries"
        )
        raise BackendLoadError(
            f"model {spec.name!r}: {step} of backend {spec.backend!r} failed; {hint}: "
            f"{type(e).__name__}: {e}"
        ) from masked_error(e)
    _require_same(context, before, context.identify(), "while they were loaded, they became")
    return LoadedBackend(backend, time.perf_counter() - started, time.time(), digest)


def _require_same(
    context: ModelContext, expected: str | None, found: str | None, what: str
) -> None:
    if None not in (expected, found) and expected != found:
        raise ModelChangedError(
            f"model {context.spec.name!r}: the weights of backend {context.spec.backend!r} were "
            f"{expected}; {what} {found}. Give every machine the same weights, then run again"
        )


def cached_backend(context: ModelContext) -> LoadedBackend:
    """The process's loaded backend of a model; loads it at the first call."""
    with _CACHE_LOCK:
        loaded = _BACKEND_CACHE.get(context.key)
        if loaded is not None:
            _BACKEND_CACHE.move_to_end(context.key)
            return loaded
        keep = 0 if context.spec.resources.num_gpus else CACHE_SIZE - 1
        while len(_BACKEND_CACHE) > keep:
            _, old = _BACKEND_CACHE.popitem(last=False)
            try:
                old.close()
            except Exception as e:  # another model's trouble must not be this one's
                log.warning("closing %s failed: %s", type(old.backend).__name__, e)
        loaded = load_backend(context)
        _BACKEND_CACHE[context.key] = loaded
        return loaded
