"""The seam between rows and the libraries that read and write them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from pydantic import BaseModel

__all__ = ["RowCodec"]


class RowCodec(Protocol):
    """Reads lines into rows of one model, a request's or a response's, and writes them.

    There are two. The *general* one (``general.py``) is pydantic: it takes every row, and what it
    says of a line counts. The *fast* one (``fast.py``) does the same in a fraction of the time for
    models of plain types, and hands back what it isn't sure of: whoever uses it asks the general
    one then. So the outcome never depends on which of them was asked, which
    ``tests/batch/rows/test_codecs.py`` holds for any line.
    """

    def read(self, line: bytes, /) -> BaseModel | None:
        """The row of a line; None: ask the general codec.

        Raises:
            ValidationError, RecursionError: The line is not a row of the model (the general codec).
        """

    def write(self, rows: Sequence[BaseModel], /) -> list[bytes] | None:
        """The lines of rows of the model, without newlines; None: ask the general codec."""
