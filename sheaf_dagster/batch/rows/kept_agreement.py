"""Whether the values of kept fields make columns of one type, looked at before the model runs.

The columns of tables have types; fields of lines have those that pyarrow finds in each chunk.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from sheaf_dagster.batch.rows.findings import ChunkFindings
from sheaf_dagster.batch.rows.keep import fields_of
from sheaf_dagster.batch.rows.kept_columns import KeptColumns, in_table
from sheaf_dagster.errors import SinkError, SpecError
from sheaf_dagster.storage import KeptTypes, OneType, ScannedSource, rows_in
from sheaf_dagster.storage.formats import exact_type, is_table, row_word

if TYPE_CHECKING:
    import pyarrow as pa

    from sheaf_dagster.batch.spec import BatchOptions

__all__ = ["KeptAgreement", "note_columns"]


def note_columns(
    data: bytes, first_line: int, columns: bytes, keep: tuple[str, ...], findings: ChunkFindings
) -> None:
    """Notes the types of the columns that the fields of some rows will make.

    Args:
        data: Lines of JSON.
        first_line: The number of the first one.
        columns: The schema of the sink, serialised.
        keep: The fields.
        findings: Takes in the types, or why there are none.
    """
    import pyarrow as pa

    made = KeptColumns(pa.ipc.read_schema(pa.py_buffer(columns)), keep)
    read = fields_of(keep)
    lines = [*rows_in(data, first_line)]
    rows = [made.read(read(line)) for _, line in lines]
    types = []
    for name in keep:
        values = [row[name] for row in rows]
        try:
            column = made.made(name, values)
        except SinkError as e:
            first = bisect(range(1, len(rows)), False, key=lambda n: made.fails(name, values[:n]))
            findings.not_kept = f"{lines[first][0]}: {e}"
            return
        both = pa.struct([("type", column.type), ("exact", exact_type(column))])
        types.append((name, both))
    findings.kept = pa.schema(types).serialize().to_pybytes()


class KeptAgreement:
    """Whether all chunks of a source say the same of the columns that kept fields make.

    Args:
        options: Of the file.
        types: Of the fields, as tables of the source have them.
        source: The source.

    Attributes:
        columns: Those of which chunks are to tell the types, serialised; empty where all are known.
    """

    def __init__(self, options: BatchOptions, types: KeptTypes, source: ScannedSource) -> None:
        import pyarrow as pa

        self._source = source
        self._seen = {name: OneType(name) for name in options.keep}
        self._not_kept = ""
        known = types.keys() >= {*options.keep}
        known = known and all(is_table(file.stored.uri) for file in source.files)
        self.columns = b""
        if in_table(options) and not known:
            fields = [(name, types.get(name, pa.null())) for name in options.keep]
            self.columns = pa.schema(fields).serialize().to_pybytes()

    def taken_from(self, findings: Iterable[ChunkFindings]) -> Iterator[ChunkFindings]:
        """The findings of the chunks, as they pass."""
        import pyarrow as pa

        for chunk, found in zip(self._source.chunks, findings, strict=True):
            uri = self._source.files[chunk.file].stored.uri
            if found.not_kept and not self._not_kept:
                self._not_kept = f"{uri}, {row_word(uri)} {found.not_kept}"
            if found.kept:
                where = f"{uri} from {row_word(uri)} {chunk.first_line} on"
                for field in pa.ipc.read_schema(pa.py_buffer(found.kept)):
                    type, exact = (said.type for said in field.type)
                    self._seen[field.name].add(type, where, exact)
            yield found

    def refusal(self) -> SpecError | None:
        """The error of a field whose values go into no column together."""
        try:
            if self._not_kept:
                raise SpecError(self._not_kept)
            for name, column in self._seen.items():
                if _has_no_field(column.type_of_all()):
                    raise SpecError(
                        f"keep: field {name!r} has only empty objects, and no column of a table "
                        "holds these; leave it out of keep, or name the sink .jsonl"
                    )
        except SpecError as e:
            return e
        return None


def _has_no_field(type: pa.DataType | None) -> bool:
    """Whether a type, or one inside of it, is that of objects without fields."""
    import pyarrow as pa

    if type is None or not type.num_fields:
        return type is not None and pa.types.is_struct(type)
    return any(_has_no_field(type.field(i).type) for i in range(type.num_fields))
