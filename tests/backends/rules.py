"""Which rules of the conformance suite a test checks."""

from __future__ import annotations

from sheaf_dagster.testing import RULES

WITHOUT_A_WORKER = tuple(rule for rule in RULES if rule != "travels")
"""All but the one that starts a process, which has to import the backend's library again."""
