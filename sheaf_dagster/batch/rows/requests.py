"""Rows: from a line to a typed request."""

from __future__ import annotations

import hashlib
import io
import itertools
import reprlib
import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple, get_args
from uuid import UUID

from pydantic import BaseModel, ValidationError
from pydantic_core import core_schema

from sheaf_dagster.batch.messages import shortened
from sheaf_dagster.batch.results import MAX_VIOLATIONS_SHOWN, Violation
from sheaf_dagster.batch.rows.quick import quick_rows
from sheaf_dagster.batch.rows.unique import KeysOfChunk, unique_key
from sheaf_dagster.batch.rows.unknown import (
    REST,
    UnknownField,
    count_rows,
    observing,
    unknown_fields,
)
from sheaf_dagster.contracts import Contract, schema_of
from sheaf_dagster.masking import masked
from sheaf_dagster.storage import is_blank

__all__ = [
    "ChunkFindings",
    "Row",
    "RowContract",
    "lines_of",
]

_NAMESPACE = UUID("5f0c3f0e-6d5e-5b3a-9a43-7d2f8f1e3c11").bytes
_EXCERPT = 80
_READ = 64 * _EXCERPT
"""More than is shown: credentials in a URI must not be cut in two before they are masked."""
_GIVE_UP_AFTER = 16
"""Rows that the short cut doesn't take before it is left alone for the rest of a chunk."""
_MAX_LISTED = 20_000
"""Violations of one row that are looked at: pydantic needs a kilobyte for each."""


class Row(NamedTuple):
    """A request with its place: global position and file line."""

    position: int
    line: int
    request: Any


def lines_of(rows: Sequence[Row]) -> str:
    """Names the lines of rows: ``line 3``, ``lines 3–7``."""
    first, last = min(r.line for r in rows), max(r.line for r in rows)
    return f"line {first}" if first == last else f"lines {first}–{last}"


@dataclass
class ChunkFindings:
    """What validating one chunk found."""

    rows: int = 0
    crc: int = 0
    violations: list[Violation] = field(default_factory=list)
    total_violations: int = 0
    invalid_rows: int = 0
    unknown_fields: dict[str, int] = field(default_factory=dict)
    """Rows by the name of a field that their contract doesn't know."""
    meant: dict[str, str] = field(default_factory=dict)
    """By the name of such a field the one that was probably meant."""
    key: str = ""
    """The field whose value no two rows may share; see ``rows.unique``."""
    keys: bytes = b""
    """The valid rows' values of it, hashed."""


