"""A part's content in the making: answers in any order, as lines or as columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from typing import TYPE_CHECKING, Any, Protocol

import orjson
from pydantic import BaseModel
from typing_extensions import TypeIs

from sheaf_dagster.batch.rows.answer_columns import AnswerColumns
from sheaf_dagster.batch.rows.answers import ErrorLine, non_finite_in, response_lines
from sheaf_dagster.batch.rows.arrays import at_fixed_width, by_column
from sheaf_dagster.batch.rows.column_maker import ColumnMaker
from sheaf_dagster.batch.rows.fast import writes_fields
from sheaf_dagster.batch.rows.keep import with_fields, with_free_fields
from sheaf_dagster.batch.rows.kept_columns import KeptColumns
from sheaf_dagster.storage.formats import (
    ERROR_COLUMNS,
    REST_COLUMN,
    Format,
    Meaning,
    Table,
    packed,
)

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["AnswersInMaking", "answers_for"]

Answer = BaseModel | bytes
"""A response, or the line of one or of a failed row."""


class AnswersInMaking(Protocol):
    """Takes in answers as they come; gives the content of the part that they make."""

    def add(
        self,
        positions: Sequence[int],
        answers: Sequence[Answer],
        fields: Sequence[bytes] | None = None,
    ) -> int:
        """Takes in the answers of some rows; returns how many numbers became ``null``.

        Args:
            positions: Of the rows in the part.
            answers: As many.
            fields: As many; what the rows themselves have to be added, as it stands in a line.

        Raises:
            Exception: One can't be written; none of them is taken in then.
        """

    def content(self) -> bytes:
        """All answers, in the order of their rows."""


def answers_for(format: Format, rows: int, keep: Sequence[str] = ()) -> AnswersInMaking:
    """The content of a part of a format, in the making.

    Args:
        format: Of the sink.
        rows: Of the part.
        keep: Names of fields that the rows themselves may have to be added.
    """
    return _Columns(format.schema, rows, keep) if isinstance(format, Table) else _Lines(rows)


class _Lines:
    """Lines of JSON."""

    def __init__(self, rows: int) -> None:
        self._lines: list[bytes] = [b""] * rows

    def add(
        self,
        positions: Sequence[int],
        answers: Sequence[Answer],
        fields: Sequence[bytes] | None = None,
    ) -> int:
        lines, bad = _written(answers)
        if fields is not None:
            lines = [
                (with_free_fields if isinstance(a, ErrorLine) else with_fields)(line, own)
                for a, line, own in zip(answers, lines, fields, strict=True)
            ]
        first = positions[0]
        if isinstance(positions, range):
            self._lines[first : first + len(positions)] = lines
        else:
            for position, line in zip(positions, lines, strict=True):
                self._lines[position] = line
        return bad

    def content(self) -> bytes:
        return b"\n".join([*self._lines, b""])


def _written(answers: Sequence[Answer]) -> tuple[list[bytes], int]:
    """Answers as lines, and how many numbers in them became ``null``."""
    if isinstance(answers, AnswerColumns) and (known := answers.lines()) is not None:
        return known, 0
    lines, bad = response_lines([a for a in answers if not isinstance(a, bytes)])
    if len(lines) < len(answers):
        made = iter(lines)
        lines = [a if isinstance(a, bytes) else next(made) for a in answers]
    return lines, bad


class _Columns:
    """A table of a contract's columns."""

    def __init__(self, schema: pa.Schema, rows: int, keep: Sequence[str]) -> None:
        import pyarrow as pa

        meaning = Meaning.of(schema)
        assert meaning is not None
        self._keep = keep
        self._kept: list[dict[str, Any]] = []
        """The fields of the rows themselves."""
        self._kept_columns = KeptColumns(schema, keep)
        schema = pa.schema([f for f in schema if f.name not in keep], schema.metadata)
        self._schema = schema
        self._vectors = meaning.vectors
        self._columns = [ColumnMaker(field, field.name in meaning.texts) for field in schema]
        self._names = frozenset(schema.names)
        self._texts = frozenset(f.name for f in schema if pa.types.is_string(f.type)).difference(
            meaning.texts
        )
        self._errors = frozenset(ERROR_COLUMNS) <= self._names
        self._rows = rows
        self._at: list[int] = []
        self._batches: list[pa.RecordBatch] = []

    def add(
        self,
        positions: Sequence[int],
        answers: Sequence[Answer],
        fields: Sequence[bytes] | None = None,
    ) -> int:
        kept: list[dict[str, Any]] = [{} for _ in range(len(answers))]
        if fields is not None:
            kept = [self._kept_columns.read(text) for text in fields]
        if isinstance(answers, AnswerColumns) and answers.fields.keys() <= self._names:
            batch, bad = self._made_of(answers.fields, len(answers))
            return self._take(batch, bad, positions, kept)
        try:
            batch, bad = self._batch([*map(self._fields, answers, repeat(_own_fields), kept)])
            dumped = [a for a in answers if _is_response(a) and not writes_fields(type(a))]
        except Exception:  # what pydantic writes in a form of its own
            batch, bad = self._batch([*map(self._fields, answers, repeat(_dumped), kept)])
            dumped = [*filter(_is_response, answers)]
        return self._take(batch, bad + sum(map(_lost_in_dump, dumped)), positions, kept)

    def _take(
        self,
        batch: pa.RecordBatch,
        bad: int,
        positions: Sequence[int],
        kept: Sequence[dict[str, Any]],
    ) -> int:
        self._batches.append(batch)
        self._kept += kept if self._keep else ()
        self._at += positions
        return bad

    def _fields(
        self,
        answer: Answer,
        of: Callable[[BaseModel], dict[str, Any]],
        kept: dict[str, Any],
    ) -> dict[str, Any]:
        """An answer's fields by column; those of its row, which its line may hold, go to ``kept``."""
        if _is_response(answer):
            return self._known(of(answer))
        record = orjson.loads(bytes(answer))
        failed = self._errors and (isinstance(answer, ErrorLine) or "error" in record)
        if failed and not isinstance(record, dict):
            return {"error_message": answer.decode()}
        # An error row's own field stands in for its row's, as in lines.
        kept |= self._kept_columns.taken_out(record, answer)
        return self._error_fields(record, answer) if failed else self._known(record)

    def _known(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The fields that have a column, and the others in the column for them."""
        if fields.keys() <= self._names:
            return fields
        more = fields.keys() - self._names
        if REST_COLUMN not in self._names:
            raise TypeError(
                f"field {min(more)!r} is not a field of the contract, whose fields are a table's columns"
            )
        return {**fields, REST_COLUMN: {name: fields[name] for name in fields if name in more}}

    def _error_fields(self, record: dict[str, Any], line: bytes) -> dict[str, Any]:
        error = record.pop("error", None)
        if record.keys() <= self._names and _is_plain(error):
            return {**record, **{name: error.get(short) for name, short in ERROR_COLUMNS.items()}}
        # A form of the request's own, for which there are no columns.
        known = {n: v for n, v in record.items() if n in self._texts and isinstance(v, str)}
        return {**known, "error_message": line.decode()}

    def _batch(self, rows: Sequence[dict[str, Any]]) -> tuple[pa.RecordBatch, int]:
        return self._made_of(by_column(rows), len(rows))

    def _made_of(self, values: Mapping[str, Any], rows: int) -> tuple[pa.RecordBatch, int]:
        import pyarrow as pa

        made = [column.of(values.get(column.name), rows) for column in self._columns]
        arrays = [array for array, _ in made]
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema), sum(bad for _, bad in made)

    def content(self) -> bytes:
        import pyarrow as pa

        table = pa.Table.from_batches(self._batches, self._schema).combine_chunks()
        for name in self._keep:
            table = table.append_column(
                name, self._kept_columns.made(name, [k.get(name) for k in self._kept])
            )
        if self._at != [*range(self._rows)]:
            order: list[int | None] = [None] * self._rows  # rows may still wait for their answers
            for made, position in enumerate(self._at):
                order[position] = made
            table = table.take(pa.array(order, pa.int64()))
        for name, depth in self._vectors.items():
            i = table.schema.get_field_index(name)
            array = at_fixed_width(table.column(i).combine_chunks(), depth)
            table = table.set_column(i, pa.field(name, array.type), array)
        return packed(table.replace_schema_metadata(self._schema.metadata))


def _is_response(answer: Answer) -> TypeIs[BaseModel]:
    return not isinstance(answer, bytes)  # pydantic's own check takes ten times as long


def _is_plain(error: Any) -> bool:
    """Whether what an error row says of its error has its place in the columns for errors."""
    return (
        isinstance(error, dict)
        and {"type", "message"} <= error.keys() <= set(ERROR_COLUMNS.values())
        and isinstance(error["type"], str)
        and isinstance(error["message"], str)
    )


def _own_fields(response: BaseModel) -> dict[str, Any]:
    if not writes_fields(type(response)):
        return _dumped(response)
    return response.__dict__


def _dumped(response: BaseModel) -> dict[str, Any]:
    return response.model_dump(mode="json")


def _lost_in_dump(response: BaseModel) -> int:
    """Numbers that aren't finite, in values of any type: pydantic itself makes them null."""
    return max(0, non_finite_in(response.model_dump()) - non_finite_in(_dumped(response)))
