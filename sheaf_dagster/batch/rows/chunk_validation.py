"""Validating chunks, on the driver or in a worker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sheaf_dagster.batch.rows.findings import ChunkFindings
from sheaf_dagster.batch.rows.requests import RowContract
from sheaf_dagster.storage import Chunk, Location, read_ranges

__all__ = ["validate_chunks", "validate_group"]


def validate_chunks(
    contract: RowContract, texts: Sequence[Location], chunks: Sequence[Chunk]
) -> Iterator[ChunkFindings]:
    """Validates chunks one after the other, in this process."""
    ranges = read_ranges([(texts[c.file], c.start, c.end) for c in chunks])
    for chunk, read in zip(chunks, ranges, strict=True):
        yield contract.of_chunk(chunk).validate(read(), chunk.first_line)


def validate_group(group: Sequence[Any]) -> list[ChunkFindings] | None:
    """What a worker does with an offer; None where it can't (the driver will see why)."""
    import ray

    shared, chunks = group
    try:
        contract, texts = ray.get(shared)
        return list(validate_chunks(contract, texts, chunks))
    except Exception:
        return None