@dataclass(frozen=True)
class RowContract:
    """Parses and validates the rows of one model type."""

    model_type: str
    request: type[BaseModel]
    redact: bool = False
    """Leave values out of violations."""
    strict: bool = False
    """Refuse rows with fields that the contract doesn't know."""

    @classmethod
    def of(cls, contract: Contract, *, redact: bool = False) -> RowContract:
        """The parser of a contract's requests."""
        return cls(contract.model_type, contract.request, redact)

    def validate(self, data: bytes, first_line: int) -> ChunkFindings:
        """Validates every row in a chunk's bytes; keeps none of them."""
        findings = ChunkFindings(crc=zlib.crc32(data))
        validate = self.request.__pydantic_validator__.validate_json
        observe = observing(self.request)
        key = unique_key(self.request)
        keys = None if key is None else KeysOfChunk(key)
        expected = self.model_type
        typed = "model_type" in self.request.model_fields
        takes = self._takes if keys is None else None
        passed_on = 0
        # Line by line: a chunk's lines all at once are more than a processor's cache holds.
        for number, ended_line in enumerate(io.BytesIO(data), first_line):
            if takes is not None and takes(ended_line):
                findings.rows += 1
                continue
            if is_blank(ended_line):
                continue
            line = ended_line.rstrip(b"\n")
            findings.rows += 1
            passed_on += 1
            if passed_on >= _GIVE_UP_AFTER and 2 * passed_on > findings.rows:
                takes = None
            found: list[Violation] = []
            try:
                if observe is None:
                    request = validate(line)
                else:
                    request, unknown = _observed(line, observe, validate)
                    if unknown:
                        found = self._note_unknown(findings, number, unknown)
            except ValidationError as e:
                found = self._violations(number, line, e)
            except RecursionError:
                found = [Violation(line=number, field="", message="JSON is nested too deeply")]
            else:
                if keys is not None:
                    keys.add(request, number)
                if typed and request.model_type != expected:
                    found = [self._wrong_type(number, str(request.model_type))]
                elif not found:
                    continue
            findings.invalid_rows += 1
            findings.total_violations += len(found)
            if len(findings.violations) < MAX_VIOLATIONS_SHOWN:
                findings.violations += found[: MAX_VIOLATIONS_SHOWN - len(findings.violations)]
        if keys is not None:
            findings.key, findings.keys = keys.field, keys.packed()
        return findings

    def parse(
        self, lines: Sequence[tuple[int, bytes]], first_position: int, *, validated: bool = True
    ) -> list[Row]:
        """Rows of lines; a missing ``request_id`` is derived.

        The id is a UUIDv5 of the row's position in the source and its bytes.

        Args:
            lines: Line numbers and lines.
            first_position: Position of the first in the source.
            validated: The lines were found valid before. If not, pydantic looks at each.

        Raises:
            ValidationError, RecursionError: A line doesn't match the contract.
        """
        validate = self.request.__pydantic_validator__.validate_json
        has_id = "request_id" in self.request.model_fields
        quick = quick_rows(self.request) if validated else None
        read = None if quick is None else quick.read
        requests: list[Any] = []
        for _, line in lines:
            request = None if read is None else read(line)
            if request is None:
                # Rows of a file are mostly alike: the others of this batch won't be plain either.
                read, request = None, validate(line)
            requests.append(request)
        if has_id:
            for position, request in enumerate(requests, first_position):
                if "request_id" not in request.__pydantic_fields_set__:
                    # Past pydantic's setattr: a user's contract may be frozen.
                    line = lines[position - first_position][1]
                    request.__dict__["request_id"] = _derived_id(position, line)
        if (placed := getattr(self.request, "placed", None)) is not None:
            for position, request in enumerate(requests, first_position):
                placed(request, position)
        numbers = [number for number, _ in lines]
        return [*map(Row, itertools.count(first_position), numbers, requests)]

    @property
    def _takes(self) -> Callable[[bytes], bool] | None:
        """A short cut for ``validate``, where it can't miss a row of another model type."""
        quick = quick_rows(self.request)
        field = self.request.model_fields.get("model_type")
        fixed = field is None or [*map(str, get_args(field.annotation))] == [self.model_type]
        return quick.takes if quick is not None and fixed else None

    def _violations(self, number: int, line: bytes, error: ValidationError) -> list[Violation]:
        count = error.error_count()
        if count > _MAX_LISTED:
            message = f"has {count} violations, too many to list; is this a row of this contract?"
            return [Violation(line=number, field="", message=message)]
        found = []
        for e in _without_union_noise(error.errors(include_url=False, include_context=False)):
            path = self._path(e["loc"])
            if path == "model_type":
                found.append(self._wrong_type(number, str(e["input"])))
                continue
            whole = e["type"] in ("json_invalid", "missing", "model_type")
            value = line[:_READ].decode("utf-8", "replace") if whole else _code(e["input"])
            found.append(
                Violation(
                    line=number,
                    field=path,
                    message=self._message(e["type"], str(e["msg"]), number, line),
                    excerpt="" if self.redact or e["type"] == "value_error" else _short(value),
                )
            )
        return found

    def _message(self, type: str, text: str, number: int, line: bytes) -> str:
        if self.redact and type not in _QUIET_ERRORS:
            return f"doesn't match the contract ({type}; the text is left out: redact_rows)"
        text = masked(text.removeprefix("Value error, "))
        if type == "json_invalid":
            # A row is one line: the parser's own count of lines would be taken for the file's.
            text = text.replace(" at line 1 column ", " at column ")
            text += _hint(line) if number == 1 else ""
        return shortened(_printable(text), 500)

    def _path(self, location: Sequence[int | str]) -> str:
        if not self.redact:
            return shortened(_printable(masked(".".join(map(str, location)))), 200)
        # A name that the contract doesn't know comes from the row.
        known = _names_of(self.request)
        return ".".join(str(p) if isinstance(p, int) or p in known else "…" for p in location)

    def _note_unknown(
        self, findings: ChunkFindings, number: int, fields: Sequence[UnknownField]
    ) -> list[Violation]:
        """Counts a row's unknown fields; what is wrong with them where they are refused."""
        names = {REST: None} if self.redact else {_short(f.name): f.meant for f in fields}
        count_rows(findings.unknown_fields, dict.fromkeys(names, 1))
        findings.meant.update(
            {n: m for n, m in names.items() if m and n in findings.unknown_fields}
        )
        if not self.strict:
            return []
        return [
            Violation(
                line=number,
                field=REST if self.redact else shortened(_printable(f.path), 200),
                message=f"is no field of {f.model.__name__}, and strict=True refuses it"
                + (f"; did you mean {f.meant!r}?" if f.meant and not self.redact else ""),
            )
            for f in fields
        ]

    def _wrong_type(self, number: int, got: str) -> Violation:
        return Violation(
            line=number,
            field="model_type",
            message=f"is {'another' if self.redact else repr(_short(got))}, but the model serves "
            f"{self.model_type!r}",
        )


