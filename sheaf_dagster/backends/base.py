"""What runs a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Coroutine, Sequence
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel

from sheaf_dagster.backends.common.loops import BackgroundLoop, gathered
from sheaf_dagster.errors import SpecError

__all__ = [
    "ModelBackend",
    "Shape",
    "answered_in_shape",
    "close_backend",
    "loop_of",
    "shape_of",
    "what_is_missing",
]

Shape = Literal["call", "stages", "flight"]
"""How a backend takes its rows: in one call a batch, in stages, or many in flight."""

T = TypeVar("T")

_LOOP = "_sheaf_loop"


class ModelBackend(ABC):
    """A model, from loading its weights to typed answers. The one class that users implement.

    A backend is constructed with the ``backend_kwargs`` of its ``ModelSpec``, in the process
    where it will run, and then lives there: ``load()`` is called once, rows are answered for as
    long as there are any, ``close()`` is called where it makes room for another model (a worker
    that is no longer needed just ends). The constructor should only keep its arguments; import
    heavy libraries inside ``load()``.

    Rows are answered in one of three shapes, by what the class overrides:

    * **One call**: ``predict``, or ``batch_predict`` where the model gains from batches. Always
      from the thread that called ``load``.
    * **Stages**: ``prepare``, ``infer`` and ``respond``, which the worker overlaps: while one
      batch is on the device, the next rows are prepared and the last ones are written. ``infer``
      is always called from the thread that called ``load``, one call at a time. ``prepare`` is
      called from several threads at once, ``respond`` from one other thread.
    * **Rows in flight**: ``predict_async``, for engines and services that schedule by themselves.
      The worker keeps ``max_in_flight`` rows under way, all on one event loop.

    Of a class and its bases the most derived one that has any of these methods decides.
    Whatever its shape, a backend answers ``predict`` and ``batch_predict`` when they are called by
    hand.

    The rules that the engine relies on:

    * There is exactly one response for each request, in the same order.
    * Each response carries its request's ``request_id``.
    * A response depends on the batch's rows alone, not on what ran before, so that a retried
      batch gives the same bytes.

    Example::

        @register_backend("doubler")
        class Doubler(ModelBackend):
            model_type = "number"

            def load(self):
                self.factor = 2

            def predict(self, request):
                return NumberResponse.answer(request, value=request.value * self.factor)
    """

    model_type: ClassVar[str | tuple[str, ...]]
    """Model type that this backend serves, a ``ModelType`` value or a registered name; or
    several, where it tells their requests apart by class. A batch holds rows of one of them."""

    tunables: ClassVar[frozenset[str]] = frozenset()
    """Constructor's arguments that decide how fast rows are answered, and by which key, but not
    what is answered. They are no part of a job's fingerprint: changing them lets a job go on where
    it was."""

    batch_invariant: ClassVar[bool] = False
    """Whether a row's answer is the same to the byte whatever its batch mates are.

    It makes a promise of this: an output for which answers were reused (``reuse``) is the same to
    the byte as that of a full run. Otherwise the last bits of an answer may differ. The
    engine doesn't read it; ``sheaf_dagster.testing`` checks the backends that declare it."""

    @classmethod
    def identify(cls, **backend_kwargs: Any) -> str | None:
        """Identity of the weights that a constructor's arguments stand for, found without loading.

        It is part of a job's fingerprint, so that other weights behind the same arguments are
        another model: finished parts aren't resumed, committed partitions aren't passed over.
        It is asked in the driver before a job and on each worker before and after ``load()``,
        and a worker that finds another one refuses to run. So it must be the same on every
        machine, and cheap to ask again; ``backends.weights_digest`` is both::

            @classmethod
            def identify(cls, weights, **_):
                return weights_digest(weights)

        Returns:
            Any text, or None where it isn't known without loading.
        """
        return None

    @abstractmethod
    def load(self) -> None:
        """Loads weights and whatever ``predict`` needs; called once in each worker.

        Raises:
            MissingDependencyError: The library that it needs is not installed.
        """

    # -- one call -----------------------------------------------------------------------------

    def predict(self, request: Any) -> BaseModel:
        """Answers one request; by default as a batch of one.

        A class that overrides neither this nor ``batch_predict``, ``infer`` or ``predict_async``
        is refused where it is named or registered.

        Raises:
            SpecError: This object has none of them.
        """
        if "batch_predict" in vars(self) or _overrides(type(self), "batch_predict"):
            return self.batch_predict([request])[0]
        # Not through batch_predict, which would call a subclass's own predict again, for ever.
        return self._batch_by_shape([request])[0]

    def batch_predict(self, requests: Sequence[Any]) -> list[BaseModel]:
        """Answers a batch; by default row by row, or by the stages, or by ``predict_async``.

        Override it where the model gains from batching.
        """
        if shape_of(self) == "call" and _overrides(type(self), "predict"):
            return [self.predict(request) for request in requests]
        return self._batch_by_shape(requests)

    def _batch_by_shape(self, requests: Sequence[Any]) -> list[BaseModel]:
        if not requests:
            return []
        if _overrides(type(self), "predict_async") and shape_of(self) != "stages":
            return self.run_async(gathered(self.predict_async, requests, self.max_in_flight))
        if _overrides(type(self), "infer"):
            return self.respond(requests, self.infer([self.prepare(r) for r in requests]))
        raise SpecError(what_is_missing(type(self)) or _NOTHING_ELSE)

    # -- stages -------------------------------------------------------------------------------

    prepare_threads: int | None = None
    """Threads in which ``prepare`` runs; by default as many as the worker has CPUs. More of them pay
    where it waits for something, such as a store."""

    def prepare(self, request: Any) -> Any:
        """What ``infer`` takes for one row: tokens, a decoded picture. By default the request.

        It runs on the CPU, in several threads at once and ahead of the device, so it changes
        nothing of the backend. What it raises is the row's error.
        """
        return request

    def size(self, prepared: Any) -> int:
        """What a prepared row costs on the device once it is padded: tokens, pixels; 1 by default.

        A batch costs its rows times the largest of them, which ``batch_budget`` bounds. It is
        asked where ``prepare`` ran, in the same threads.
        """
        return 1

    def padded_size(self, sizes: Sequence[int]) -> int:
        """What the device had in all, for rows of these sizes; for ``padding_fraction``.

        By default the rows times the largest of them: override it where ``infer`` pads less.
        """
        return len(sizes) * max(sizes)

    def device_size(self, prepared: Sequence[Any], sizes: Sequence[int]) -> int:
        """What the device had in all for the rows of one batch, in the measure of ``size``.

        By default what ``padded_size`` says of their sizes: override it where sizes alone don't tell
        how ``infer`` pads, because a row holds several texts, or all are filled up to one length.

        Args:
            prepared: What ``prepare`` made of the rows.
            sizes: The size of each.
        """
        return self.padded_size(sizes)

    window_rows: ClassVar[int | None] = None
    """Rows of the file out of which batches are taken by ``size``, so that little is padding.

    With ``batch_budget`` they always are, by default out of 512. With ``batch_size`` they are where
    this is set: where rows differ a lot in size. A chunk, the least that a worker takes on, holds
    as many rows.
    """

    def infer(self, prepared: Sequence[Any]) -> Sequence[Any]:
        """The model's outputs for prepared rows, one for each, in their order.

        The device's part and nothing else: it is what ``device_busy_fraction`` measures.

        Args:
            prepared: What ``prepare`` made of the rows of one batch; at least one.
        """
        raise NotImplementedError

    def respond(self, requests: Sequence[Any], outputs: Sequence[Any]) -> list[BaseModel]:
        """The responses to some rows; runs on the CPU, behind the device.

        Args:
            requests: The rows.
            outputs: What ``infer`` returned for each of them.
        """
        raise NotImplementedError

    # -- rows in flight -----------------------------------------------------------------------

    max_in_flight: int = 32
    """Rows that ``predict_async`` may have under way; a class attribute, or set in the
    constructor."""

    async def predict_async(self, request: Any) -> BaseModel:
        """Answers one request, while others are under way.

        All calls of a backend run on one event loop. A row that is given up is cancelled.
        """
        raise NotImplementedError

    def run_async(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine on the loop of ``predict_async``, and waits for it.

        For ``load`` and ``close``: clients belong to the loop that they were made on.
        """
        return loop_of(self).run(coroutine)

    # -- what any may have --------------------------------------------------------------------

    def warmup_requests(self) -> Sequence[Any]:
        """A small batch that compiles kernels and fills caches before the first real one."""
        return ()

    def model_digest(self) -> str | None:
        """Identity of the loaded weights where only the loaded model knows it.

        All workers of a job must report the same one. By default it is ``identify``'s.
        """
        return None

    def close(self) -> None:  # noqa: B027  (optional)
        """Frees what ``load`` took, before another model is loaded in the same process."""


def shape_of(backend: ModelBackend | type[ModelBackend]) -> Shape:
    """How a backend, or a class of them, takes its rows; see ``ModelBackend``."""
    kind = backend if isinstance(backend, type) else type(backend)
    if kind is not backend and not {"predict", "batch_predict"}.isdisjoint(vars(backend)):
        return "call"
    for cls in kind.__mro__:
        if cls is ModelBackend:
            break
        for shape, methods in _METHODS.items():
            if not methods.isdisjoint(vars(cls)) and _overrides(kind, *_MAIN[shape]):
                return shape
    return "call"


_METHODS: dict[Shape, frozenset[str]] = {
    "flight": frozenset({"predict_async"}),
    "stages": frozenset({"prepare", "size", "infer", "respond"}),
    "call": frozenset({"predict", "batch_predict"}),
}
_MAIN: dict[Shape, tuple[str, ...]] = {
    "flight": ("predict_async",),
    "stages": ("infer",),
    "call": ("predict", "batch_predict"),
}
"""A shape's methods, one of which a class must have for the others to count: a backend in one call
may well have a ``size`` or a ``prepare`` of its own."""


def _overrides(cls: type[ModelBackend], *methods: str) -> bool:
    return any(getattr(cls, m) is not getattr(ModelBackend, m) for m in methods)


def what_is_missing(cls: type[ModelBackend]) -> str | None:
    """Why a class can answer nothing; None if it can."""
    if _overrides(cls, "infer") and not _overrides(cls, "respond", "predict", "batch_predict"):
        return (
            f"class {cls.__qualname__} has infer() and no respond(); override respond() to turn "
            "outputs into responses"
        )
    if _overrides(cls, "predict", "batch_predict", "infer", "predict_async"):
        return None
    return (
        f"class {cls.__qualname__} answers nothing; override predict(), or batch_predict() where "
        "the model gains from batches (or infer() and respond(), or predict_async())"
    )


_NOTHING_ELSE = "ModelBackend's own methods answer nothing; don't call them from your override"


def answered_in_shape(backend: ModelBackend, requests: Sequence[Any]) -> list[BaseModel]:
    """A batch's answers as the worker gets them: by the methods that decide the backend's shape.

    ``batch_predict`` may come from a base that had another shape.
    """
    if shape_of(backend) == "call":
        return backend.batch_predict(requests)
    return backend._batch_by_shape(requests)


def loop_of(backend: ModelBackend) -> BackgroundLoop:
    """The event loop of a backend, which begins when it is first asked for."""
    loop: BackgroundLoop | None = vars(backend).get(_LOOP)
    if loop is None:
        loop = vars(backend)[_LOOP] = BackgroundLoop()
    return loop


def close_backend(backend: ModelBackend) -> None:
    """Closes a backend and ends its event loop, if it has one."""
    try:
        backend.close()
    finally:
        loop = vars(backend).pop(_LOOP, None)
        if loop is not None:
            loop.close()
