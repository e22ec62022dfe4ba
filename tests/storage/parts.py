"""Parts of a job that never ran."""

from __future__ import annotations

from sheaf_dagster.storage import HeldSink, Part, Sink


def filled(
    sink: Sink, pieces: list[bytes], fingerprint: str = "f" * 64
) -> tuple[HeldSink, list[Part]]:
    """Begins a job and writes its parts; what they are committed with, and they."""
    held = sink.hold()
    held.open_run(fingerprint, resume=True)
    return held, [written(held, i, piece) for i, piece in enumerate(pieces)]


def written(held: HeldSink, chunk: int, piece: bytes) -> Part:
    """A part of a job that holds its sink."""
    rows = piece.count(b"\n")
    return held.store.write(chunk, piece, rows=rows, error_rows=0, non_finite=0)


def commit(sink: Sink, pieces: list[bytes], fingerprint: str = "f" * 64) -> None:
    """A whole job."""
    held, parts = filled(sink, pieces, fingerprint)
    held.commit(parts)
