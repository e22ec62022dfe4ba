"""Parts of a job that never ran."""

from __future__ import annotations

from sheaf_dagster.storage import Part, PartStore, Sink


def filled(
    sink: Sink, pieces: list[bytes], fingerprint: str = "f" * 64
) -> tuple[PartStore, list[Part]]:
    """Begins a job and writes its parts; what ``commit`` takes."""
    sink.prepare()
    sink.open_run(fingerprint, resume=True)
    store = sink.parts(fingerprint)
    parts = [
        store.write(i, p, rows=p.count(b"\n"), error_rows=0, non_finite=0)
        for i, p in enumerate(pieces)
    ]
    return store, parts
