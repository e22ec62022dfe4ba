"""A conformance suite for backends: the rules of ``ModelBackend`` that the engine relies on.

Run all of them over a backend of yours in one test::

    from sheaf_dagster.testing import check_backend

    def test_my_backend_keeps_the_rules():
        check_backend(MyBackend, requests, backend_kwargs={"weights": "model.pt"})

or each as a test of its own, with the model loaded once::

    @pytest.fixture(scope="module")
    def suite():
        with ConformanceSuite(MyBackend, requests, backend_kwargs={...}) as suite:
            yield suite

    @pytest.mark.parametrize("rule", RULES)
    def test_my_backend(suite, rule):
        suite.check(rule)
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

from pydantic import BaseModel

from sheaf_dagster.backends import ModelBackend
from sheaf_dagster.backends.base import answered_in_shape, close_backend
from sheaf_dagster.backends.registry import check_class
from sheaf_dagster.contracts import row_identity

__all__ = ["RULES", "ConformanceSuite", "check_backend", "poison_of"]

_WORKER_SECONDS = 300


def check_backend(
    backend: ModelBackend | type[ModelBackend],
    requests: Sequence[Any],
    *,
    backend_kwargs: Mapping[str, Any] | None = None,
    tolerance: float = 1e-4,
    poison: Sequence[Any] | None = None,
    rules: Iterable[str] | None = None,
) -> None:
    """Runs a backend through the rules of ``ModelBackend``; call it from your test.

    Args:
        backend: The class. An instance that isn't loaded yet will do, but doesn't tell what it
            was made with, so the rules that make another one are left out.
        requests: At least two valid requests, as different from each other as rows may be.
        backend_kwargs: What to construct the class with.
        tolerance: Relative and absolute difference allowed between a row's answer in a batch
            and alone (padding and reduced precision change the last digits).
        poison: Valid requests that might spoil the answers of their batch mates. By default they
            are made of the given ones: with numbers that are infinite or beyond float32, with
            empty and with very long texts and lists, as far as the contract takes them.
        rules: Names of the rules to check, by default all of ``RULES``.

    Raises:
        AssertionError: Rules are broken; the message names each and says how.
        SpecError: The class serves no model type, or answers nothing.
    """
    with ConformanceSuite(
        backend, requests, backend_kwargs=backend_kwargs, tolerance=tolerance, poison=poison
    ) as suite:
        chosen = list(RULES if rules is None else rules)
        broken = []
        for rule in chosen:
            try:
                suite.check(rule)
            except AssertionError as e:
                broken.append(str(e))
    if broken:
        raise AssertionError(
            f"{suite.name} breaks {len(broken)} of {len(chosen)} rules:\n  " + "\n  ".join(broken)
        )


class ConformanceSuite:
    """A backend under test, loaded when the first rule needs it and closed at the end.

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

    def check(self, rule: str) -> None:
        """Checks one rule.

        Raises:
            AssertionError: It is broken; the message says how.
            ValueError: There is no such rule.
        """
        if rule not in _CHECKS:
            raise ValueError(f"no rule {rule!r}; there are: {', '.join(RULES)}")
        try:
            _CHECKS[rule](self)
        except AssertionError as e:
            raise AssertionError(f"{rule}: {e}") from None
        except Exception as e:
            raise AssertionError(f"{rule}: raised {type(e).__name__}: {e}") from e

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


# -- the rules -------------------------------------------------------------------------------


def _empty_batch(suite: ConformanceSuite) -> None:
    answers = list(suite.loaded().batch_predict([]))
    assert answers == [], f"an empty batch must give an empty list, got {answers!r}"


def _count(suite: ConformanceSuite) -> None:
    for n in sorted({1, 2, len(suite.requests)}):
        made = len(list(suite.loaded().batch_predict(suite.requests[:n])))
        assert made == n, f"{n} requests got {made} responses; each must get exactly one"


def _order(suite: ConformanceSuite) -> None:
    backward = suite.requests[::-1]
    for asked, answers in (
        (suite.requests, suite.batch()),
        (backward, suite.loaded().batch_predict(backward)),
    ):
        for i, (request, answer) in enumerate(zip(asked, answers, strict=False)):
            want, got = row_identity(request), row_identity(answer)
            assert got == want, (
                f"response {i} answers request {got} in place of {want}; responses must follow "
                "the order of the requests and copy each id"
            )


