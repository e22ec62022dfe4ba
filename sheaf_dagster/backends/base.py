"""What runs a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import BaseModel

from sheaf_dagster.errors import SpecError

__all__ = ["ModelBackend", "answers_nothing"]


class ModelBackend(ABC):
    """A model, from loading its weights to typed answers. The one class that users implement.

    A backend is constructed with the ``backend_kwargs`` of its ``ModelSpec``, in the process
    where it will run, and then lives there: ``load()`` is called once, ``batch_predict()`` many
    times, always from one thread, ``close()`` where it makes room for another model (a worker that
    is no longer needed just ends). The constructor should only keep its
    arguments; import heavy libraries inside ``load()``.

    The rules that the engine relies on:

    * ``batch_predict`` returns exactly one response for each request, in the same order.
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

    def predict(self, request: Any) -> BaseModel:
        """Answers one request; by default as a batch of one.

        A backend overrides this or ``batch_predict``. A class that has neither is refused where
        it is named or registered.

        Raises:
            SpecError: This object has neither.
        """
        # Here and not in batch_predict, which the engine calls: each would call the other for ever.
        if getattr(self.batch_predict, "__func__", None) is ModelBackend.batch_predict:
            raise SpecError(answers_nothing(type(self)))
        return self.batch_predict([request])[0]

    def batch_predict(self, requests: Sequence[Any]) -> list[BaseModel]:
        """Answers a batch, which is what the engine asks for; by default row by row.

        Override it where the model gains from batching.
        """
        return [self.predict(request) for request in requests]

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


def answers_nothing(cls: type[ModelBackend]) -> str:
    """What is wrong with a class that has neither ``predict`` nor ``batch_predict``."""
    return (
        f"class {cls.__qualname__} answers nothing; override predict(), or batch_predict() where "
        "the model gains from batches"
    )
