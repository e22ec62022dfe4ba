"""What the driver, the coordinator and the workers of a job tell one another.

The coordinator knows a job by these alone: this module loads neither the contracts nor pydantic,
so that it is up before the workers are.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import traceback
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from sheaf_dagster.errors import BackendError, SheafError
from sheaf_dagster.masking import masked
from sheaf_dagster.storage import Location, Part, PartStore
from sheaf_dagster.storage.formats import AS_THEY_ARE, FieldMap

if TYPE_CHECKING:
    from sheaf_dagster.batch.kept import KeptAnswers
    from sheaf_dagster.batch.spec import OnError

__all__ = [
    "ChunkReport",
    "ErrorMessage",
    "FileWork",
    "Hangs",
    "RemoteError",
    "RemoteTraceback",
    "said_by",
    "shortened",
    "worker_name",
]

_MESSAGE = 2000
_TRACEBACK_CHARS = 20_000


@dataclass(frozen=True)
class Hangs:
    """What earlier attempts at a chunk have learned, as positions of rows."""

    together: frozenset[int] = frozenset()
    """Rows of batches that ran out of time: they are tried one at a time."""
    alone: frozenset[int] = frozenset()
    """Rows that ran out of time by themselves: they are not tried again."""

    def after(self, rows: Iterable[int]) -> Hangs:
        """What is known once this batch has run out of time too."""
        batch = frozenset(rows)
        alone = self.alone | batch if len(batch) == 1 else self.alone
        return Hangs(self.together | batch, alone)


@dataclass(frozen=True)
class FileWork:
    """One source→sink pair as a worker sees it."""

    id: int
    texts: tuple[Location, ...]
    """Where the text of each source file can be read."""
    names: tuple[str, ...]
    """What to call them in messages."""
    store: PartStore
    batch_size: int | None
    """Rows of a batch; None: each worker finds the best."""
    on_error: OnError
    bucket_by: str | None
    batch_budget: int | Literal["auto"] | None = None
    window: int | None = None
    """Rows of the file out of which batches are taken by size; None: batches are as in the file."""
    batch_timeout: float | None = None
    redact: bool = False
    strict: bool = False
    """Whether a field that the contract doesn't know makes a row invalid."""
    keep: tuple[str, ...] = ()
    """Fields of the rows that go into their answers."""
    fields: FieldMap = AS_THEY_ARE
    """Which columns of the source are which of them."""
    kept: KeptAnswers | None = None
    """Answers of an earlier output, whose rows are not run."""
    indexed: bool = False
    """Whether a part's lines are noted beside it, for the index of the output."""
    hangs: dict[int, Hangs] = field(default_factory=dict)
    """By chunk: what ran out of time in workers that were ended for it."""


@dataclass(frozen=True)
class ErrorMessage:
    """An error that crosses processes as plain data, so that its type, text and attributes survive.

    It is never pickled: what a worker raises may hold a model, or a class that is not here.
    """

    classes: tuple[str, ...]
    """Our error classes that it belongs to, as ``module:name``, its own first: where a user's own
    class can't be imported, the nearest one that can takes its place. None for others' errors."""
    message: str
    traceback: str = ""
    retryable: bool = False
    attributes: dict[str, Any] = field(default_factory=dict)
    """What it holds that JSON can say; pydantic models as ``{"model": "module:name", "json": …}``."""

    @classmethod
    def of(
        cls, error: BaseException, place: str | None = None, *, redact: bool = False
    ) -> ErrorMessage:
        """Describes any exception.

        Args:
            error: The exception.
            place: Names the source whose rows the model was given: an error that isn't ours is
                then the model's, a ``BackendError``.
            redact: Leave out what errors that aren't ours say, for they may quote rows.
        """
        text = _frames(error) if redact else _cut_traceback(error)
        if isinstance(error, SheafError):
            classes = [c for c in type(error).__mro__ if issubclass(c, SheafError)]
            found = {name: _said(value) for name, value in vars(error).items()}
            return cls(
                tuple(map(_name_of, classes)),
                str(error),
                text,
                error.retryable,
                {name: value[0] for name, value in found.items() if value},
            )
        said = said_by(error, redact=redact)
        if place is None:
            return cls((), said, text)
        return cls((_name_of(BackendError), _name_of(SheafError)), f"{place}: {said}", text)

    def rebuilt(self) -> Exception:
        """The error, with the traceback of where it was raised as its cause."""
        kind = next((c for c in map(_class_at, self.classes) if _is_ours(c)), None)
        error: Exception
        if kind is None:
            error = RemoteError(self.message)
        else:
            # Whatever its constructor takes. (SheafError is rebuilt in the same way by pickle.)
            error = kind.__new__(kind)
            error.args = (self.message,)
            vars(error).update({n: _heard(value) for n, value in self.attributes.items()})
            if kind.retryable != self.retryable:
                vars(error)["retryable"] = self.retryable
        if self.traceback:
            error.__cause__ = RemoteTraceback(self.traceback)
        return error

    def briefly(self) -> ErrorMessage:
        """Without the traceback, where there may be thousands of them."""
        return replace(self, traceback="")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ErrorMessage:
        """The message that ``to_dict`` made plain."""
        return cls(**{**data, "classes": tuple(data["classes"])})


