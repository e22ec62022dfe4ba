"""One problem of one row, as reports list it."""

from __future__ import annotations

from pydantic import BaseModel

__all__ = ["MAX_VIOLATIONS_SHOWN", "Violation"]

MAX_VIOLATIONS_SHOWN = 100


class Violation(BaseModel):
    """One problem of one row.

    Attributes:
        line: Line of the file, counted from 1, blank lines included. For a table, its row.
        field: Path of the field inside the row, such as ``history.3``. Empty for the whole row.
        message: What is wrong, in words.
        excerpt: The wrong value, or the start of the line, shortened.
        file: The file, if the source consists of several.
        column: For a table: the column that holds the field.
    """

    line: int
    field: str
    message: str
    excerpt: str = ""
    file: str = ""
    column: str | None = None

    @property
    def row(self) -> str:
        """What the row is called: by its line, or of a table by its number."""
        return f"line {self.line}" if self.column is None else f"row {self.line}"

    def __str__(self) -> str:
        where = f"{self.file}, {self.row}" if self.file else self.row
        if self.column:
            where += f", column {self.column!r}"
        if self.field and self.field != self.column:
            where += f", field {self.field!r}"
        return f"{where}: {self.message}" + (f" (got {self.excerpt})" if self.excerpt else "")
