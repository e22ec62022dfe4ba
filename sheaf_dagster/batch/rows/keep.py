"""Fields of a row that travel along into its answer (``keep``)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import msgspec
import orjson
from pydantic import BaseModel, RootModel

from sheaf_dagster.batch.rows.inside import extra_of
from sheaf_dagster.contracts import schema_of
from sheaf_dagster.errors import ResponseMismatchError, SpecError
from sheaf_dagster.storage.formats import AS_THEY_ARE, FieldMap

__all__ = [
    "check_keep",
    "fields_of",
    "own_fields",
    "with_fields",
    "with_free_fields",
    "without_fields",
    "written_fields",
]

_LARGE = re.compile(rb"\d[eE]\+?\d{3}|\d{309}")
"""What a number that is too large for a float may look like, as 1e999 does."""


def check_keep(
    keep: Sequence[str],
    request: type[BaseModel],
    response: type[BaseModel],
    fields: FieldMap = AS_THEY_ARE,
) -> None:
    """Refuses fields that can't travel along.

    Args:
        keep: The fields.
        request: What rows are.
        response: What answers are.
        fields: Which columns of the source are which fields.

    Raises:
        SpecError: An answer has a field of that name itself, or a row can't have it.
    """
    if not keep:
        return
    if issubclass(response, RootModel):
        raise SpecError(
            f"keep: an answer of {response.__name__} is not a JSON object, so fields of its row can't "
            "be added to it; leave keep out"
        )
    answered = {*response.model_fields, *_properties(response)}
    forbids = request.model_config.get("extra") == "forbid"
    known = {*request.model_fields, *_properties(request)}
    unread = known.difference(fields.columns, fields.constants)
    for name in keep:
        if name in answered:
            raise SpecError(
                f"keep: {name!r} is a field of {response.__name__} itself, so the answer would "
                "have two of that name; leave it out, or rename the field of the rows"
            )
        if name in unread and name in fields.columns.values():
            read = next(field for field, column in fields.columns.items() if column == name)
            raise SpecError(
                f"keep: columns reads the column {name!r} as the field {read!r}, so no row has the "
                f"field {name!r} of {request.__name__}; rename the column, or leave it out of keep"
            )
        if forbids and name not in known:
            raise SpecError(
                f"keep: {request.__name__} forbids fields that it doesn't know, so no row has "
                f"{name!r}; leave it out, or let the contract ignore such fields"
            )


def _properties(model: type[BaseModel]) -> set[str]:
    """The names under which a model's fields are written."""
    try:
        return set(schema_of(model).get("properties", ()))
    except Exception:  # a type of the user's own that has no schema
        return set()


def written_fields(response: type[BaseModel]) -> set[str] | None:
    """The names of the fields that an answer of a contract is written with; None: any."""
    if issubclass(response, RootModel) or response.model_config.get("extra") == "allow":
        return None
    try:
        written = schema_of(response, written=True)
    except Exception:  # a type of the user's own that has no schema
        return None
    return {*response.model_fields, *written["properties"]} if "properties" in written else None


@lru_cache(maxsize=32)
def fields_of(keep: tuple[str, ...]) -> Callable[[bytes], bytes]:
    """Reads the fields of lines, as they stand there, in a form that ``with_fields`` takes.

    A field that a row doesn't have is null, so that all answers have the same columns.
    """
    names = {f"field{i}": name for i, name in enumerate(keep)}
    columns: list[tuple[str, Any, Any]] = [
        (field, msgspec.Raw, msgspec.Raw(b"null")) for field in names
    ]
    decode: Callable[[bytes], Any]
    values: Callable[[Any], list[msgspec.Raw]]
    try:
        row = msgspec.defstruct("Kept", columns, kw_only=True, rename=names, gc=False)
        decode = msgspec.json.Decoder(row).decode
        values = lambda row: [getattr(row, field) for field in names]  # noqa: E731
    except ValueError:  # a name with a quote or a line's end, which no struct can have
        decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
        null = msgspec.Raw(b"null")
        values = lambda row: [row.get(name, null) for name in keep]  # noqa: E731
    keys = [b"," + orjson.dumps(name) + b":" for name in keep]

    def read(line: bytes) -> bytes:
        try:
            given = decode(line)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return _read_slowly(keep, line)
        found = b"".join(key + bytes(value) for key, value in zip(keys, values(given), strict=True))
        return _read_slowly(keep, line) if _LARGE.search(found) or not _is_text(found) else found

    return read


def _is_text(data: bytes) -> bool:
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _read_slowly(keep: Sequence[str], line: bytes) -> bytes:
    """Of rows with what JSON doesn't know (NaN, 1e999), which becomes null, and of what is not a row.

    All other numbers stay as they are written.
    """
    try:
        row = json.loads(line, parse_float=_finite, parse_int=_finite, parse_constant=_null)
    except (ValueError, RecursionError):
        row = None
    row = row if isinstance(row, dict) else {}
    return b"".join(
        b",%b:%b" % (orjson.dumps(name), orjson.dumps(_as_text(row.get(name)))) for name in keep
    )


def _finite(number: str) -> orjson.Fragment | None:
    return orjson.Fragment(number) if math.isfinite(float(number)) else None


def _null(_: str) -> None:
    return None


def _as_text(value: Any) -> Any:
    """A value without halves of characters, which UTF-8 can't hold."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_as_text(key): _as_text(part) for key, part in value.items()}
    return [_as_text(part) for part in value] if isinstance(value, list) else value


def with_fields(line: bytes, fields: bytes) -> bytes:
    """An answer's line with a row's fields behind its own.

    Raises:
        TypeError: The answer is written as something else than an object.
    """
    if not line.startswith(b"{"):
        raise TypeError("it is not a JSON object, so the fields of keep can't be added to it")
    return line[:-1] + (fields if len(line) > 2 else fields[1:]) + b"}"


def with_free_fields(line: bytes, fields: bytes) -> bytes:
    """An error row's line with those of a row's fields behind its own that it doesn't have itself.

    What an error row says of itself is known only once its row has failed; it is what the contract's
    author meant it to say.

    Raises:
        TypeError: The error row is written as something else than an object.
    """
    own = orjson.loads(bytes(line))  # orjson takes no subclasses
    if not isinstance(own, dict):
        return with_fields(line, fields)
    given = msgspec.json.decode(b"{%b}" % fields[1:], type=dict[str, msgspec.Raw])
    if own.keys().isdisjoint(given):
        return with_fields(line, fields)
    free = [
        b",%b:%b" % (orjson.dumps(name), bytes(value))
        for name, value in given.items()
        if name not in own
    ]
    return with_fields(line, b"".join(free))


def without_fields(line: bytes, keep: Sequence[str], fields: bytes = b"") -> bytes:
    """The line of an earlier answer without the fields of its row; all others as they stand there.

    Args:
        line: The answer.
        keep: The names of these fields.
        fields: What they probably are, in which case the line needn't be read.
    """
    if fields and line.endswith(fields + b"}"):
        return line[: -len(fields) - 1] + b"}"
    record = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
    return msgspec.json.encode({n: value for n, value in record.items() if n not in keep})


def own_fields(where: str, answer: BaseModel, keep: Sequence[str]) -> None:
    """Refuses an answer that has brought a field of such a name, beside its contract's.

    Raises:
        ResponseMismatchError: It has.
    """
    for name in extra_of(answer):
        if name in keep:
            raise ResponseMismatchError(
                f"{where}: the answer already has a field {name!r}, which keep would add again; "
                "leave it out of keep, or out of the answer"
            )
