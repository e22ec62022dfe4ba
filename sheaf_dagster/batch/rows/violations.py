"""What is wrong with a row, in words that a reader can act on."""

from __future__ import annotations

import reprlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, ValidationError

from sheaf_dagster.batch.messages import shortened
from sheaf_dagster.batch.rows.inside import ERROR_TYPES
from sheaf_dagster.batch.rows.lossless import Lost
from sheaf_dagster.batch.rows.unknown import REST, UnknownField
from sheaf_dagster.batch.rows.violation import Violation
from sheaf_dagster.contracts import schema_of
from sheaf_dagster.masking import masked

__all__ = ["Violations"]

_EXCERPT = 80
_READ = 64 * _EXCERPT
"""More than is shown: credentials in a URI must not be cut in two before they are masked."""
_MAX_LISTED = 20_000
"""Violations of one row that are looked at: pydantic needs a kilobyte for each."""


@dataclass(frozen=True)
class Violations:
    """Words the violations of one contract's rows.

    Attributes:
        request: The contract.
        model_type: The one that the model serves.
        redact: Leave values out.
    """

    request: type[BaseModel]
    model_type: str
    redact: bool

    def of_error(self, number: int, line: bytes, error: ValidationError) -> list[Violation]:
        """What pydantic found in a line."""
        count = error.error_count()
        if count > _MAX_LISTED:
            message = f"has {count} violations, too many to list; is this a row of this contract?"
            return [Violation(line=number, field="", message=message)]
        found = []
        for e in _without_union_noise(error.errors(include_url=False, include_context=False)):
            path = self._path(e["loc"])
            if path == "model_type":
                found.append(self.wrong_type(number, str(e["input"])))
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

    def of_unknown(self, number: int, fields: Sequence[UnknownField]) -> list[Violation]:
        """Fields that the contract doesn't know, where they are refused."""
        return [
            Violation(
                line=number,
                field=REST if self.redact else shortened(_printable(f.path), 200),
                message=f"is not a field of {f.model.__name__}, and strict=True refuses it"
                + (f"; did you mean {f.meant!r}?" if f.meant and not self.redact else ""),
            )
            for f in fields
        ]

    def of_lost(self, number: int, lost: Sequence[Lost], *, strict: bool) -> list[Violation]:
        """What reading the line would lose and mustn't; of repeated fields where they are refused."""
        out_of_range = [
            Violation(
                line=number,
                field=self._path(one.path),
                message="is text that doesn't read as a finite number; a missing value is null"
                if one.path
                else "a number is beyond the range of a float; a missing value is null",
                excerpt="" if self.redact else _short(one.number),
            )
            for one in lost
            if one.number
        ]
        repeated = [
            Violation(
                line=number,
                field=REST if self.redact else shortened(_printable(one.field), 200),
                message="appears more than once in one object, and strict=True refuses it",
            )
            for one in lost
            if not one.number and strict
        ]
        return out_of_range + repeated

    def names_of_repeated(self, lost: Sequence[Lost]) -> dict[str, int]:
        """What to count repeated fields under, of which the last one counts."""
        names = (REST if self.redact else _short(one.field) for one in lost if not one.number)
        return {f"{name} (repeated)": 1 for name in names}

    def names_of(self, fields: Sequence[UnknownField]) -> dict[str, str | None]:
        """What to count such fields under, with the field that was probably meant."""
        return {REST: None} if self.redact else {_short(f.name): f.meant for f in fields}

    def wrong_type(self, number: int, got: str) -> Violation:
        """A row of another model type."""
        return Violation(
            line=number,
            field="model_type",
            message=f"is {'another' if self.redact else repr(_short(got))}, but the model serves "
            f"{self.model_type!r}",
        )


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
    b"PAR1": "this is a Parquet file: give its name the suffix .parquet",
    b"\xff\xfe": "this is UTF-16; JSON lines are UTF-8",
    b"\xfe\xff": "this is UTF-16; JSON lines are UTF-8",
    b"{\x00": "this is UTF-16 or UTF-32; JSON lines are UTF-8",
    b"[": "is the file one JSON array? A source has one object a line",
}


def _hint(line: bytes) -> str:
    """What a file is that is not JSONL, by how it begins."""
    found = next((hint for start, hint in _HINTS.items() if line.startswith(start)), "")
    if not found and line.strip() == b"{":
        found = "does one object span several lines? A source has one object a line"
    return f" ({found})" if found else ""


_QUOTING_ERRORS = frozenset(
    t
    for t in ERROR_TYPES
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

_QUIET_ERRORS = ERROR_TYPES - _QUOTING_ERRORS


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