def _json(suite: ConformanceSuite) -> None:
    for i, answer in enumerate(suite.batch()):
        assert isinstance(answer, BaseModel), (
            f"response {i} is a {type(answer).__name__}; it must be a pydantic model"
        )
        type(answer).model_validate_json(answer.model_dump_json())


def _single_row(suite: ConformanceSuite) -> None:
    together = suite.batch()
    for i, request in enumerate(suite.requests):
        alone = list(suite.loaded().batch_predict([request]))
        assert len(alone) == 1, f"request {i} alone got {len(alone)} responses"
        difference = _difference(_plain(alone[0]), _plain(together[i]), suite.tolerance)
        assert difference is None, (
            f"request {i} gets another answer in a batch than alone (tolerance "
            f"{suite.tolerance:g}): {difference}"
        )


def _batch_invariant(suite: ConformanceSuite) -> None:
    if not suite.cls.batch_invariant:
        return
    together = _as_lines(answered_in_shape(suite.loaded(), list(suite.requests)))
    batches = [[i] for i in range(len(suite.requests))]
    batches.append(list(range(len(suite.requests)))[::-1])
    for batch in batches:
        answers = answered_in_shape(suite.loaded(), [suite.requests[i] for i in batch])
        for i, line in zip(batch, _as_lines(answers), strict=True):
            assert line == together[i], (
                f"request {i} gets other bytes {'alone' if len(batch) == 1 else 'in another order'} "
                f"than in a batch, {_shown(line)} in place of {_shown(together[i])}; fix that, or "
                "don't declare batch_invariant"
            )


def _as_lines(answers: Sequence[Any]) -> list[str]:
    return [answer.model_dump_json() for answer in answers]


def _poison(suite: ConformanceSuite) -> None:
    alone = [suite.loaded().batch_predict([request])[0] for request in suite.requests]
    # That harmless mates change an answer, too, is for single_row to say.
    steady = {
        i
        for i, (mine, other) in enumerate(zip(alone, suite.batch(), strict=False))
        if _difference(_plain(mine), _plain(other), suite.tolerance) is None
    }
    middle = len(suite.requests) // 2
    for poison in suite.poison:
        rows = [*suite.requests[:middle], poison, *suite.requests[middle:]]
        try:
            answers = list(suite.loaded().batch_predict(rows))
        except Exception:  # noqa: S112  (then the worker finds the row and answers the others)
            continue
        del answers[middle]
        for i, (mine, other) in enumerate(zip(alone, answers, strict=True)):
            if i not in steady:
                continue
            difference = _difference(_plain(mine), _plain(other), suite.tolerance)
            assert difference is None, (
                f"request {i} gets another answer beside {_shown(poison)} than alone (tolerance "
                f"{suite.tolerance:g}): {difference}; answer such a row apart, or refuse it"
            )


def _shapes(suite: ConformanceSuite) -> None:
    by_hand = suite.batch()
    in_a_worker = answered_in_shape(suite.loaded(), list(suite.requests))
    for i, (mine, other) in enumerate(zip(by_hand, in_a_worker, strict=True)):
        difference = _difference(_plain(mine), _plain(other), suite.tolerance)
        assert difference is None, (
            f"request {i} gets another answer from batch_predict() than from the methods that a "
            f"worker calls: {difference}"
        )


def _predict(suite: ConformanceSuite) -> None:
    alone = suite.loaded().predict(suite.requests[0])
    difference = _difference(_plain(alone), _plain(suite.batch()[0]), suite.tolerance)
    assert difference is None, f"predict() answers otherwise than batch_predict(): {difference}"


def _repeatable(suite: ConformanceSuite) -> None:
    first = suite.batch()
    suite.loaded().batch_predict(suite.requests[:1])  # what ran before must not matter
    again = suite.loaded().batch_predict(list(suite.requests))
    _require_same(first, again, "the same batch gets another answer when it runs again")


def _seeded(suite: ConformanceSuite) -> None:
    if not suite.can_be_made_again:
        return
    other = suite.cls(**suite.kwargs)
    other.load()
    try:
        answers = other.batch_predict(list(suite.requests))
    finally:
        close_backend(other)
    _require_same(
        suite.batch(),
        answers,
        "another instance, made and loaded alike, answers otherwise; seed what is random from the "
        "arguments and the requests",
    )


