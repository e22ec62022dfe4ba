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

from sheaf_dagster.testing.poison import poison_of
from sheaf_dagster.testing.rules import RULES
from sheaf_dagster.testing.suite import ConformanceSuite, check_backend

__all__ = ["RULES", "ConformanceSuite", "check_backend", "poison_of"]
