"""What an earlier run committed, and whether it is what a run would write now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sheaf_dagster.batch.spec import BatchSpec
from sheaf_dagster.errors import SheafError
from sheaf_dagster.storage import Location, source_digest, store_at

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
            return self._is_there(spec) and fingerprint(spec).startswith(self.fingerprint)
        except SheafError:
            return False  # running it will say what is wrong

    def is_of_source(self, spec: BatchSpec) -> bool:
        """Whether the sink is known to be there still, and made from the source as it is now.

        Args:
            spec: The file.

        Raises:
            SourceError: The source can't be read.
        """
        if not self.source_digest or not self._is_there(spec):
            return False
        now = source_digest(spec.sources, spec.storage_options)
        return now.startswith(self.source_digest)

    def _is_there(self, spec: BatchSpec) -> bool:
        state = store_at(Location.of(spec.sink, spec.storage_options)).state()
        return state is not None and state.size == self.output_bytes
