"""All rules over one backend, together or one by one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sheaf_dagster.backends import ModelBackend
from sheaf_dagster.testing.rules import CHECKS, RULES
from sheaf_dagster.testing.under_test import BackendUnderTest

__all__ = ["ConformanceSuite", "check_backend"]


def check_backend(
    backend: ModelBackend | type[ModelBackend],
    requests: Sequence[Any],
    *,
    backend_kwargs: Mapping[str, Any] | None = None,
    tolerance: float = 1e-4,
    poison: Sequence[Any] | None = None,
    rules: Iterable[str] | None = None,
) -> None:
    """Runs a backend through the rules of ``ModelBackend``. Call it from your test.

    Args:
        backend: The class. You can also pass an instance that isn't loaded yet. The instance doesn't
            tell its constructor arguments, so the rules that need a second instance are skipped.
        requests: At least two valid requests, as different from each other as your rows can be.
        backend_kwargs: Arguments of the constructor.
        tolerance: Relative and absolute difference allowed between a row's answer in a batch and
            alone. Padding and reduced precision change the last digits.
        poison: Valid requests that might spoil the answers of the other rows in their batch. By
            default they are made from ``requests``: with infinite numbers, numbers beyond float32,
            and empty or very long texts and lists, if the contract accepts them.
        rules: Names of the rules to check. By default all of ``RULES``.

    Raises:
        AssertionError: Rules are broken. The message names each of them and says how.
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


class ConformanceSuite(BackendUnderTest):
    """A backend under test, loaded when the first rule needs it and closed at the end.

    Arguments are those of ``check_backend``.
    """

    def check(self, rule: str) -> None:
        """Checks one rule.

        Raises:
            AssertionError: The rule is broken; the message says how.
            ValueError: There is no such rule.
        """
        if rule not in CHECKS:
            raise ValueError(f"no rule {rule!r}; there are: {', '.join(RULES)}")
        try:
            CHECKS[rule](self)
        except AssertionError as e:
            raise AssertionError(f"{rule}: {e}") from None
        except Exception as e:
            raise AssertionError(f"{rule}: raised {type(e).__name__}: {e}") from e
