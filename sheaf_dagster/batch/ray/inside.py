"""Every reach into Ray's private parts, so that a new version of Ray has one place to break.

Each answers "not known" where that version keeps the thing elsewhere; ``tests/batch/ray/
test_inside.py`` fails then, and says what is lost. What to do: find where Ray has moved it, or
remove the function and what asks it.
"""

from __future__ import annotations

import logging
from contextlib import suppress

from sheaf_dagster.batch.logs import logger_at

__all__ = ["LOGGER_OF_TOKENS", "cluster_behind", "cpus_counted", "draining_nodes"]

LOGGER_OF_TOKENS = "ray._private.authentication.authentication_token_setup"
"""Says that a new cluster asks for a token. Elsewhere: the note shows again."""


def cpus_counted() -> float:
    """CPUs of a Ray started here: a container's limit where it has one, which Python doesn't see.

    Zero, for certain of nothing, where this isn't known: work then waits until Ray is up.
    """
    with suppress(ImportError), logger_at("ray._private.utils", logging.ERROR):  # it says so itself
        from ray._private.utils import get_num_cpus

        return float(get_num_cpus())
    return 0.0


def draining_nodes() -> set[str]:
    """Ids of the nodes that are about to be taken away, as Ray has been told (preemption).

    Where this isn't known, what their workers hold is run again once they are gone.
    """
    with suppress(ImportError, AttributeError):
        from ray._private.state import state

        return set(state.get_draining_nodes())
    return set()


def cluster_behind(address: str) -> str | None:
    """``host:port`` of the cluster that an address means, ``auto`` among them; None: not known.

    Where this isn't known, an ``auto`` that means a dead cluster isn't found to be one in time.
    """
    with suppress(
        ImportError, ConnectionError, ValueError
    ):  # the latter two ray.init raises itself
        from ray._private.services import canonicalize_bootstrap_address

        found: str | None = canonicalize_bootstrap_address(address)
        return found
    return None