class RemoteError(Exception):
    """An error of another process that is none of ours; its type and text are in the message."""


class RemoteTraceback(Exception):  # noqa: N818  (a cause to show, not an error to catch)
    """The traceback of another process, as text."""

    def __str__(self) -> str:
        return "\n" + str(self.args[0])


def _name_of(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _class_at(name: str) -> Any:
    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for step in path.split("."):
            found = getattr(found, step)
    except (ImportError, AttributeError):
        return None
    return found


def _is_ours(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, SheafError)


def _said(value: Any) -> tuple[Any] | None:
    """An attribute as JSON can say it; None where it can't."""
    if hasattr(value, "model_dump"):
        return ({"model": _name_of(type(value)), "json": value.model_dump(mode="json")},)
    try:
        return (json.loads(json.dumps(value)),)
    except (TypeError, ValueError):
        return None


def _heard(value: Any) -> Any:
    if isinstance(value, dict) and value.keys() == {"model", "json"}:
        model = _class_at(value["model"])
        return value["json"] if model is None else model.model_validate(value["json"])
    return value


def _cut_traceback(error: BaseException) -> str:
    text = masked("".join(traceback.format_exception(type(error), error, error.__traceback__)))
    half = _TRACEBACK_CHARS // 2
    return text if len(text) <= 2 * half else f"{text[:half]}\n  […]\n{text[-half:]}"


def _frames(error: BaseException) -> str:
    """The way to an error and its causes, in code alone."""
    pieces: list[str] = []
    seen: BaseException | None = error
    while seen is not None:
        frames = "".join(traceback.format_tb(seen.__traceback__))
        pieces.insert(0, f"{frames}{type(seen).__name__}\n")
        seen = seen.__cause__ or seen.__context__
    return "\n".join(pieces)


@dataclass(frozen=True)
class ChunkReport:
    """All that the driver learns of a chunk."""

    file: int
    chunk: int
    first_row: int
    worker: str
    part: Part | None = None
    failure: ErrorMessage | None = None
    predict_seconds: float = 0.0
    """In which the device had work: inside the model, or with rows in flight."""
    flight_seconds: float = 0.0
    """Of all rows in flight together."""
    size: int = 0
    """Of the rows in the backend's measure, as they are."""
    padded: int = 0
    """Of the same rows as the device had them."""
    halved: int = 0
    batch_size: int = 0
    """Rows of a batch when the chunk ended."""
    batch_budget: int | None = None
    """The last batch's, where there was one."""
    gpu_samples: int = 0
    """Looks at the worker's GPUs since its report before this one."""
    gpu_utilisation: float = 0.0
    """The sum over the samples."""
    gpu_memory_bytes: int = 0
    """The most that was in use on a GPU."""
    shape: str = ""
    """How the backend takes its rows."""
    processes: int = 0
    """Those beside the model that had this and other chunks; 0 where threads had it."""
    started: float = 0.0
    ended: float = 0.0
    load_seconds: float = 0.0
    model_digest: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ChunkReport:
        """The report that ``to_dict`` described."""
        part, failure = data.pop("part"), data.pop("failure")
        return cls(
            **data,
            part=Part(**part) if part else None,
            failure=ErrorMessage.from_dict(failure) if failure else None,
        )


def worker_name() -> str:
    """Names this process among those of a cluster."""
    return f"{socket.gethostname()}:{os.getpid()}"


def said_by(error: BaseException, *, redact: bool = False) -> str:
    """An error of a backend in words, shortened: its text may quote whole rows.

    Args:
        error: The error.
        redact: Its type alone.
    """
    name = type(error).__name__
    if redact:
        return f"{name} (its text is left out: redact_rows)"
    return f"{name}: {shortened(masked(str(error)))}"


def shortened(text: str, limit: int = _MESSAGE) -> str:
    """The text, or its beginning where it is long."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
