"""The rules of ``ModelBackend`` that the engine relies on, one function each."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import BaseModel

from sheaf_dagster.backends.base import answered_in_shape, close_backend, without_model
from sheaf_dagster.batch.worker.beside.link import as_sent
from sheaf_dagster.contracts import row_identity
from sheaf_dagster.testing.as_columns import columns_of
from sheaf_dagster.testing.comparison import difference, plain, require_same, shown
from sheaf_dagster.testing.fresh_process import answers_of_a_fresh_process
from sheaf_dagster.testing.under_test import BackendUnderTest

__all__ = ["CHECKS", "RULES"]


def _empty_batch(tested: BackendUnderTest) -> None:
    answers = list(tested.loaded().batch_predict([]))
    assert answers == [], f"an empty batch must give an empty list, got {answers!r}"


def _count(tested: BackendUnderTest) -> None:
    for n in sorted({1, 2, len(tested.requests)}):
        made = len(list(tested.loaded().batch_predict(tested.requests[:n])))
        assert made == n, f"{n} requests got {made} responses; each must get exactly one"


def _order(tested: BackendUnderTest) -> None:
    backward = tested.requests[::-1]
    for asked, answers in (
        (tested.requests, tested.batch()),
        (backward, tested.loaded().batch_predict(backward)),
    ):
        for i, (request, answer) in enumerate(zip(asked, answers, strict=False)):
            want, got = row_identity(request), row_identity(answer)
            assert got == want, (
                f"response {i} answers request {got} instead of {want}; responses must follow "
                "the order of the requests and copy each id"
            )


def _json(tested: BackendUnderTest) -> None:
    for i, answer in enumerate(tested.batch()):
        assert isinstance(answer, BaseModel), (
            f"response {i} is a {type(answer).__name__}; it must be a pydantic model"
        )
        type(answer).model_validate_json(answer.model_dump_json())


def _single_row(tested: BackendUnderTest) -> None:
    together = tested.batch()
    for i, request in enumerate(tested.requests):
        alone = list(tested.loaded().batch_predict([request]))
        assert len(alone) == 1, f"request {i} alone got {len(alone)} responses"
        found = difference(plain(alone[0]), plain(together[i]), tested.tolerance)
        assert found is None, (
            f"request {i} gets another answer in a batch than alone (tolerance "
            f"{tested.tolerance:g}): {found}"
        )


def _batch_invariant(tested: BackendUnderTest) -> None:
    if not tested.cls.batch_invariant:
        return
    together = _as_lines(answered_in_shape(tested.loaded(), list(tested.requests)))
    batches = [[i] for i in range(len(tested.requests))]
    batches.append(list(range(len(tested.requests)))[::-1])
    for batch in batches:
        answers = answered_in_shape(tested.loaded(), [tested.requests[i] for i in batch])
        for i, line in zip(batch, _as_lines(answers), strict=True):
            assert line == together[i], (
                f"request {i} gets other bytes {'alone' if len(batch) == 1 else 'in another order'} "
                f"than in a batch, {shown(line)} instead of {shown(together[i])}; fix that, or "
                "don't declare batch_invariant"
            )


def _as_lines(answers: Sequence[Any]) -> list[str]:
    return [answer.model_dump_json() for answer in answers]


def _poison(tested: BackendUnderTest) -> None:
    alone = [tested.loaded().batch_predict([request])[0] for request in tested.requests]
    # That harmless mates change an answer, too, is for single_row to say.
    steady = {
        i
        for i, (mine, other) in enumerate(zip(alone, tested.batch(), strict=False))
        if difference(plain(mine), plain(other), tested.tolerance) is None
    }
    middle = len(tested.requests) // 2
    for poison in tested.poison:
        rows = [*tested.requests[:middle], poison, *tested.requests[middle:]]
        try:
            answers = list(tested.loaded().batch_predict(rows))
        except Exception:  # noqa: S112  (then the worker finds the row and answers the others)
            continue
        del answers[middle]
        for i, (mine, other) in enumerate(zip(alone, answers, strict=True)):
            if i not in steady:
                continue
            found = difference(plain(mine), plain(other), tested.tolerance)
            assert found is None, (
                f"request {i} gets another answer beside {shown(poison)} than alone (tolerance "
                f"{tested.tolerance:g}): {found}; answer such a row apart, or refuse it"
            )


def _require_own_answers(tested: BackendUnderTest, answers: Sequence[Any], how: str) -> None:
    """Asserts that they are the answers to a batch of all requests; ``how`` ends "another answer"."""
    expected = tested.batch()
    assert len(answers) == len(expected), f"{len(expected)} requests got {len(answers)} responses"
    for i, (mine, other) in enumerate(zip(expected, answers, strict=True)):
        found = difference(plain(mine), plain(other), tested.tolerance)
        assert found is None, f"request {i} gets another answer {how}: {found}"


def _shapes(tested: BackendUnderTest) -> None:
    in_a_worker = list(answered_in_shape(tested.loaded(), list(tested.requests)))
    how = "from batch_predict() than from the methods that a worker calls"
    _require_own_answers(tested, in_a_worker, how)


def _columns(tested: BackendUnderTest) -> None:
    held = columns_of(tested.requests) if tested.cls.takes_columns else None
    if held is not None:
        answers = list(tested.loaded().batch_predict(held))
        _require_own_answers(tested, answers, "when it is in columns")


def _without_model(tested: BackendUnderTest) -> None:
    backend = tested.loaded()
    copied = without_model(backend)
    if copied is None:
        return
    vars(copied).pop("load", None)  # the counting one

    def sent(what: Any) -> Any:
        try:
            return as_sent(what)
        except Exception as e:
            raise AssertionError(
                f"a {type(what).__name__} can't be sent to another process, as without_model() "
                f"promises: {type(e).__name__}: {e}"
            ) from e

    other, rows = sent(copied), list(tested.requests)
    values = backend.infer(sent([other.prepare(request) for request in rows]))
    outputs = sent(list(values() if callable(values) else values))
    how = "when the copy from without_model() prepares and responds"
    _require_own_answers(tested, list(other.respond(rows, outputs)), how)


def _predict(tested: BackendUnderTest) -> None:
    alone = tested.loaded().predict(tested.requests[0])
    found = difference(plain(alone), plain(tested.batch()[0]), tested.tolerance)
    assert found is None, f"predict() gives another answer than batch_predict(): {found}"


def _repeatable(tested: BackendUnderTest) -> None:
    first = tested.batch()
    tested.loaded().batch_predict(tested.requests[:1])  # what ran before must not matter
    again = tested.loaded().batch_predict(list(tested.requests))
    require_same(first, again, "the same batch gets another answer when it runs again")


def _seeded(tested: BackendUnderTest) -> None:
    if not tested.can_be_made_again:
        return
    other = tested.cls(**tested.kwargs)
    other.load()
    try:
        answers = other.batch_predict(list(tested.requests))
    finally:
        close_backend(other)
    require_same(
        tested.batch(),
        answers,
        "another instance, made and loaded in the same way, gives another answer; seed what is "
        "random from the "
        "arguments and the requests",
    )


def _load_once(tested: BackendUnderTest) -> None:
    tested.batch()
    tested.loaded().batch_predict(tested.requests[:1])
    assert tested.loads == 1, (
        f"load() ran {tested.loads} times; it is called once in each worker, and batch_predict() "
        "must not call it again"
    )


def _warm_up(tested: BackendUnderTest) -> None:
    rows = list(tested.loaded().warmup_requests())
    made = len(list(tested.loaded().batch_predict(rows))) if rows else 0
    assert made == len(rows), f"{len(rows)} warm-up requests got {made} responses"


def _requests_untouched(tested: BackendUnderTest) -> None:
    before = [plain(r) for r in tested.requests]
    tested.loaded().batch_predict(list(tested.requests))
    for i, (request, old) in enumerate(zip(tested.requests, before, strict=True)):
        found = difference(old, plain(request), 0.0)
        assert found is None, (
            f"request {i} was changed by batch_predict(), which may get it again: {found}"
        )


def _identity(tested: BackendUnderTest) -> None:
    if not tested.can_be_made_again:
        return
    first, second = (tested.cls.identify(**tested.kwargs) for _ in range(2))
    assert first is None or isinstance(first, str), (
        f"identify() must return text or None, got {first!r}"
    )
    assert first == second, f"identify() returned {first!r}, then {second!r}"


def _travels(tested: BackendUnderTest) -> None:
    if not tested.can_be_made_again:
        return
    try:
        json.dumps(tested.kwargs)
    except (TypeError, ValueError) as e:
        raise AssertionError(f"backend_kwargs must hold JSON values only: {e}") from e
    answers, identity = answers_of_a_fresh_process(tested.cls, tested.kwargs, tested.requests)
    here = tested.cls.identify(**tested.kwargs)
    assert identity == here, f"identify() returns {here!r} here and {identity!r} in a worker"
    _require_own_answers(tested, answers, "in a worker")


CHECKS: dict[str, Callable[[BackendUnderTest], None]] = {
    "empty_batch": _empty_batch,
    "count": _count,
    "order": _order,
    "json": _json,
    "single_row": _single_row,
    "batch_invariant": _batch_invariant,
    "poison": _poison,
    "predict": _predict,
    "shapes": _shapes,
    "columns": _columns,
    "without_model": _without_model,
    "repeatable": _repeatable,
    "seeded": _seeded,
    "load_once": _load_once,
    "warm_up": _warm_up,
    "requests_untouched": _requests_untouched,
    "identity": _identity,
    "travels": _travels,
}

RULES: tuple[str, ...] = tuple(CHECKS)
"""Names of the rules:

* ``empty_batch``: no requests give an empty list.
* ``count``: there is one response for each request.
* ``order``: responses follow the order of the requests and carry their ids.
* ``json``: responses are pydantic models that survive JSON.
* ``single_row``: a row's answer alone is its answer in a batch, within the tolerance.
* ``batch_invariant``: the two have the same bytes, if the class declares it.
* ``poison``: a row's answer doesn't change beside rows with infinite or huge numbers, or beside empty
  or very long ones.
* ``predict``: ``predict`` gives the answers of ``batch_predict``.
* ``shapes``: so do the methods that a worker calls.
* ``columns``: so does ``batch_predict`` with the rows of a Parquet file, if the class takes columns.
* ``without_model``: so do the stages if the backend's copy for other processes prepares and responds.
* ``repeatable``: the same batch gives the same answers, whatever ran before.
* ``seeded``: another instance gives the same answers.
* ``load_once``: nothing is loaded again.
* ``warm_up``: the warm-up batch runs.
* ``requests_untouched``: requests are left as they are.
* ``identity``: ``identify`` always returns the same text.
* ``travels``: class, arguments and requests work in a fresh process, with the same answers.
"""
