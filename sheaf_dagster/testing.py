"""Checks that a backend keeps the rules that the engine relies on."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from typing import Any

from sheaf_dagster.backends import ModelBackend
from sheaf_dagster.contracts import row_identity

__all__ = ["check_backend"]


def check_backend(
    backend: ModelBackend, requests: Sequence[Any], *, tolerance: float = 1e-4
) -> None:
    """Runs a backend through the rules of ``ModelBackend``; call it from your test.

    Args:
        backend: Fresh, not loaded yet.
        requests: At least two valid requests, as different from each other as rows may be.
        tolerance: Relative and absolute difference allowed between a row's answer in a batch
            and alone (padding and reduced precision change the last digits).

    Raises:
        AssertionError: A rule is broken; the message says which.
    """
    assert len(requests) >= 2, "give at least two requests"
    restored = pickle.loads(pickle.dumps(type(backend)))  # noqa: S301  (our own bytes)
    assert restored is type(backend), "the class must be importable on the workers"
    backend.load()
    assert list(backend.batch_predict([])) == [], "an empty batch must give an empty list"
    batch = backend.batch_predict(list(requests))
    assert len(batch) == len(requests), "one response for each request"
    for request, response in zip(requests, batch, strict=True):
        assert row_identity(response) == row_identity(request), "responses must keep the order"
        type(response).model_validate_json(response.model_dump_json())
    again = backend.batch_predict(list(requests))
    for first, second in zip(batch, again, strict=True):
        assert first.model_dump_json() == second.model_dump_json(), (
            "the same batch must give the same answer whenever it runs"
        )
    for request, together in zip(requests, batch, strict=True):
        (alone,) = backend.batch_predict([request])
        _assert_close(alone.model_dump(), together.model_dump(), tolerance, type(backend).__name__)
    backward = backend.batch_predict(list(reversed(requests)))
    assert [row_identity(r) for r in backward] == [row_identity(r) for r in reversed(requests)], (
        "responses must follow the order of their requests"
    )
    backend.close()


def _assert_close(a: Any, b: Any, tolerance: float, where: str) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys(), f"{where}: {a.keys()} and {b.keys()}"
        for key in a:
            _assert_close(a[key], b[key], tolerance, f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), f"{where}: lengths {len(a)} and {len(b)}"
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            _assert_close(x, y, tolerance, f"{where}.{i}")
    elif isinstance(a, float) and isinstance(b, float):
        same = math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance) or (a != a and b != b)
        assert same, f"{where}: alone {a}, in a batch {b}"
    else:
        assert a == b, f"{where}: {a!r} and {b!r}"
