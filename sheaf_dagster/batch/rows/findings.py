"""What validating the rows of one chunk found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sheaf_dagster.batch.rows.unknown import count_rows
from sheaf_dagster.batch.rows.violation import Violation

__all__ = ["ChunkFindings"]


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
    invalid: bytes = b""
    """The lines of invalid rows; see ``rows.invalid``."""
    key: str = ""
    """The field by which rows are told apart; see ``rows.unique``."""
    key_is_unique: bool = False
    """Whether a row with the key of an earlier one is invalid."""
    keys: bytes = b""
    """The valid rows' values of it, hashed."""
    digests: bytes = b""
    """Of each row's content, where the contract is told so; see ``rows.content``."""
    hashes: bytes = b""
    """Of the contents of rows that get a derived id; see ``rows.occurrences``."""
    kept: bytes = b""
    """The columns that kept fields make, serialised, where the contract is told so."""
    not_kept: str = ""
    """Why the fields of these rows make no columns; see ``rows.kept_columns``."""

    def count_unknown(self, names: Mapping[str, str | None], rows: int = 1) -> None:
        """Counts fields that the contract doesn't know.

        Args:
            names: What to count each under, with the field that was probably meant.
            rows: How many rows have them.
        """
        count_rows(self.unknown_fields, dict.fromkeys(names, rows))
        self.meant.update({n: m for n, m in names.items() if m and n in self.unknown_fields})
