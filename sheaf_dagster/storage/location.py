"""The address of a file, wherever it lives: one small value that pickles to workers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sheaf_dagster.errors import SheafError, SinkError
from sheaf_dagster.protocols import options_for, version_in
from sheaf_dagster.storage.failures import as_error, showable
from sheaf_dagster.storage.filesystem import filesystem_of, local_path, protocol_of
from sheaf_dagster.storage.options import check_no_credentials

__all__ = ["Location", "sink_errors"]


@dataclass(frozen=True)
class Location:
    """A path or fsspec URI with the options that reach it.

    ``uri`` is absolute: a relative local path is resolved where the object is made, so that
    every worker means the same file. What can be done there is the store's: ``store_at(location)``.
    """

    uri: str
    options: dict[str, Any] = field(default_factory=dict, repr=False, hash=False, compare=False)

    @classmethod
    def of(cls, uri: str, options: dict[str, Any] | None = None) -> Location:
        """The location of a path or URI.

        Raises:
            SourceError: The protocol is unknown.
            SpecError: The URI carries credentials, or the protocol's file system refuses the
                options.
            MissingDependencyError: The package that speaks the protocol is not installed.
        """
        check_no_credentials(uri)
        protocol = protocol_of(uri)
        if protocol in ("file", "local"):
            return cls(local_path(uri), {})
        location = cls(uri, options_for(protocol, options))
        if version_in(uri):
            location.options.setdefault("version_aware", True)  # s3fs would leave the version out
        # An unknown protocol is refused here, not on a worker.
        filesystem_of(location.uri, location.options)
        return location

    @property
    def protocol(self) -> str:
        """What stands before ``://``; ``file`` for a path on this machine."""
        return protocol_of(self.uri)

    @property
    def name(self) -> str:
        """Last component."""
        return self.uri.rstrip("/").rsplit("/", 1)[-1]

    @property
    def parent(self) -> Location:
        """The folder or prefix that holds it."""
        head = self.uri.rstrip("/").rsplit("/", 1)[0]
        return Location(head or "/", self.options)

    def child(self, name: str) -> Location:
        """A file below this folder or prefix."""
        return Location(f"{self.uri.rstrip('/')}/{name}", self.options)

    def error(
        self, cls: type[SheafError], what: str, cause: BaseException, cure: str = ""
    ) -> SheafError:
        """An error in one line, with no secret of the options in it."""
        return as_error(cls, what, cause, self.options, cure)

    def cause(self, error: BaseException) -> BaseException | None:
        """The error as a cause to chain, or None where its text would tell a secret."""
        return showable(error, self.options)


@contextmanager
def sink_errors(location: Location) -> Iterator[None]:
    """Turns what a store says while a sink is written into one clear SinkError."""
    try:
        yield
    except SinkError:
        raise
    except Exception as e:
        raise location.error(
            SinkError, f"{location.uri} can't be written", e, "an existing file there is untouched"
        ) from location.cause(e)
