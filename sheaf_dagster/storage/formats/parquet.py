"""Parquet files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from sheaf_dagster.storage.formats.meaning import Meaning

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Parquet"]

_BATCH_BYTES = 8 * 2**20
"""About what is read at a time, however large row groups are."""
_BATCH_ROWS = 4096
_BUFFER_BYTES = 2**20

_ONE_GROUP = 2**30
"""Rows that are given together are a row group, however many they are."""


@dataclass(frozen=True)
class Parquet:
    """Reads and writes Parquet files; see ``TableKind``."""

    name = "Parquet"
    suffixes = (".parquet", ".pq")

    def open(self, file: pa.NativeFile) -> _Reader:
        """Opens a file: encrypted ones and those that were cut short are refused."""
        return _Reader(file)

    def read(self, file: pa.NativeFile) -> pa.Table:
        """All of a file."""
        import pyarrow.parquet as pq

        with pq.ParquetFile(file) as opened:
            return opened.read()

    def writer(self, file: pa.NativeFile, schema: pa.Schema) -> _Writer:
        """Begins a file with statistics, compressed with Zstandard."""
        return _Writer(file, schema)


class _Reader:
    def __init__(self, file: pa.NativeFile) -> None:
        import pyarrow.parquet as pq

        self._file = pq.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        self.schema: pa.Schema = self._file.schema_arrow
        self.rows: int = self._file.metadata.num_rows

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows, whatever row groups they are in."""
        yield from self._file.iter_batches(batch_size=_rows_at_a_time(self._file.metadata))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _rows_at_a_time(metadata: Any) -> int:
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    widest = max((g.total_byte_size / g.num_rows for g in groups if g.num_rows), default=1)
    return max(1, min(_BATCH_ROWS, int(_BATCH_BYTES / max(widest, 1))))


class _Writer:
    def __init__(self, file: pa.NativeFile, schema: pa.Schema) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        dictionaries: bool | list[str] = True
        if Meaning.of(schema) is not None:
            # Numbers that a model makes hardly repeat: a dictionary of them is built for nothing.
            texts = [f.name for f in schema if pa.types.is_string(f.type)]
            dictionaries = [name for name in texts if not name.endswith("_id")]
        self._writer = pq.ParquetWriter(
            file,
            schema,
            compression="zstd",
            use_dictionary=dictionaries,
            write_statistics=True,
        )

    def write_table(self, table: pa.Table) -> None:
        """Adds a row group."""
        self._writer.write_table(table, row_group_size=_ONE_GROUP)

    def close(self) -> None:
        """Ends the file."""
        self._writer.close()
