"""A look at a finished job's files: the first rows beside their answers."""

from __future__ import annotations

import io
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import orjson

from sheaf_dagster.batch.rows.requests import RowContract
from sheaf_dagster.batch.spec import BatchSpec, ModelSpec
from sheaf_dagster.contracts import contract_for, row_identity
from sheaf_dagster.storage import Location, store_at
from sheaf_dagster.storage.chunks import split_rows
from sheaf_dagster.storage.compression import codec_of

__all__ = ["OutputSample", "sample_output"]

_HEAD_BYTES = 2 * 2**20


@dataclass(frozen=True)
class OutputSample:
    """The first rows of a source and its sink.

    Attributes:
        pairs: (request, response) as plain dictionaries; a request holds what its line says.
        sizes: Bytes of each answer.
        in_order: Whether each response answers the request of the same row.
        compared: Rows that were compared.
    """

    pairs: list[tuple[dict[str, Any], dict[str, Any]]]
    in_order: bool
    compared: int
    sizes: list[int] = field(default_factory=list)


def sample_output(model: ModelSpec, spec: BatchSpec, rows: int = 200) -> OutputSample:
    """Reads the first rows of both files again and compares their request ids."""
    contract = RowContract.of(contract_for(model.model_type))
    requests = _head(Location.of(spec.sources[0], spec.storage_options))[:rows]
    responses = _head(Location.of(spec.sink, spec.storage_options))[: len(requests)]
    requests = requests[: len(responses)]
    parsed = contract.parse(requests, 0)
    pairs, in_order = [], True
    for row, (_, asked_line), (_, line) in zip(parsed, requests, responses, strict=True):
        answer = orjson.loads(line)
        asked = row_identity(row.request)
        if asked is not None and str(row_identity(answer)) != str(asked):
            in_order = False
        request = row.request.model_dump(mode="json", exclude_unset=True)
        # What the contract doesn't know may still tell a person, or a plot, what a row is about.
        with suppress(orjson.JSONDecodeError):  # NaN, which a contract may allow
            request = {**orjson.loads(asked_line), **request}
        pairs.append((request, answer))
    sizes = [len(line) for _, line in responses]
    return OutputSample(pairs, in_order, len(pairs), sizes)


def _head(location: Location) -> list[tuple[int, bytes]]:
    """Whole rows at the start of a file."""
    store = store_at(location)
    state = store.require_state()
    codec = codec_of(location.uri)
    stored = store.read_range(0, min(state.size, _HEAD_BYTES))
    text, whole = _unpacked(stored, codec), codec is None and state.size <= _HEAD_BYTES
    if not whole and not (codec and state.size <= _HEAD_BYTES and len(text) < _HEAD_BYTES):
        text = text[: text.rfind(b"\n") + 1]
    return split_rows(text.removeprefix(b"\xef\xbb\xbf"), 1)


def _unpacked(data: bytes, codec: str | None) -> bytes:
    if codec == "gzip":
        out, rest = b"", data
        while rest and len(out) < _HEAD_BYTES:
            member = zlib.decompressobj(wbits=31)
            out += member.decompress(rest, _HEAD_BYTES)
            if not member.eof:
                break
            rest = member.unused_data
        return out[:_HEAD_BYTES]
    if codec == "zstd":
        import zstandard

        reader = zstandard.ZstdDecompressor().stream_reader(
            io.BytesIO(data), read_across_frames=True
        )
        return reader.read(_HEAD_BYTES)  # type: ignore[no-any-return]
    return data
