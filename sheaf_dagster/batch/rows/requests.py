"""Rows: from a line to a typed request."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pydantic import ValidationError
from zlib_ng.zlib_ng import crc32

from sheaf_dagster.batch.rows.columnar import HeldColumns, column_codec
from sheaf_dagster.batch.rows.fast import IDENTITY, fast_codec
from sheaf_dagster.batch.rows.findings import ChunkFindings
from sheaf_dagster.batch.rows.general import GeneralCodec
from sheaf_dagster.batch.rows.ids import Identity, OwnId, id_reader, own_id_of, placed_id
from sheaf_dagster.batch.rows.in_columns import TableBlock
from sheaf_dagster.batch.rows.inside import given_fields
from sheaf_dagster.batch.rows.invalid import invalid_row, why_invalid
from sheaf_dagster.batch.rows.keep import fields_of
from sheaf_dagster.batch.rows.kept_agreement import note_columns
from sheaf_dagster.batch.rows.line_validation import validate_lines
from sheaf_dagster.batch.rows.occurrences import OccurrenceOf, always_first
from sheaf_dagster.batch.rows.row import Row
from sheaf_dagster.batch.rows.rules import RowRules
from sheaf_dagster.batch.rows.unique import KeysOfChunk, key_field, unique_key
from sheaf_dagster.batch.rows.unknown import (
    UnknownField,
    observing,
)
from sheaf_dagster.batch.rows.violation import Violation
from sheaf_dagster.batch.rows.violations import Violations
from sheaf_dagster.contracts import Contract
from sheaf_dagster.errors import InputValidationError
from sheaf_dagster.storage import Chunk, TableRows
from sheaf_dagster.storage.formats import FieldMap

if TYPE_CHECKING:
    from sheaf_dagster.batch.spec import BatchOptions

__all__ = ["RowContract"]

_row_of: Callable[[tuple[Any, ...]], Row] = partial(tuple.__new__, Row)
"""Of the same as ``Row``, in half the time."""


@dataclass(frozen=True)
class RowContract(RowRules):
    """Parses and validates the rows of one model type."""

    @classmethod
    def of(cls, contract: Contract, *, redact: bool = False) -> RowContract:
        """The parser of a contract's requests."""
        return cls(contract.model_type, contract.request, contract.response, redact)

    def of_chunk(self, chunk: Chunk) -> RowContract:
        """The same for a chunk's bytes."""
        return self if self.table == chunk.table else replace(self, table=chunk.table)

    def fields_of(self, options: BatchOptions) -> FieldMap:
        """Which columns of a source are which fields of the contract's rows."""
        typed = self.request.model_fields.get("model_type")
        return FieldMap(
            columns=options.columns or {},
            constants=options.fields or {},
            implied={"model_type": self.model_type} if typed and typed.is_required() else {},
            kept=[name for name in options.keep if name not in self.request.model_fields],
        )

    def validate(self, data: bytes, first_line: int) -> ChunkFindings:
        """Validates every row in a chunk's bytes; keeps none of them."""
        findings, taken = ChunkFindings(crc=crc32(data)), False
        if self.table:
            rows = TableRows.of(data)
            taken = self._take_columns(rows, findings, first_line)
            if taken and not self.columns:
                return findings
            rows = rows.only(self.keep) if taken else rows
            data = b"".join(b"%b\n" % line for line in rows.lines())
        if not taken:
            validate_lines(self, data, first_line, findings)
        if self.columns:
            note_columns(data, first_line, self.columns, self.keep, findings)
        return findings

    def _take_columns(self, rows: TableRows, findings: ChunkFindings, first_line: int) -> bool:
        """Notes rows that are valid for certain by their columns; False: look at each line."""
        codec = column_codec(self.request)
        if codec is None or not self.is_of_one_type or unique_key(self.request) or self.digests:
            return False
        others = codec.accepts(rows, self.keep)
        if others is None or (others and self.strict):
            return False
        findings.rows = rows.batch.num_rows
        named = [n for n in enumerate(codec.ids(rows), first_line) if n[1] is not None]
        keys = KeysOfChunk()
        keys.add([line for line, _ in named], [id for _, id in named])
        findings.key, findings.key_is_unique = IDENTITY, self.key_is_unique
        findings.keys = keys.packed()
        if others and observing(self.request) is not None:
            violations = Violations(self.request, self.model_type, self.redact)
            for name, number in sorted(others.items()):
                names = violations.names_of([UnknownField(name, name, self.request)])
                findings.count_unknown(names, number)
        return True

    def why_invalid(
        self, number: int, line: bytes, fields: FieldMap | None = None
    ) -> InputValidationError:
        """The error of a row that was found invalid; of a table's where its fields are known."""
        found = replace(self, table=False).validate(line + b"\n", number).violations
        key = key_field(self.request) or ""
        again = Violation(line=number, field=key, message="is the same as on an earlier line")
        return why_invalid(found or [again], fields)

    def parse_all(
        self,
        lines: Sequence[tuple[int, bytes]],
        first_position: int,
        invalid: Container[int],
        occurrence_of: OccurrenceOf = always_first,
    ) -> list[Row]:
        """As ``parse``, of lines some of which are invalid.

        Where these can't be parsed, an ``InvalidRow`` stands for the request.
        """
        rows: list[Row] = []
        for bad, group in itertools.groupby(lines, lambda line: line[0] in invalid):
            some = list(group)
            if not bad:
                rows += self.parse(some, first_position + len(rows), occurrence_of)
                continue
            for line in some:
                rows.append(self._parse_invalid(line, first_position + len(rows), occurrence_of))
        return rows

    def _parse_invalid(
        self, numbered: tuple[int, bytes], position: int, occurrence_of: OccurrenceOf
    ) -> Row:
        try:
            (row,) = self.parse([numbered], position, occurrence_of, validated=False)
            return row
        except (ValidationError, RecursionError):
            number, line = numbered
            own_id = self._own_id(occurrence_of)
            stand_in = invalid_row(
                self.request, line, occurrence_of(position), lambda: own_id(position, line)
            )
            fields = fields_of(self.keep)(line) if self.keep else b""
            return Row(position, number, stand_in, fields)

    def named(
        self,
        lines: Sequence[tuple[int, bytes]],
        first_position: int,
        occurrence_of: OccurrenceOf = always_first,
    ) -> list[Row]:
        """As ``parse``, of valid lines, where a request need have no more than its identity."""
        id_of = id_reader(self.request)
        if id_of is None:
            return self.parse(lines, first_position, occurrence_of)
        own_id, fields = self._own_id(occurrence_of), fields_of(self.keep) if self.keep else None
        rows = []
        for position, (number, line) in enumerate(lines, first_position):
            own = id_of(line) or own_id(position, line)
            kept = b"" if fields is None else fields(line)
            rows.append(Row(position, number, Identity(own), kept))
        return rows

    def parse(
        self,
        lines: Sequence[tuple[int, bytes]],
        first_position: int,
        occurrence_of: OccurrenceOf = always_first,
        *,
        validated: bool = True,
    ) -> list[Row]:
        """Rows of lines; a missing ``request_id`` is derived, see ``rows.ids``.

        Args:
            lines: Line numbers and lines.
            first_position: Position of the first in the source.
            occurrence_of: What tells equal rows apart; if they need not be told apart, none.
            validated: The lines were found valid before. If not, pydantic looks at each.

        Raises:
            ValidationError, RecursionError: A line doesn't match the contract.
        """
        validate = GeneralCodec(self.request).read
        has_id = "request_id" in self.request.model_fields
        fast = fast_codec(self.request) if validated else None
        own_id = self._own_id(occurrence_of)
        requests: list[Any] = []
        lacks_id = False
        # Rows of a file are mostly alike: the next lacks an id, or isn't plain, where this one does.
        for position, (_, line) in enumerate(lines, first_position):
            given = fast.fields(line) if lacks_id and fast is not None else None
            id: UUID | None = None
            if given is not None and IDENTITY not in given:
                id = own_id(position, line, given)  # before a validator may change them
            request = None if fast is None else fast.read(line, given)
            if request is None:
                fast, request = None, validate(line)
            lacks_id = has_id and "request_id" not in given_fields(request)
            if lacks_id:
                # Past pydantic's setattr: a user's contract may be frozen.
                request.__dict__["request_id"] = id or own_id(position, line)
            requests.append(request)
        numbers = [number for number, _ in lines]
        texts = (line for _, line in lines)
        return self._rows(requests, first_position, numbers, texts, occurrence_of)

    def parse_columns(
        self,
        rows: TableRows,
        first_line: int,
        first_position: int,
        occurrence_of: OccurrenceOf = always_first,
    ) -> list[Row]:
        """As ``parse``, of a table's rows, which were found valid before.

        Args:
            rows: The rows.
            first_line: Number of the first in its file.
            first_position: Its position in the source.
            occurrence_of: As in ``parse``.
        """
        held = self._held(rows, first_position)
        requests = None if held is None else held.requests()
        if requests is None:
            lines = list(enumerate(rows.lines(), first_line))
            return self.parse(lines, first_position, occurrence_of)
        numbers = range(first_line, first_line + len(requests))
        texts = rows.only(self.keep).lines() if self.keep else ()
        return self._rows(requests, first_position, numbers, texts, occurrence_of)

    def _held(self, rows: TableRows, first_position: int) -> HeldColumns | None:
        codec = column_codec(self.request)
        if codec is None:
            return None
        return codec.hold(rows, lambda i, content: placed_id(first_position + i, content))

    def hold_columns(
        self,
        rows: TableRows,
        first_line: int,
        first_position: int,
        occurrence_of: OccurrenceOf = always_first,
    ) -> TableBlock | None:
        """As ``parse_columns``, of rows that stay in their columns; None where they can't."""
        codec = column_codec(self.request)
        if (
            codec is None
            or hasattr(self.request, "placed")
            or codec.accepts(rows, self.keep) is None
        ):
            return None
        held = self._held(rows, first_position)
        if held is None:
            return None
        lines = rows.only(self.keep).lines() if self.keep else ()
        fields = [*map(fields_of(self.keep), lines)]
        make = partial(self.parse_columns, rows, first_line, first_position, occurrence_of)
        return TableBlock(held, first_position, fields, make)

    def _rows(
        self,
        requests: Sequence[Any],
        first_position: int,
        numbers: Iterable[int],
        lines: Iterable[bytes],
        occurrence_of: OccurrenceOf,
    ) -> list[Row]:
        if (placed := getattr(self.request, "placed", None)) is not None:
            for position, request in enumerate(requests, first_position):
                placed(request, occurrence_of(position))
        fields = map(fields_of(self.keep), lines) if self.keep else itertools.repeat(b"")
        positions = range(first_position, first_position + len(requests))
        return [*map(_row_of, zip(positions, numbers, requests, fields, strict=False))]

    def _own_id(self, occurrence_of: OccurrenceOf) -> OwnId:
        return own_id_of(self.request, occurrence_of, table=self.table)
