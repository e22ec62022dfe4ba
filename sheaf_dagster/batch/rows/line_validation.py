"""Validating the lines of one chunk: plain ones many at a time, any other one by pydantic."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from sheaf_dagster.batch.rows.fast import IDENTITY
from sheaf_dagster.batch.rows.findings import ChunkFindings
from sheaf_dagster.batch.rows.general import GeneralCodec
from sheaf_dagster.batch.rows.inside import given_fields
from sheaf_dagster.batch.rows.invalid import packed_lines
from sheaf_dagster.batch.rows.lossless import lost_in
from sheaf_dagster.batch.rows.occurrences import ContentsOfChunk
from sheaf_dagster.batch.rows.rules import RowRules
from sheaf_dagster.batch.rows.unique import KeysOfChunk, key_field
from sheaf_dagster.batch.rows.unknown import count_rows, observed, observing
from sheaf_dagster.batch.rows.violation import MAX_VIOLATIONS_SHOWN, Violation
from sheaf_dagster.batch.rows.violations import Violations
from sheaf_dagster.storage import is_blank

__all__ = ["validate_lines"]

_LINES = 64
"""Lines at a time: those of a whole chunk are more than a processor's cache holds."""

_GIVE_UP_AFTER = 16
"""Rows that the short cut doesn't take before it is left alone for the rest of a chunk."""


def validate_lines(rules: RowRules, data: bytes, first_line: int, findings: ChunkFindings) -> None:
    """Validates every row in a chunk's lines; keeps none of them.

    Args:
        rules: What the rows must match.
        data: The chunk's bytes.
        first_line: The number of the first line in its file.
        findings: Takes what is found.
    """
    validation = _Validation(rules, findings)
    number = first_line
    for lines, characters in _by_lines(data):
        if not validation.take(lines, characters, number):
            validation.look_at_each(lines, number)
        number += len(lines)
    validation.note(first_line)


def _by_lines(data: bytes) -> Iterator[tuple[list[bytes], NDArray[np.uint8]]]:
    """A few lines at a time, and the same as one array."""
    text, characters = io.BytesIO(data), np.frombuffer(data, np.uint8)
    start = 0
    while lines := list(islice(text, _LINES)):
        end = text.tell()
        yield lines, characters[start:end]
        start = end


class _Validation:
    """What is known of a chunk's rows so far."""

    def __init__(self, rules: RowRules, findings: ChunkFindings) -> None:
        request = rules.request
        self._rules, self._findings = rules, findings
        self._codec = rules.codec
        self._validate = GeneralCodec(request).read
        self._observe = observing(request)
        self._violations = Violations(request, rules.model_type, rules.redact)
        self._key = key_field(request)
        self._keys = KeysOfChunk()
        self._is_typed = "model_type" in request.model_fields
        self._may_lack_id = "request_id" in request.model_fields and not rules.table
        self._digests = rules.digests
        self._contents = ContentsOfChunk(request, digests=rules.digests, keep=rules.keep)
        self._by_itself = self._contents.of_each
        """Whether the content of the next row is probably to be noted by itself."""
        self._passed_on = 0
        self._invalid: list[int] = []

    def take(self, lines: Sequence[bytes], characters: NDArray[np.uint8], first_line: int) -> bool:
        """Takes rows that are valid for certain, each with an id; False: look at each of them."""
        if self._codec is None or self._by_itself:
            return False
        ids = self._codec.accepts_all(lines, characters, self._contents.tell)
        if ids is None:
            self._contents.forget_after(self._findings.rows)
            return False
        self._keys.add(range(first_line, first_line + len(ids)), ids)
        self._findings.rows += len(ids)
        return True

    def look_at_each(self, lines: Sequence[bytes], first_line: int) -> None:
        """Validates lines one by one."""
        findings, contents = self._findings, self._contents
        for number, ended_line in enumerate(lines, first_line):
            given = None if self._codec is None else self._codec.fields(ended_line)
            if given is not None:
                id = given.get(IDENTITY)
                if id:
                    self._keys.add([number], [id])
                unnamed = not id and self._may_lack_id
                self._by_itself = contents.of_each or unnamed
                if self._by_itself or self._digests:
                    contents.add(ended_line, findings.rows, named=not unnamed, given=given)
                findings.rows += 1
                continue
            if is_blank(ended_line):
                continue
            line = ended_line.rstrip(b"\n")
            findings.rows += 1
            self._passed_on += 1
            if self._passed_on >= _GIVE_UP_AFTER and 2 * self._passed_on > findings.rows:
                self._codec = None
            found = self._violations_of(line, number)
            if not found:
                continue
            contents.add_invalid(line, findings.rows - 1)
            findings.invalid_rows += 1
            self._invalid.append(number)
            findings.total_violations += len(found)
            if len(findings.violations) < MAX_VIOLATIONS_SHOWN:
                findings.violations += found[: MAX_VIOLATIONS_SHOWN - len(findings.violations)]

    def _violations_of(self, line: bytes, number: int) -> list[Violation]:
        """What is wrong with a row; notes its key, its content and its unknown fields."""
        violations, strict = self._violations, self._rules.strict
        found: list[Violation] = []
        try:
            if self._observe is None:
                request = self._validate(line)
            else:
                request, unknown = observed(line, self._observe, self._validate)
                unknown = [f for f in unknown if f.path not in self._rules.keep]
                if unknown:
                    self._findings.count_unknown(violations.names_of(unknown))
                    found = violations.of_unknown(number, unknown) if strict else []
        except ValidationError as e:
            return violations.of_error(number, line, e)
        except RecursionError:
            return [Violation(line=number, field="", message="JSON is nested too deeply")]
        if self._key is not None and self._key in given_fields(request):
            self._keys.add([number], [getattr(request, self._key)])
        if self._is_typed and request.model_type != self._rules.model_type:
            return [violations.wrong_type(number, str(request.model_type))]
        if found:
            return found
        lost = lost_in(line, request)
        if lost:
            count_rows(self._findings.unknown_fields, violations.names_of_repeated(lost))
            found = violations.of_lost(number, lost, strict=strict)
        unnamed = self._may_lack_id and "request_id" not in given_fields(request)
        if not found and (self._contents.of_each or self._digests or unnamed):
            self._contents.add(line, self._findings.rows - 1, named=not unnamed)
        return found

    def note(self, first_line: int) -> None:
        """Puts what was noted of the rows into the findings."""
        findings, contents = self._findings, self._contents
        findings.key, findings.key_is_unique = self._key or "", self._rules.key_is_unique
        findings.keys = self._keys.packed()
        findings.invalid = packed_lines(self._invalid, first_line)
        findings.digests, findings.hashes = contents.digests(), contents.hashes(findings.rows)
