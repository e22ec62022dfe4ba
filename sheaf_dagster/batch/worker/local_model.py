"""Models that run in the driver's own process, each on a thread of its own."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from sheaf_dagster.batch.worker.loading import CACHE_SIZE, LoadedBackend, ModelContext, load_backend
from sheaf_dagster.batch.worker.model_thread import ModelThread, ThreadLostError

__all__ = ["LocalModel", "local_model"]

T = TypeVar("T")

log = logging.getLogger(__name__)

_MODELS: OrderedDict[str, LocalModel] = OrderedDict()
_LOCK = threading.Lock()


@contextmanager
def local_model(context: ModelContext) -> Iterator[LocalModel]:
    """The process's model of that kind, for as long as the block runs; jobs in threads share it.

    It stays loaded for the next job. A model that makes room for others is closed once nobody
    uses it.

    Raises:
        BackendLoadError, ModelChangedError: It can't be loaded.
    """
    with _LOCK:
        model = _MODELS.setdefault(context.key, LocalModel(context))
        _MODELS.move_to_end(context.key)
        model.users += 1
        keep = 1 if context.spec.resources.num_gpus else CACHE_SIZE
        surplus = [_MODELS.popitem(last=False)[1] for _ in range(len(_MODELS) - keep)]
        unused = [other for other in surplus if not other.users]
    try:
        for other in unused:
            other.close()
        model.load()
        yield model
    except BaseException:
        if not model.is_loaded:
            with _LOCK:
                if _MODELS.get(context.key) is model:
                    del _MODELS[context.key]
        raise
    finally:
        with _LOCK:
            model.users -= 1
            unwanted = not model.users and _MODELS.get(context.key) is not model
        if unwanted:
            model.close()


class LocalModel:
    """A model whose every call, ``load()`` the first, comes from one thread, one at a time."""

    def __init__(self, context: ModelContext) -> None:
        self.users = 0
        self._context = context
        self._lock = threading.Lock()
        self._thread: ModelThread | None = None
        self._loaded: LoadedBackend | None = None

    @property
    def is_loaded(self) -> bool:
        """Whether it has been loaded."""
        return self._loaded is not None

    def load(self) -> LoadedBackend:
        """The loaded backend; loads it at the first call, and anew where its thread got stuck."""
        self._ready()
        assert self._loaded is not None
        return self._loaded

    def call(self, function: Callable[[], T], seconds: float | None = None) -> T:
        """A call of the backend's, from the model's thread.

        Raises:
            CallTooLongError: It took too long.
        """
        while True:
            try:
                return self._ready().call(function, seconds)
            except ThreadLostError:  # it waited behind a call that got stuck
                continue

    def close(self) -> None:
        """Closes the backend and ends its thread."""
        thread, loaded = self._thread, self._loaded
        if thread is None or loaded is None:
            return
        try:
            thread.call(loaded.close)
        except (Exception, ThreadLostError) as e:  # another model's trouble must not be this one's
            log.warning("closing %s failed: %s", type(loaded.backend).__name__, e)
        thread.end()
        self._thread = self._loaded = None

    def _ready(self) -> ModelThread:
        with self._lock:
            if self._thread is not None and not self._thread.lost:
                return self._thread
            thread = ModelThread()
            try:
                fresh = thread.call(lambda: load_backend(self._context))
            except BaseException:
                thread.end()
                raise
            if self._loaded is None:
                self._loaded = fresh
            else:  # whoever holds it goes on with the new one
                self._loaded.backend = fresh.backend
            self._thread = thread
            return thread
