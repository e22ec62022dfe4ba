"""The base class of all backends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ClassVar, Literal, Self, TypeVar

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
    "without_model",
]

Shape = Literal["call", "stages", "flight"]
"""How a backend takes its rows: in one call a batch, in stages, or many in flight."""

T = TypeVar("T")

_LOOP = "_sheaf_loop"


class ModelBackend(ABC):
    """Base class of a model, from loading weights to typed answers. The one class that users implement.

    The worker constructs a backend with the ``backend_kwargs`` of its ``ModelSpec``, in the process
    where the model runs. It calls ``load()`` once, then passes rows until there are no more. It calls
    ``close()`` if another model is loaded in the same process; otherwise the process just ends. Keep
    the constructor small: store the arguments, and import heavy libraries inside ``load()``.

    A backend answers rows in one of three shapes. The methods that the class overrides decide which:

    * **One call**: ``predict``, or ``batch_predict`` if the model gains from batches. Both are called
      from the thread that called ``load``.
    * **Stages**: ``prepare``, ``infer`` and ``respond``. The worker overlaps them: while one batch is
      on the device, it prepares the next rows and writes the last ones. ``infer`` is called from the
      thread that called ``load``, one call at a time. ``prepare`` is called from several threads at
      once, and ``respond`` from one other thread.
    * **Rows in flight**: ``predict_async``, for engines and services that schedule by themselves.
      The worker keeps ``max_in_flight`` rows in progress, all on one event loop.

    If a class and its bases override methods of several shapes, the most derived class decides. A
    backend of any shape also answers when ``predict`` or ``batch_predict`` is called by hand.

    The engine relies on these rules:

    * There is exactly one response for each request, in the same order.
    * Each response carries its request's ``request_id``.
    * A response depends only on the rows of its batch, not on earlier batches, so that a retried
      batch gives the same bytes.

    Example::

        @register_backend("doubler")
        class Doubler(ModelBackend):
            model_type = "number"

            def load(self):
                self.factor = 2

            def predict(self, request):
                return NumberResponse(
                    request_id=request.request_id,
                    model_name=request.model_name,
                    value=request.value * self.factor,
                )
    """

    model_type: ClassVar[str | tuple[str, ...]]
    """Model type that this backend serves: a ``ModelType`` value or a registered name. A backend that tells
    requests apart by their class may name several types. A batch holds rows of one type."""

    tunables: ClassVar[frozenset[str]] = frozenset()
    """Arguments of the constructor that change the speed or the credentials, but not the answers. They
    aren't part of a job's fingerprint, so a job can continue after they change."""

    batch_invariant: ClassVar[bool] = False
    """Whether a row's answer is the same to the byte in any batch.

    If so, an output with reused answers (``reuse``) is the same to the byte as the output of a full run.
    Otherwise the last bits of an answer may differ. The engine doesn't read this attribute;
    ``sheaf_dagster.testing`` checks the backends that set it."""

    takes_columns: ClassVar[bool] = False
    """Whether ``batch_predict`` reads its requests with ``request_column``.

    If so, rows of a Parquet file stay in their columns, and a request is made only where something
    asks for one. Set it only for such a backend: requests are then made in the model's own thread."""

    @classmethod
    def identify(cls, **backend_kwargs: Any) -> str | None:
        """Identity of the weights behind the constructor's arguments, found without loading them.

        It is part of a job's fingerprint. If the same arguments stand for other weights, the model counts
        as another one: finished parts aren't resumed, and committed partitions aren't skipped. It is called
        in the driver before a job, and on each worker before and after ``load()``. A worker that finds
        another identity refuses to run. So the identity must be the same on every machine, and cheap to
        find again. ``backends.weights_digest`` is both::

            @classmethod
            def identify(cls, weights, **_):
                return weights_digest(weights)

        Returns:
            Any text, or None if the identity isn't known without loading.
        """
        return None

    @abstractmethod
    def load(self) -> None:
        """Loads the weights and everything else that ``predict`` needs. Called once in each worker.

        Raises:
            MissingDependencyError: The library that the backend needs is not installed.
        """

    # -- one call -----------------------------------------------------------------------------

    def predict(self, request: Any) -> BaseModel:
        """Answers one request. By default as a batch of one.

        A class must override this method, ``batch_predict``, ``infer`` or ``predict_async``. Otherwise it is
        refused when it is named or registered.

        Raises:
            SpecError: This object has none of these methods.
        """
        if "batch_predict" in vars(self) or _overrides(type(self), "batch_predict"):
            return self.batch_predict([request])[0]
        # Not through batch_predict, which would call a subclass's own predict again, for ever.
        return self._batch_by_shape([request])[0]

    def batch_predict(self, requests: Sequence[Any]) -> Sequence[BaseModel]:
        """Answers a batch. By default row by row, through the stages, or through ``predict_async``.

        Override it if the model gains from batches. It may read columns of the requests
        (``request_column``) and answer in columns (``ResponseColumns``).
        """
        if shape_of(self) == "call" and _overrides(type(self), "predict"):
            return [self.predict(request) for request in requests]
        return self._batch_by_shape(requests)

    def _batch_by_shape(self, requests: Sequence[Any]) -> Sequence[BaseModel]:
        if not requests:
            return []
        if _overrides(type(self), "predict_async") and shape_of(self) != "stages":
            return self.run_async(gathered(self.predict_async, requests, self.max_in_flight))
        if _overrides(type(self), "infer"):
            outputs = self.infer([self.prepare(r) for r in requests])
            return self.respond(requests, outputs() if callable(outputs) else outputs)
        raise SpecError(what_is_missing(type(self)) or _NOTHING_ELSE)

    # -- stages -------------------------------------------------------------------------------

    prepare_threads: int | None = None
    """Threads in which ``prepare`` runs. By default as many as the worker has CPUs. Use more if
    ``prepare`` waits for something, such as a store."""

    def prepare(self, request: Any) -> Any:
        """Turns one row into the input of ``infer``, such as tokens or a decoded picture. By default the request.

        It runs on the CPU, in several threads at once, ahead of the device, so it must not change the
        backend. An exception becomes the row's error.
        """
        return request

    def size(self, prepared: Any) -> int:
        """What a prepared row costs on the device once it is padded, such as tokens or pixels. By default 1.

        A batch costs its number of rows times its largest row; ``batch_budget`` limits that cost. It is
        called after ``prepare``, in the same threads.
        """
        return 1

    def padded_size(self, sizes: Sequence[int]) -> int:
        """The size of a batch on the device, for rows of these sizes; used for ``padding_fraction``.

        By default the number of rows times the largest of them. Override it if ``infer`` pads less.
        """
        return len(sizes) * max(sizes)

    def device_size(self, prepared: Sequence[Any], sizes: Sequence[int]) -> int:
        """The size of one batch on the device, in the unit of ``size``.

        By default ``padded_size`` of the row sizes. Override it if the sizes alone don't tell how ``infer``
        pads, because a row holds several texts, or because all rows are padded to one length.

        Args:
            prepared: The outputs of ``prepare`` for the rows.
            sizes: The size of each row.
        """
        return self.padded_size(sizes)

    window_rows: ClassVar[int | None] = None
    """Number of rows of the file that are sorted by ``size`` into batches, so that little is padding.

    With ``batch_budget`` rows are always sorted this way, by default 512 at a time. With ``batch_size``
    they are sorted only if this is set; set it if rows differ a lot in size. A chunk, the smallest
    piece of work for a worker, then holds as many rows."""

    def infer(self, prepared: Sequence[Any]) -> Sequence[Any] | Callable[[], Sequence[Any]]:
        """Runs the model on prepared rows. Returns one output for each, in the same order.

        Do only the device's work here: ``device_busy_fraction`` measures this method. A GPU works on its
        own once it has been told what to do. So this method may return a function in place of the outputs:
        it is called once the next batch has been begun, and waits for the outputs. A GPU then has no gap
        between two batches. ``from_device`` makes such a function. Where jobs share a model, or a batch
        is halved, several others may be begun and ended before that; after an early end it isn't
        called.

        Args:
            prepared: The outputs of ``prepare`` for the rows of one batch; at least one.
        """
        raise NotImplementedError

    def respond(self, requests: Sequence[Any], outputs: Sequence[Any]) -> Sequence[BaseModel]:
        """Turns the model's outputs into responses. It runs on the CPU, behind the device.

        Args:
            requests: The rows.
            outputs: The output of ``infer`` for each of them.
        """
        raise NotImplementedError

    def without_model(self) -> Self | None:
        """A copy of this backend that can prepare and respond, but not infer. By default None.

        A worker with several CPUs can do everything but ``infer`` in processes of their own. It
        measures whether that is faster than threads: it is if ``prepare`` or ``respond`` hold Python's
        interpreter lock for long. The copy is pickled, and used in a process that loads no model. Leave
        out what those methods don't need::

            def without_model(self):
                other = copy.copy(self)
                other.model = None
                return other

        If a subclass overrides ``prepare``, ``size``, ``device_size``, ``padded_size`` or ``respond``, it
        must override this method as well. Otherwise the worker uses threads.
        """
        return None

    # -- rows in flight -----------------------------------------------------------------------

    max_in_flight: int = 32
    """Rows that ``predict_async`` may have in progress. Set it on the class or in the constructor."""

    async def predict_async(self, request: Any) -> BaseModel:
        """Answers one request, while other requests are in progress.

        All calls of a backend run on one event loop. If a row is given up, its call is cancelled.
        """
        raise NotImplementedError

    def run_async(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine on the event loop of ``predict_async``, and waits for it.

        Use it in ``load`` and ``close``: a client must be used on the loop on which it was created.
        """
        return loop_of(self).run(coroutine)

    # -- optional in any shape --------------------------------------------------------------------

    def warmup_requests(self) -> Sequence[Any]:
        """A small batch that compiles kernels and fills caches before the first real batch."""
        return ()

    def model_digest(self) -> str | None:
        """Identity of the loaded weights, for backends that only know it after loading.

        All workers of a job must report the same one. By default it is the identity from ``identify``.
        """
        return None

    def close(self) -> None:  # noqa: B027  (optional)
        """Frees what ``load`` acquired, before another model is loaded in the same process."""


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


def without_model(backend: ModelBackend) -> ModelBackend | None:
    """A backend's copy for other processes; None if its class doesn't speak for itself."""
    if not vars(backend).keys().isdisjoint(_BESIDE):
        return None
    mro = type(backend).__mro__
    says = _place(mro, "without_model")
    for name in _BESIDE:
        place = _place(mro, name)
        own = getattr(vars(mro[place])[name], "__qualname__", None)
        if place < says or own != f"{mro[place].__qualname__}.{name}":  # put in its place later
            return None
    return backend.without_model()


_BESIDE = ("prepare", "size", "device_size", "padded_size", "respond")


def _place(mro: Sequence[type], name: str) -> int:
    return next(i for i, cls in enumerate(mro) if name in vars(cls))


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


def answered_in_shape(backend: ModelBackend, requests: Sequence[Any]) -> Sequence[BaseModel]:
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