def _load_once(suite: ConformanceSuite) -> None:
    suite.batch()
    suite.loaded().batch_predict(suite.requests[:1])
    assert suite.loads == 1, (
        f"load() ran {suite.loads} times; it is called once in each worker, and batch_predict() "
        "must not call it again"
    )


def _warm_up(suite: ConformanceSuite) -> None:
    rows = list(suite.loaded().warmup_requests())
    made = len(list(suite.loaded().batch_predict(rows))) if rows else 0
    assert made == len(rows), f"{len(rows)} warm-up requests got {made} responses"


def _requests_untouched(suite: ConformanceSuite) -> None:
    before = [_plain(r) for r in suite.requests]
    suite.loaded().batch_predict(list(suite.requests))
    for i, (request, old) in enumerate(zip(suite.requests, before, strict=True)):
        difference = _difference(old, _plain(request), 0.0)
        assert difference is None, (
            f"request {i} was changed by batch_predict(), which may get it again: {difference}"
        )


def _identity(suite: ConformanceSuite) -> None:
    if not suite.can_be_made_again:
        return
    first, second = (suite.cls.identify(**suite.kwargs) for _ in range(2))
    assert first is None or isinstance(first, str), (
        f"identify() must return text or None, got {first!r}"
    )
    assert first == second, f"identify() returned {first!r}, then {second!r}"


def _travels(suite: ConformanceSuite) -> None:
    if not suite.can_be_made_again:
        return
    try:
        json.dumps(suite.kwargs)
    except (TypeError, ValueError) as e:
        raise AssertionError(f"backend_kwargs must hold JSON values only: {e}") from e
    answers, identity = _in_a_worker(suite)
    here = suite.cls.identify(**suite.kwargs)
    assert identity == here, f"identify() returns {here!r} here and {identity!r} in a worker"
    for i, (mine, theirs) in enumerate(zip(suite.batch(), answers, strict=True)):
        difference = _difference(_plain(mine), theirs, suite.tolerance)
        assert difference is None, f"request {i} gets another answer in a worker: {difference}"


_CHECKS: dict[str, Callable[[ConformanceSuite], None]] = {
    "empty_batch": _empty_batch,
    "count": _count,
    "order": _order,
    "json": _json,
    "single_row": _single_row,
    "batch_invariant": _batch_invariant,
    "poison": _poison,
    "predict": _predict,
    "shapes": _shapes,
    "repeatable": _repeatable,
    "seeded": _seeded,
    "load_once": _load_once,
    "warm_up": _warm_up,
    "requests_untouched": _requests_untouched,
    "identity": _identity,
    "travels": _travels,
}

RULES: tuple[str, ...] = tuple(_CHECKS)
"""Names of the rules:

``empty_batch`` an empty list for no requests; ``count`` one response a request; ``order`` in
their order, with their ids; ``json`` pydantic models that survive JSON; ``single_row`` a row's
answer is the same alone and in a batch, within the tolerance; ``batch_invariant`` and to the byte,
where the class declares it; ``poison`` also beside rows with
infinite or huge numbers, empty or very long ones; ``predict`` and by ``predict``; ``shapes`` and by
the methods that a worker calls, where there are others;
``repeatable`` the same batch gives the same answer, whatever ran before; ``seeded`` also from
another instance; ``load_once`` nothing is loaded again; ``warm_up`` the warm-up batch runs;
``requests_untouched`` requests are left as they are; ``identity`` ``identify`` is steady;
``travels`` class, arguments and requests go to a fresh process, load there, and answer alike.
"""


# -- rows that may spoil others ---------------------------------------------------------------


def poison_of(request: Any) -> list[Any]:
    """Requests like a valid one, each with one field that may spoil its batch mates' answers.

    Numbers become infinite or larger than float32 holds, texts and lists empty or very long; what
    the contract refuses is left out.
    """
    if not isinstance(request, BaseModel):
        return []
    row = request.model_dump(mode="python")
    made: list[Any] = []
    for name in sorted(row.keys() - {"request_id", "model_type", "model_name", "custom_id"}):
        for spoil in (_infinite, _huge, _emptied, _lengthened):
            value = spoil(row[name])
            if value == row[name]:
                continue
            try:
                made.append(type(request).model_validate({**row, name: value}))
            except Exception:  # noqa: S112  (the contract doesn't let it in)
                continue
    return made


