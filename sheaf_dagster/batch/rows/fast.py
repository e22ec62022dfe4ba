"""The fast codec: msgspec reads and orjson writes the plain rows of a model of plain types.

Pydantic decides what a row is; this is a short cut to its answer (see ``RowCodec``). A line that the
stricter types of ``plain.py`` take is a row, and has the same values. Every other line is the
general codec's to accept or to refuse.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NotRequired, Protocol

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import BaseModel
from typing_extensions import TypedDict

from sheaf_dagster.batch.rows.inside import core_schema_of, maker, schemas_in
from sheaf_dagster.batch.rows.lossless import has_names
from sheaf_dagster.batch.rows.plain import PlainModel

__all__ = [
    "IDENTITY",
    "FastCodec",
    "Given",
    "Told",
    "fast_codec",
    "may_hide_fields",
    "writes_fields",
    "written",
]

IDENTITY = "request_id"

_COLON = ord(":")

Given = dict[str, Any]
"""The fields that a line gives, each of its type."""

Fields = Callable[[bytes], Given | None]
"""The fields of a line that is a row for certain, or None; see ``FastCodec``."""

Told = Callable[[bytes, Given], None]
"""Is told of a line and of its fields but for the id."""


class AcceptsAll(Protocol):
    """Whether lines are rows for certain; see ``FastCodec``."""

    def __call__(
        self, lines: Sequence[bytes], characters: NDArray[np.uint8], tell: Told | None = None, /
    ) -> list[Any] | None:
        """Their ids, or None.

        Args:
            lines: The lines.
            characters: The same, one after the other.
            tell: Is told of each, also of those before one that isn't accepted.
        """


class Read(Protocol):
    """The row of a line, or None; see ``FastCodec``."""

    def __call__(self, line: bytes, given: Given | None = None, /) -> BaseModel | None:
        """The row.

        Args:
            line: The line.
            given: Its ``fields``, where they are known: to read them takes the most time.
        """


class FastCodec:
    """Short cuts for the rows of one model; each hands back what it isn't made for.

    Attributes:
        fields: The fields of a line that is a row for certain, without making it. None: ask the
            general codec.
        accepts_all: Whether lines are rows for certain, all of them, and each gives its
            ``request_id``: then the ids. None: look at each.
        read: The row of a line that is known to be one; None: ask the general codec.
    """

    def __init__(self, model: type[BaseModel], keep: tuple[str, ...] = ()) -> None:
        self.fields: Fields = _no_fields
        self.accepts_all: AcceptsAll = _none
        self.read: Read = _not_read
        self._writes = writes_fields(model)
        try:
            plain = PlainModel(model)
            self.fields, self.accepts_all = _acceptors(plain, keep)
            self.read = _reader(plain)
        except Exception:
            pass

    def write(self, rows: Sequence[BaseModel]) -> list[bytes] | None:
        """What pydantic would write, where that is each field's value as it is.

        None where a row has fields, or values, that pydantic and orjson may write differently. Of
        values that nobody has validated (``model_construct``), whole numbers in a field of floats
        stay whole.
        """
        return written(row.__dict__ for row in rows) if self._writes else None


def written(rows: Iterable[dict[str, Any]]) -> list[bytes] | None:
    """Rows as lines: their fields as they are; None where pydantic may write one differently."""
    dumps = orjson.dumps
    try:
        return [dumps(row, None, _AS_PYDANTIC) for row in rows]
    except TypeError:
        return None


@lru_cache(maxsize=64)
def fast_codec(model: type[BaseModel], keep: tuple[str, ...] = ()) -> FastCodec:
    """The fast codec of a model.

    Args:
        model: What it reads and writes.
        keep: Fields that rows may have, though the model doesn't know them.
    """
    return FastCodec(model, keep)


def _no_fields(line: bytes) -> None:
    return None


def _none(lines: Sequence[bytes], characters: NDArray[np.uint8], tell: Told | None = None) -> None:
    return None


def _not_read(line: bytes, given: Given | None = None) -> None:
    return None


def _acceptors(plain: PlainModel, keep: tuple[str, ...]) -> tuple[Fields, AcceptsAll]:
    """Accept plain rows, unless a validator of the model's own must see each."""
    passing = plain.passing()
    if passing is None:
        return _no_fields, _none
    types, required = passing
    # Read, not passed over: what is no JSON must not get by.
    others = {name: Any for name in keep if name not in plain.model.model_fields}
    columns = {**types, **others}
    decode = _decoder_of(columns, required)
    nested = [n for n, type_ in columns.items() if type_ is Any or "dict" in str(type_)]

    def names_in(given: Given) -> int:
        number = len(given)
        for name in nested:
            if type(value := given.get(name)) is dict:
                number += len(value)
        return number

    def fields(line: bytes) -> Given | None:
        try:
            given = decode(line)
        except _REFUSED:
            return None
        # If not, one is unknown, or stands twice.
        return given if has_names(line, names_in(given)) else None

    def accepts_all(
        lines: Sequence[bytes], characters: NDArray[np.uint8], tell: Told | None = None
    ) -> list[Any] | None:
        ids: list[Any] = []
        names = 0
        try:
            for line in lines:
                given = decode(line)
                names += names_in(given) if nested else len(given)
                if not (id := given.pop(IDENTITY, None)):
                    return None
                if not ids and line.count(b":") != names:  # then so it is in the others
                    return None
                ids.append(id)
                if tell is not None:
                    tell(line, given)
        except _REFUSED:
            return None
        # No line has fewer colons than names, so if all together have as many, each has.
        return ids if np.count_nonzero(characters == _COLON) == names else None

    return fields, accepts_all


