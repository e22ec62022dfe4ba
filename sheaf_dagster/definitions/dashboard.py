"""Requests to a cluster's dashboard that end, even where it accepts them and never answers."""

from __future__ import annotations

import time
from typing import Any

import requests
from ray.job_submission import JobSubmissionClient

from sheaf_dagster.definitions.clusters import JobsAddress

__all__ = ["Dashboard", "DashboardLostError"]

PATIENCE_SECONDS = 120.0
"""How long a dashboard that has answered before may be silent: a busy head takes its time."""

_BETWEEN_TRIES_SECONDS = 0.5


class DashboardLostError(ConnectionError):
    """The dashboard didn't answer in time."""


class Dashboard(JobSubmissionClient):  # type: ignore[misc]
    """Ray's client of jobs, of which each request has a time limit. Its own waits for ever.

    What only asks is asked again until the time is up.

    Args:
        where: The cluster.

    Raises:
        DashboardLostError: It doesn't answer within the time that ``where`` gives.
        RuntimeError: It refuses.
    """

    def __init__(self, where: JobsAddress) -> None:
        self._within_s = where.within_s
        super().__init__(where.url, headers=dict(where.headers))
        self._within_s = PATIENCE_SECONDS  # it is there

    def _do_request(self, method: str, endpoint: str, **kwargs: Any) -> Any:
        deadline = time.monotonic() + self._within_s
        while True:
            left = max(deadline - time.monotonic(), 0.05)
            try:
                return super()._do_request(method, endpoint, **{"timeout": left, **kwargs})
            except (requests.ConnectionError, requests.Timeout) as e:
                late = time.monotonic() + _BETWEEN_TRIES_SECONDS >= deadline
                if late or method != "GET":
                    silent = isinstance(e, requests.Timeout)
                    why = "it doesn't answer" if silent else "it can't be reached"
                    raise DashboardLostError(f"{why} (tried for {self._within_s:g} s)") from e
            time.sleep(_BETWEEN_TRIES_SECONDS)
