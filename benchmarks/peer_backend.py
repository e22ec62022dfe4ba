"""The trivial model in sheaf-serve's own terms."""

from __future__ import annotations

from typing import Any

from sheaf.api.time_series import TimeSeriesResponse
from sheaf.backends.base import ModelBackend

from benchmarks.common import respond


class PeerTrivial(ModelBackend):
    """The same work a row as ``benchmarks.common.Trivial``."""

    @property
    def model_type(self) -> str:
        """Its model type."""
        return "time_series"

    def load(self) -> None:
        """Nothing to load."""

    def predict(self, request: Any) -> Any:
        """One row."""
        return respond(request, TimeSeriesResponse)
