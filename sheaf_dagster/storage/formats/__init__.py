"""Formats of files, by their suffix: JSON lines, compressed or not, and tables (see ``kinds``).

Every file can be read as JSON lines: plain ones are read as they are, what else there is gives its
text as a stream. What is written is kept in parts, and joined, as its format has it (``Format``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import IO, TYPE_CHECKING

from sheaf_dagster.storage.compression import codec_of, unpacked
from sheaf_dagster.storage.formats.base import Format
from sheaf_dagster.storage.formats.fields import AS_THEY_ARE, FieldMap
from sheaf_dagster.storage.formats.json_rows import json_rows
from sheaf_dagster.storage.formats.jsonl import JsonLines
from sheaf_dagster.storage.formats.kinds import is_table, kind_of
from sheaf_dagster.storage.formats.mapped import MappedText, Text
from sheaf_dagster.storage.formats.meaning import ERROR_COLUMNS, REST_COLUMN, Meaning
from sheaf_dagster.storage.formats.table import Table, packed
from sheaf_dagster.storage.formats.table_file import (
    TableFile,
    TableText,
    read_schema,
    read_table,
)
from sheaf_dagster.storage.formats.typed import (
    column_of,
    exact_type,
    fits,
    has_one_form,
    holds,
    needs_decimals,
    one_type,
    plain_type,
    without_decimals,
)
from sheaf_dagster.storage.location import Location
from sheaf_dagster.storage.stores import store_at

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "AS_THEY_ARE",
    "ERROR_COLUMNS",
    "REST_COLUMN",
    "FieldMap",
    "Format",
    "JsonLines",
    "Meaning",
    "Table",
    "TableFile",
    "Text",
    "column_of",
    "exact_type",
    "fits",
    "format_of",
    "has_one_form",
    "holds",
    "is_plain",
    "is_table",
    "json_rows",
    "needs_decimals",
    "one_type",
    "open_text",
    "packed",
    "plain_type",
    "read_schema",
    "read_table",
    "row_word",
    "without_decimals",
]

_BLOCK_BYTES = 4 * 2**20


def format_of(uri: str) -> Format:
    """The format that a file's suffix names."""
    kind = kind_of(uri)
    return JsonLines(codec_of(uri)) if kind is None else Table(kind)


def row_word(uri: str) -> str:
    """What a row of a file is called in messages: a line, or a row."""
    return "row" if is_table(uri) else "line"


def is_plain(uri: str, fields: FieldMap = AS_THEY_ARE) -> bool:
    """Whether a file's stored bytes are its text, so that ranges of it can be read as they are."""
    return codec_of(uri) is None and not is_table(uri) and not fields


@contextmanager
def open_text(
    location: Location,
    *,
    fields: FieldMap = AS_THEY_ARE,
    digest: hashlib._Hash | None = None,
    spool: IO[bytes] | None = None,
    kept: bool = True,
    types: Mapping[str, pa.DataType] = MappingProxyType({}),
) -> Iterator[Text]:
    """Opens a file's text.

    Args:
        location: The file; its suffix says what it is.
        fields: Which of its columns, or of its rows' fields, is which field of the text's.
        digest: Takes in the stored bytes, where they aren't the text.
        spool: Receives a copy of the text, where it isn't what is stored.
        kept: With the fields of the requests themselves (``keep``) that a table of answers has.
        types: Of a table's columns, what their values must go into.

    Raises:
        SourceNotFoundError: There is no such file.
        SourceError: Here or while reading: it is damaged, cut short, or a decompression bomb.
    """
    store, codec = store_at(location), codec_of(location.uri)
    with store.open() as raw:
        if is_table(location.uri):
            # Read from its end on, so that its bytes don't pass in order.
            while digest is not None and (block := raw.read(_BLOCK_BYTES)):
                digest.update(block)
            own = fields.beside(fields.implied)
            yield TableText(TableFile(store, own, types), spool, own, kept=kept)
            return
        text: Text = raw  # type: ignore[assignment]
        if codec is not None:
            own_spool = None if fields else spool
            text = unpacked(raw, codec, name=location.uri, digest=digest, spool=own_spool)
        if fields:
            text = MappedText(text, fields, digest if codec is None else None, spool)
        yield text
