"""The types that fields to be kept (``keep``) have in the tables of a source, by their footers."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sheaf_dagster.errors import SpecError
from sheaf_dagster.storage.formats import (
    FieldMap,
    fits,
    has_one_form,
    holds,
    is_table,
    one_type,
    plain_type,
    read_schema,
)
from sheaf_dagster.storage.source_files import NamedFile

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["KeptTypes", "OneType", "kept_types"]

KeptTypes = Mapping[str, "pa.DataType"]
"""By field, the type of its column in a sink that is a table; pyarrow finds that of the others."""


def kept_types(
    files: Sequence[NamedFile], fields: FieldMap, in_table: Sequence[str] = ()
) -> KeptTypes:
    """Looks at all tables once, and refuses what can't be kept before anything is read or run.

    A table may lack a column that another one of the source has. A row of a file of lines may have
    any field.

    Args:
        files: Of the source.
        fields: Which of their columns is which field.
        in_table: The fields that become columns of a table.

    Returns:
        The types that hold the values of all tables as they are, as far as these have one form in JSON.

    Raises:
        SpecError: A field is in no table, or is of types that no column holds together.
        SourceError: A table can't be read.
    """
    import pyarrow as pa

    missing = {*fields.kept} - {*fields.constants, *fields.columns, *fields.defaults}
    seen: dict[str, None] = {}
    columns = {name: OneType(name) for name in in_table if name not in fields.constants}
    for file in files:
        if not is_table(file.location.uri):
            missing.clear()
            continue
        if not missing and not columns:
            break
        schema = read_schema(file.location)
        missing.difference_update(schema.names, file.folders, fields.implied)
        seen |= dict.fromkeys([*schema.names, *file.folders])
        for name, column in columns.items():
            own = fields.columns.get(name, name)
            if (at := schema.get_field_index(own)) >= 0:
                column.add(plain_type(schema.field(at).type), file.location.uri)
            elif own in file.folders:
                column.say(file.folders[own], file.location.uri)
    if missing and files:
        _refuse_missing(min(missing), files, [*seen])
    types = {name: column.type_of_all() for name, column in columns.items()}
    types |= {n: pa.array([fields.constants[n]]).type for n in in_table if n in fields.constants}
    return {name: t for name, t in types.items() if t is not None and has_one_form(t)}


_ADVICE = "Write the files with one type, leave the column out of keep, or name the sink .jsonl"


class OneType:
    """The type of a column that several files, or rows, make together.

    Args:
        name: Of the column.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._seen: dict[pa.DataType, str] = {}
        """Where each type is first."""
        self._exact: dict[tuple[pa.DataType, pa.DataType], str] = {}
        """The same of types whose integers not every type holds that holds such integers."""
        self._said: dict[Any, str] = {}
        """Values that folders say, and where they do so first."""

    def add(self, type: pa.DataType, where: str, exact: pa.DataType | None = None) -> None:
        """Notes a type of values, and their ``exact_type`` where it is known."""
        self._seen.setdefault(type, where)
        if exact is not None and exact != type:
            self._exact.setdefault((type, exact), where)

    def say(self, value: Any, where: str) -> None:
        """Notes a value that a folder says."""
        self._said.setdefault(value, where)

    def type_of_all(self) -> pa.DataType | None:
        """The type that holds all values as they are; None where nothing says one.

        Raises:
            SpecError: No type does.
        """
        import pyarrow as pa

        whole: pa.DataType | None = None
        for type, where in self._seen.items():
            found = type if whole is None else one_type(whole, type)
            whole = self._required(found, type, where)
        for value, where in self._said.items():
            if whole is None or pa.types.is_null(whole) or not fits(value, whole):
                own = pa.scalar(value).type
                whole = self._required(own if whole is None else one_type(whole, own), own, where)
                self._seen.setdefault(own, where)
        for (type, exact), where in self._exact.items():
            if whole is not None and not holds(whole, exact):
                lossy = (
                    w for t, w in self._seen.items() if not holds(one_type(type, t) or t, exact)
                )
                raise SpecError(
                    f"keep: column {self._name!r} has integers beyond 2^53 in {where}, but is of type "
                    f"{whole} together with {next(lossy, where)}, and that can't hold them as they are. "
                    f"{_ADVICE}"
                )
        return whole

    def _required(self, found: pa.DataType | None, type: pa.DataType, where: str) -> pa.DataType:
        if found is not None:
            return found
        others = (t for t in self._seen if one_type(t, type) is None)
        other = next(others, next(iter(self._seen)))
        raise SpecError(
            f"keep: column {self._name!r} is of type {other} in {self._seen[other]}, but of type {type} "
            f"in {where}, and a column of one type can't hold both as they are. {_ADVICE}"
        )


def _refuse_missing(name: str, files: Sequence[NamedFile], columns: Sequence[str]) -> None:
    where = files[0].location.uri
    others = f" and in {len(files) - 1} more" if len(files) > 1 else ""
    close = difflib.get_close_matches(name, columns, n=1)
    meant = f"; did you mean {close[0]!r}?" if close else "."
    raise SpecError(
        f"keep: there is no column {name!r} in {where}{others}{meant} Columns: {', '.join(columns)}"
    )
