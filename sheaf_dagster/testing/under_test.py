"""The backend that rules are checked on, loaded once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from sheaf_dagster.backends import ModelBackend
from sheaf_dagster.backends.base import close_backend
from sheaf_dagster.backends.registry import check_class
from sheaf_dagster.testing.poison import poison_of

__all__ = ["BackendUnderTest"]


class BackendUnderTest:
    """A backend, loaded when the first rule needs it and closed at the end.

    Arguments are those of ``check_backend``.
    """

    def __init__(
        self,
        backend: ModelBackend | type[ModelBackend],
        requests: Sequence[Any],
        *,
        backend_kwargs: Mapping[str, Any] | None = None,
        tolerance: float = 1e-4,
        poison: Sequence[Any] | None = None,
    ) -> None:
        if len(requests) < 2:
            raise ValueError("give at least two requests")
        cls = backend if isinstance(backend, type) else type(backend)
        self.name = cls.__qualname__
        self.cls = check_class(cls, self.name)
        self.kwargs = dict(backend_kwargs or {})
        self.requests = list(requests)
        self.tolerance = tolerance
        self.poison = list(poison_of(self.requests[0]) if poison is None else poison)
        self.loads = 0
        self._given = None if isinstance(backend, type) else backend
        self._loaded: ModelBackend | None = None
        self._batch: list[Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._loaded is not None:
            close_backend(self._loaded)
            self._loaded = None

    @property
    def can_be_made_again(self) -> bool:
        """Whether the class was given, and not only an instance."""
        return self._given is None

    def loaded(self) -> ModelBackend:
        """The backend, loaded."""
        if self._loaded is None:
            backend = self._given or self.cls(**self.kwargs)
            load = backend.load

            def counted() -> None:
                self.loads += 1
                load()

            backend.load = counted  # type: ignore[method-assign]
            backend.load()
            self._loaded = backend
        return self._loaded

    def batch(self) -> list[Any]:
        """Its answers to all requests as one batch."""
        if self._batch is None:
            self._batch = list(self.loaded().batch_predict(list(self.requests)))
        return self._batch