def _observed(
    line: bytes, observe: Callable[[bytes], Any], validate: Callable[[bytes], Any]
) -> tuple[Any, list[UnknownField]]:
    """A row, and its fields that the contract ignores; whether it is one, the contract says."""
    try:
        request = observe(line)
    except Exception:
        return validate(line), []
    return request, unknown_fields(request)


def _without_union_noise(errors: Sequence[Any]) -> list[Any]:
    """Of a union's branches, keeps the errors of the one that came closest.

    Pydantic reports each branch's errors, with the branch's type inside the path
    (``history``, ``list[float]``, ``3``): one bad element of a long list would otherwise drown
    in one error for each element of the other branch.
    """
    kept: list[Any] = []
    unions: dict[tuple[Any, ...], Any] = defaultdict(lambda: defaultdict(list))
    order: list[tuple[Any, ...]] = []
    for e in errors:
        at = next((i for i, p in enumerate(e["loc"]) if isinstance(p, str) and "[" in p), None)
        if at is None:
            kept.append(e)
            continue
        prefix = e["loc"][:at]
        if prefix not in unions:
            order.append(prefix)
        rest = tuple(p for p in e["loc"][at + 1 :] if not (isinstance(p, str) and "[" in p))
        unions[prefix][e["loc"][at]].append({**e, "loc": prefix + rest})
    for prefix in order:
        branches: list[list[Any]] = list(unions[prefix].values())
        closest = min(branches, key=_distance)
        kept += closest
    return kept


def _distance(errors: list[Any]) -> tuple[int, int]:
    """Fewest errors first; among equals the one that went deepest."""
    return len(errors), -len(errors[0]["loc"])


def _derived_id(position: int, line: bytes) -> UUID:
    digest = hashlib.sha1(
        _NAMESPACE + b"%d:" % position + line.strip(), usedforsecurity=False
    ).digest()
    return UUID(bytes=digest[:16], version=5)


def _short(text: str) -> str:
    text = masked(text[:_READ])[: 4 * _EXCERPT]
    return shortened(_printable(" ".join(text.split())), _EXCERPT)


def _printable(text: str) -> str:
    """The text without what would steer a terminal: rows are not to be trusted."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "�" for c in text)


class _Code(reprlib.Repr):
    def repr_str(self, x: str, level: int) -> str:
        return super().repr_str(masked(x), level)


_CODE = _Code()
_CODE.maxstring = _CODE.maxother = _CODE.maxlong = 2 * _EXCERPT
_CODE.maxlist = _CODE.maxdict = 20


def _code(value: Any) -> str:
    """A value as Python writes it, of a large one the beginning."""
    return _CODE.repr(value)


_HINTS = {
    b"\x1f\x8b": "this is a gzip file: give its name the suffix .gz",
    b"\x28\xb5\x2f\xfd": "this is a Zstandard file: give its name the suffix .zst",
    b"PAR1": "this is a Parquet file; sources are JSONL",
    b"\xff\xfe": "this is UTF-16; JSON lines are UTF-8",
    b"\xfe\xff": "this is UTF-16; JSON lines are UTF-8",
    b"{\x00": "this is UTF-16 or UTF-32; JSON lines are UTF-8",
    b"[": "is the file one JSON array? A source has one object a line",
}


def _hint(line: bytes) -> str:
    """What a file is that is no JSONL, by how it begins."""
    found = next((hint for start, hint in _HINTS.items() if line.startswith(start)), "")
    if not found and line.strip() == b"{":
        found = "does one object span several lines? A source has one object a line"
    return f" ({found})" if found else ""


_KNOWN_ERRORS = frozenset(get_args(core_schema.ErrorType))
_QUOTING_ERRORS = frozenset(
    t
    for t in _KNOWN_ERRORS
    if t
    in {
        "assertion_error",
        "datetime_object_invalid",
        "get_attribute_error",
        "iteration_error",
        "mapping_type",
        "value_error",
    }
    or t.endswith(("_parsing", "_syntax_violation", "union_tag_invalid"))
)
"""Those of pydantic's errors whose text has words of a value, or of a user's validator."""

_QUIET_ERRORS = _KNOWN_ERRORS - _QUOTING_ERRORS


@lru_cache(maxsize=32)
def _names_of(request: type[BaseModel]) -> frozenset[str]:
    """Names of a contract's fields, at any depth."""
    names = set(request.model_fields)
    waiting: list[Any] = [schema_of(request)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            names.update(node.get("properties", ()))
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node
    return frozenset(names)
