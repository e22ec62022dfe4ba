"""What an engine or a server says of a row that it doesn't answer."""

from __future__ import annotations

__all__ = ["RefusedError"]


class RefusedError(ValueError):
    """A row was refused by what should answer it; it is that row's error.

    Args:
        message: The engine's own words.
        status_code: Its HTTP status.
        kind: Its name for the kind of error.
    """

    def __init__(self, message: str, status_code: int, kind: str) -> None:
        super().__init__(message, status_code, kind)  # all three, so that it can be pickled
        self.status_code = status_code
        self.kind = kind

    def __str__(self) -> str:
        return str(self.args[0])
