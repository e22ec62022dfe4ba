"""What an earlier run committed, and whether it is what a run would write now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sheaf_dagster.batch.spec import BatchSpec
from sheaf_dagster.errors import SheafError
from sheaf_dagster.storage import Location, store_at

__all__ = ["CommittedSink"]


@dataclass(frozen=True)
class CommittedSink:
    """A sink that an earlier run committed.

    Attributes:
        fingerprint: ``BatchResult.fingerprint`` of that run, or its first digits.
        output_bytes: Size of the sink.
        source_digest: ``BatchResult.source_digest``, or its first digits; none where not known.
        model_version: ``BatchResult.model_version``, likewise.
    """

    fingerprint: str
    output_bytes: int
    source_digest: str = ""
    model_version: str = ""

    def still_holds(self, spec: BatchSpec, fingerprint: Callable[[BatchSpec], str]) -> bool:
        """Whether the sink is what running the file again would write.

        Args:
            spec: The file.
            fingerprint: Its fingerprint now; asked only where the sink has the size that it had.
        """
        try:
            state = store_at(Location.of(spec.sink, spec.storage_options)).state()
            if state is None or state.size != self.output_bytes:
                return False
            return fingerprint(spec).startswith(self.fingerprint)
        except SheafError:
            return False  # running it will say what is wrong