def _infinite(value: Any) -> Any:
    return _with_numbers(value, math.inf)


def _huge(value: Any) -> Any:
    return _with_numbers(value, _BEYOND_FLOAT32)


def _with_numbers(value: Any, number: float) -> Any:
    """The value with a number in place of one of its floats, or of each where it is no list."""
    if isinstance(value, float):
        return number
    if isinstance(value, dict):
        return {key: _with_numbers(part, number) for key, part in value.items()}
    if isinstance(value, list) and value:
        middle = len(value) // 2
        return [*value[:middle], _with_numbers(value[middle], number), *value[middle + 1 :]]
    return value


def _emptied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _emptied(part) for key, part in value.items()}
    if isinstance(value, list) and value and type(value[0]) is str:
        return [_emptied(part) for part in value]
    return type(value)() if type(value) in (str, list) else value


def _lengthened(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lengthened(part) for key, part in value.items()}
    if isinstance(value, list) and value and type(value[0]) is str:
        return [_lengthened(part) for part in value]
    return value * _TIMES if type(value) in (str, list) else value


_BEYOND_FLOAT32 = 1e39
_TIMES = 40


def _shown(request: Any) -> str:
    text = repr(request)
    return text if len(text) <= 200 else f"{text[:200]}…"


# -- inside ----------------------------------------------------------------------------------


def _in_a_worker(suite: ConformanceSuite) -> tuple[list[Any], str | None]:
    """Answers and identity from a fresh process, to which things travel as they do to Ray's."""
    from ray import cloudpickle

    try:
        payload = cloudpickle.dumps((suite.cls, suite.kwargs, suite.requests))
    except Exception as e:
        raise AssertionError(f"the class can't be sent to a worker: {type(e).__name__}: {e}") from e
    with tempfile.TemporaryDirectory(prefix="sheaf-") as folder:
        parcel = os.path.join(folder, "parcel")
        with open(parcel, "wb") as f:
            f.write(payload)
        done = subprocess.run(  # noqa: S603  (our own interpreter)
            [sys.executable, "-c", "import sheaf_dagster.testing as t; t._work()", parcel],
            # Ray's workers see the driver's import path, too.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)},
            capture_output=True,
            text=True,
            timeout=_WORKER_SECONDS,
            check=False,
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it died without a word"])[-1]
            raise AssertionError(
                f"the class and its arguments don't work in a fresh worker process: {last}"
            )
        with open(parcel, "rb") as f:
            answers, identity = cloudpickle.loads(f.read())
    return answers, identity


def _work() -> None:
    """What the worker process does."""
    from ray import cloudpickle

    parcel = sys.argv[1]
    with open(parcel, "rb") as f:
        cls, kwargs, requests = cloudpickle.loads(f.read())
    backend = cls(**kwargs)
    backend.load()
    answers = [_plain(a) for a in backend.batch_predict(requests)]
    close_backend(backend)
    with open(parcel, "wb") as f:
        f.write(cloudpickle.dumps((answers, cls.identify(**kwargs))))


def _plain(row: Any) -> Any:
    return row.model_dump(mode="python") if isinstance(row, BaseModel) else row


def _require_same(first: Sequence[Any], second: Sequence[Any], what: str) -> None:
    assert len(first) == len(second), f"{what}: {len(first)} and {len(second)} responses"
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        difference = _difference(_plain(a), _plain(b), 0.0)
        assert difference is None, f"{what}: response {i}, {difference}"


def _difference(a: Any, b: Any, tolerance: float, where: str = "") -> str | None:
    """Where two values differ, and by what; None where they don't."""
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return f"{where or 'fields'}: {sorted(map(str, a))} and {sorted(map(str, b))}"
        pairs = [(f"{where}.{key}" if where else str(key), a[key], b[key]) for key in a]
    elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        if len(a) != len(b):
            return f"{where}: {len(a)} and {len(b)} values"
        pairs = [(f"{where}.{i}", x, y) for i, (x, y) in enumerate(zip(a, b, strict=True))]
    elif isinstance(a, float) and isinstance(b, float):
        same = math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance) or (a != a and b != b)
        return None if same else f"{where}: {a} and {b}"
    else:
        return None if a == b else f"{where}: {a!r} and {b!r}"
    found = (_difference(x, y, tolerance, at) for at, x, y in pairs)
    return next((difference for difference in found if difference is not None), None)