def _decoder_of(columns: Mapping[str, Any], required: Container[str]) -> Callable[[bytes], Given]:
    """Reads the fields of a line; raises where one isn't of its type."""
    fields = {n: type_ if n in required else NotRequired[type_] for n, type_ in columns.items()}
    row = TypedDict("Row", fields)  # type: ignore[misc]
    return msgspec.json.Decoder(row).decode  # type: ignore[return-value]


def _reader(plain: PlainModel) -> Read:
    decode = _decoder_of(plain.types, plain.required)
    make, defaults = maker(plain.model), plain.defaults
    factories, members, validators = plain.factories, plain.members, plain.validators

    def read(line: bytes, given: Given | None = None) -> BaseModel | None:
        try:
            given = decode(line) if given is None else given
        except _REFUSED:
            return None
        values = {**defaults, **given}
        for name, default in factories:
            if name not in given:
                values[name] = default()
        for name, by_value in members:
            if name in given:
                values[name] = by_value[values[name]]
        request = make(values, given)
        try:
            for validate in validators:
                request = validate(request)
        except Exception:
            return None  # pydantic will meet it, too, and say it as it does
        return request

    return read


_REFUSED = (msgspec.MsgspecError, ValueError, RecursionError)

_AS_PYDANTIC = (
    orjson.OPT_PASSTHROUGH_DATACLASS
    | orjson.OPT_PASSTHROUGH_DATETIME
    | orjson.OPT_PASSTHROUGH_SUBCLASS
)
"""What pydantic writes in a form of its own, or as a field's type has it, is a TypeError."""


@lru_cache(maxsize=64)
def writes_fields(model: type[BaseModel]) -> bool:
    """Whether the fields' values are all that is written, under the fields' names."""
    schema: Any = core_schema_of(model)
    while isinstance(schema, dict) and schema["type"] == "function-after":
        if "serialization" in schema:
            return False
        schema = schema["schema"]
    if not isinstance(schema, dict) or schema["type"] != "model" or schema.get("root_model"):
        return False
    fields = schema["schema"]
    config = schema.get("config", {})
    if (
        fields["type"] != "model-fields"
        or fields.get("computed_fields")
        or config.get("extra_fields_behavior") == "allow"
        or any(key.startswith(("ser", "json_")) for key in config)
        or any("serialization_alias" in field for field in fields["fields"].values())
    ):
        return False
    kinds = (node["type"] for field in fields["fields"].values() for node in schemas_in(field))
    return _PLAIN_KINDS.issuperset(kinds) and not may_hide_fields(model)


_PLAIN_KINDS = frozenset(
    {
        "any",
        "bool",
        "default",
        "dict",
        "enum",
        "float",
        "int",
        "list",
        "literal",
        "model-field",
        "none",
        "nullable",
        "str",
        "union",
        "uuid",
    }
)


@lru_cache(maxsize=32)
def may_hide_fields(model: type[BaseModel]) -> bool:
    """Whether a None in one of its fields may be written as something else, or left out."""
    for node in schemas_in(core_schema_of(model)):
        if "serialization_exclude" in node or "serialization_exclude_if" in node:
            return True
        # Of the ways to write a field that pydantic knows these write None as null.
        if node.get("serialization", _AS_IT_IS)["type"] not in ("to-string", "format"):
            return True
    return False


_AS_IT_IS = {"type": "to-string"}
