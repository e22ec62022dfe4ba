"""Random numbers of backends that draw from the process's own generators."""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

__all__ = ["RowDraws", "seeded"]

_REMEMBERED = 256
"""Kinds of rows of which a process remembers whether they draw."""


class RowDraws:
    """Answers rows together where their backend draws nothing, or else each from its own seed.

    A backend takes its random numbers from generators of the whole process, so rows that are
    answered together share one stream, and a row's draws would depend on its batch mates. Whether
    it draws at all is seen from the generators, which have moved on after a call.

    Args:
        call: Answers rows.
    """

    def __init__(self, call: Callable[[list[Any]], list[Any]]) -> None:
        self._call = call
        self._draws: dict[Hashable, bool] = {}

    def answer(self, rows: list[Any], kind: Hashable) -> list[Any]:
        """The answers to rows of one kind, in their order.

        Args:
            rows: Requests.
            kind: What the rows agree in: rows of one kind all draw, or none of them does.
        """
        if len(rows) == 1:
            return self._seeded(rows)[0]
        draws = self._draws.get(kind)
        if draws is None:
            # Without batch mates, so that a costly model isn't asked for a whole batch in vain.
            first, draws = self._looked_at(rows[:1])
            if draws:
                self._remember(kind, draws)
                return first + self._one_by_one(rows[1:])
        if not draws:
            together, draws = self._looked_at(rows)
            self._remember(kind, draws)
            if not draws:
                return together
        return self._one_by_one(rows)

    def _one_by_one(self, rows: list[Any]) -> list[Any]:
        return [answer for row in rows for answer in self._seeded([row])[0]]

    def _looked_at(self, rows: list[Any]) -> tuple[list[Any], bool]:
        """Answers, and whether they were drawn, and not another thread's numbers meanwhile."""
        answers, draws = self._seeded(rows)
        return self._seeded(rows) if draws else (answers, draws)

    def _seeded(self, rows: list[Any]) -> tuple[list[Any], bool]:
        """Answers, and whether they were drawn."""
        with seeded(b"".join(row.request_id.bytes for row in rows)) as began:
            answers = self._call(rows)
            # This library's generator can't be looked at.
            return answers, "ctranslate2" in sys.modules or _Generators.now() != began

    def _remember(self, kind: Hashable, draws: bool) -> None:
        if len(self._draws) >= _REMEMBERED:
            self._draws.clear()
        self._draws[kind] = draws


class _Generators(NamedTuple):
    """States of the process's generators; of a library that isn't loaded, None."""

    python: Any
    numpy: Any
    torch: bytes | None
    cuda: tuple[bytes, ...]

    @classmethod
    def now(cls) -> _Generators:
        numpy, torch = _loaded("numpy.random"), _loaded("torch")
        name, keys, *rest = numpy.get_state() if numpy else ("", b"")
        return cls(
            random.getstate(),
            (name, bytes(keys), *rest),
            None if torch is None else torch.get_rng_state().numpy().tobytes(),
            tuple(state.numpy().tobytes() for state in torch.cuda.get_rng_state_all())
            if torch is not None and torch.cuda.is_initialized()
            else (),
        )

    def restore(self) -> None:
        """Puts them back; a library that was loaded meanwhile keeps the state that it has."""
        random.setstate(self.python)
        numpy, torch = _loaded("numpy.random"), _loaded("torch")
        name, keys, *rest = self.numpy
        if numpy and name:
            numpy.set_state((name, sys.modules["numpy"].frombuffer(keys, "uint32"), *rest))
        if torch is not None and self.torch is not None:
            torch.set_rng_state(torch.frombuffer(bytearray(self.torch), dtype=torch.uint8))
            if self.cuda:
                states = [torch.frombuffer(bytearray(s), dtype=torch.uint8) for s in self.cuda]
                torch.cuda.set_rng_state_all(states)


@contextmanager
def seeded(source: bytes) -> Iterator[_Generators]:
    """Seeds the process's generators for a while, and then puts them back; gives their first state.

    Args:
        source: What the seed is made of.
    """
    before = _Generators.now()
    seed = int.from_bytes(hashlib.sha256(source).digest()[:4], "big")
    random.seed(seed)
    for library, name in (
        ("numpy.random", "seed"),
        ("torch", "manual_seed"),
        ("ctranslate2", "set_random_seed"),
    ):
        module = _loaded(library)
        if module is not None:
            getattr(module, name)(seed)
    try:
        yield _Generators.now()
    finally:
        before.restore()


def _loaded(library: str) -> Any:
    return sys.modules.get(library)
