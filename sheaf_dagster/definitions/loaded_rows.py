"""The rows of files that a downstream asset loads, plain or as models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import orjson
from pydantic import BaseModel, ValidationError

from sheaf_dagster.batch.results import ValidationReport
from sheaf_dagster.batch.rows.occurrences import occurrence_in_lines
from sheaf_dagster.batch.rows.requests import RowContract
from sheaf_dagster.contracts import BaseRequest, BaseResponse, contract_for
from sheaf_dagster.definitions.loaded_files import blocks_of_file, lines_of_file
from sheaf_dagster.errors import InputValidationError, SourceError
from sheaf_dagster.storage import Location, NamedFile, files_of, is_columnar
from sheaf_dagster.storage.formats import is_table, row_word

__all__ = ["rows_of"]


def rows_of(files: Sequence[Location | NamedFile], row_type: Any) -> Iterator[Any]:
    """The rows of files, one file after the other.

    Args:
        files: Lines or Parquet; of a folder all its files.
        row_type: A model to read rows as; anything else: plain values. Of ``BaseRequest`` and
            ``BaseResponse`` each row says which one it is.

    Raises:
        SourceError: A row is not JSON, or doesn't say what it is.
        InputValidationError: Rows don't fit the model; all of the file are told.
    """
    typed = isinstance(row_type, type) and issubclass(row_type, BaseModel)
    for file in files_of(files):
        yield from _typed_rows(file, row_type) if typed else _plain_rows(file)


def _plain_rows(file: NamedFile) -> Iterator[Any]:
    uri = file.location.uri
    for number, line in lines_of_file(file):
        try:
            yield orjson.loads(line)
        except orjson.JSONDecodeError as e:
            raise SourceError(f"{uri}, {row_word(uri)} {number}: is not JSON: {e}") from e


def _typed_rows(file: NamedFile, row_type: type[BaseModel]) -> Iterator[Any]:
    uri, columnar = file.location.uri, is_columnar(file.location)
    any_type = row_type in (BaseRequest, BaseResponse)
    contract = _contract(row_type)
    contracts: dict[str, RowContract] = {}
    occurrence_of = occurrence_in_lines(row_type, lambda: (line for _, line in lines_of_file(file)))
    for position, (number, line) in enumerate(lines_of_file(file)):
        if any_type:
            contract = _contract_of(f"{uri}, {row_word(uri)} {number}", line, row_type, contracts)
        try:
            reader = replace(contract, table=True) if columnar else contract
            (row,) = reader.parse([(number, line)], position, occurrence_of, validated=False)
        except (ValidationError, RecursionError) as e:
            raise _invalid(file, contract, single=line if any_type else None, number=number) from e
        yield row.request


def _contract(row_type: type[BaseModel]) -> RowContract:
    field = row_type.model_fields.get("model_type")
    default = None if field is None else field.default
    return RowContract(str(default) if isinstance(default, str) else "", row_type)


def _contract_of(
    where: str, line: bytes, base: type[BaseModel], known: dict[str, RowContract]
) -> RowContract:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as e:
        raise SourceError(f"{where}: is not JSON: {e}") from e
    if not isinstance(row, dict) or "model_type" not in row:
        raise SourceError(
            f"{where}: is not a {base.__name__}: it has no 'model_type'. Rows that failed in the model "
            '(on_error="record") hold an error instead; load such files as list[dict].'
        )
    name = str(row["model_type"])
    if name not in known:
        contract = contract_for(name)
        row_type = contract.request if base is BaseRequest else contract.response
        known[name] = RowContract(name, row_type)
    return known[name]


def _invalid(
    file: NamedFile, contract: RowContract, *, single: bytes | None, number: int
) -> InputValidationError:
    """The error over all rows of a file, since one was found that doesn't fit."""
    uri = file.location.uri
    report = ValidationReport(source=uri)
    blocks = [(number, single + b"\n")] if single is not None else _numbered_blocks(file)
    for first_line, block in blocks:
        check = contract.validate(block, first_line)
        report.rows += check.rows
        report.invalid_rows += check.invalid_rows
        report.total_violations += check.total_violations
        report.violations += check.violations[: 100 - len(report.violations)]
    for violation in report.violations if is_table(uri) else ():
        violation.column = violation.field
    shown = "\n".join(f"  {v}" for v in report.violations[:5])
    return InputValidationError(
        f"{uri}: {report.invalid_rows} of {report.rows} rows are not valid as "
        f"{contract.request.__name__}:\n{shown}\n  Rows that failed in the model "
        '(on_error="record") hold an error instead; load such files as list[dict].',
        report,
    )


def _numbered_blocks(file: NamedFile) -> Iterator[tuple[int, bytes]]:
    number = 1
    for block in blocks_of_file(file):
        yield number, block
        number += block.count(b"\n")
