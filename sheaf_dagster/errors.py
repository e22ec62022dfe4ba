"""Every error that sheaf_dagster raises on purpose.

::

    SheafError
    ├── SpecError                     a spec, resource or run config can't work
    │   ├── UnknownBackendError       no backend of that name
    │   ├── UnknownContractError      no contract for that model type
    │   └── MissingDependencyError    an optional package is not installed
    ├── InputValidationError          rows don't match their contract
    ├── SourceError                   a source can't be read
    │   ├── SourceNotFoundError
    │   └── SourceChangedError        it changed while the job ran              (retryable)
    ├── PreviousOutputError           answers of an earlier output can't be kept
    ├── SinkError                     a sink can't be written
    │   └── SinkBusyError             another job is writing it                 (retryable)
    ├── ClusterCapacityError          not enough GPUs, CPUs or memory
    │   └── ClusterBusyError          others held them for too long               (retryable)
    ├── ClusterError                  Ray can't be reached or stopped working   (retryable)
    ├── BackendError                  the model failed
    │   ├── BackendLoadError          load() raised
    │   ├── ModelChangedError         the weights changed during the job        (retryable)
    │   ├── ServiceDownError          the server that answers is down           (retryable)
    │   ├── PredictError              batch_predict() raised
    │   │   └── TooManyErrorsError    more rows failed than the job tolerates
    │   ├── BatchTimeoutError         batch_predict() took longer than batch_timeout
    │   └── ResponseMismatchError     wrong number, order or type of responses
    ├── SpendingLimitError            max_cost or max_tokens_total is reached
    └── WorkerCrashError              a chunk killed its worker process again and again

Each message says what is wrong, where, and what to do, in that order. Credentials in URIs are
masked. ``retryable`` tells a scheduler whether the same job can succeed if it is run again,
unchanged. A ``SourceError`` or ``SinkError`` is retryable, too, if its store was down or out of
reach.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sheaf_dagster.masking import masked

if TYPE_CHECKING:
    from sheaf_dagster.batch.results import ValidationReport

__all__ = [
    "BackendError",
    "BackendLoadError",
    "BatchTimeoutError",
    "ClusterBusyError",
    "ClusterCapacityError",
    "ClusterError",
    "InputValidationError",
    "MissingDependencyError",
    "ModelChangedError",
    "PredictError",
    "PreviousOutputError",
    "ResponseMismatchError",
    "ServiceDownError",
    "SheafError",
    "SinkBusyError",
    "SinkError",
    "SourceChangedError",
    "SourceError",
    "SourceNotFoundError",
    "SpecError",
    "SpendingLimitError",
    "TooManyErrorsError",
    "UnknownBackendError",
    "UnknownContractError",
    "WorkerCrashError",
]


class SheafError(Exception):
    """Base of all errors that this library raises on purpose."""

    retryable: bool = False
    """Whether the same job could succeed if it is run again, unchanged.

    Most errors take this from their class. An error of a store depends on why the store failed.
    """

    def __init__(self, *args: object) -> None:
        # Wherever a message is made it may quote a URI, or a library that does.
        super().__init__(*(masked(a) if isinstance(a, str) else a for a in args))

    def __reduce__(self) -> tuple[Any, ...]:
        # Keeps attributes across process borders whatever a subclass's constructor takes.
        return (_rebuild, (type(self), self.args, self.__dict__))


def _rebuild(cls: type[SheafError], args: tuple[Any, ...], state: dict[str, Any]) -> SheafError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(state)
    return error


class SpecError(SheafError, ValueError):
    """A spec, resource or run config can't work. Cure: change the field that it names."""


class UnknownBackendError(SpecError):
    """No backend has that name. Cure: use a listed name, or ``"pkg.module:Class"``."""


class UnknownContractError(SpecError):
    """No contract is known for a model type. Cure: ``register_contract`` before the job runs."""


class MissingDependencyError(SpecError, ImportError):
    """An optional package is missing. Cure: install the extra that the message names."""


class InputValidationError(SheafError):
    """Rows of a source don't match their contract. Cure: fix the lines listed in ``report``.

    Nothing was written and no model was loaded.
    """

    report: ValidationReport

    def __init__(self, message: str, report: ValidationReport) -> None:
        super().__init__(message)
        self.report = report


class SourceError(SheafError):
    """A source can't be read. Cure: see the message; the job wrote nothing."""


class SourceNotFoundError(SourceError, FileNotFoundError):
    """The source doesn't exist. Cure: run the upstream asset, or correct the location."""

    # FileNotFoundError's own __str__ wants errno and filename; we carry one message.
    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class SourceChangedError(SourceError):
    """The source changed while the job ran. Cure: run again when its writer has finished."""

    retryable = True


class PreviousOutputError(SheafError):
    """Answers of an earlier output can't be kept: it is gone, or belongs to another source or model.

    Cure: run the whole file. The earlier output is untouched.
    """


class SinkError(SheafError):
    """A sink can't be written. Cure: see the message; an existing sink is untouched."""


class SinkBusyError(SinkError):
    """Another job is writing the same sink. Cure: wait for it, or choose another sink."""

    retryable = True


class ClusterCapacityError(SheafError):
    """The job asks for more than the limit allows or the cluster has.

    Cure: lower ``num_actors`` or the model's ``resources``, or raise the limit.
    """


class ClusterBusyError(ClusterCapacityError):
    """The job fits the cluster, but other jobs held the capacity, or the cluster didn't grow in time.

    Cure: run again later, or wait longer (``wait_for_capacity_s``). The message names who held it.
    """

    retryable = True


class ClusterError(SheafError):
    """Ray can't be reached or stopped working. Cure: check the cluster, then run again."""

    retryable = True


class BackendError(SheafError):
    """The model failed. Cure: see the backend's own error at the end of the message."""


class BackendLoadError(BackendError):
    """``load()`` or the constructor raised. Cure: check ``backend_kwargs`` and the weights."""


class ModelChangedError(BackendError):
    """A worker has other weights than the job began with, or than another worker.

    Cure: finish the update of the weights, give every machine the same ones, and run again.
    """

    retryable = True


class ServiceDownError(BackendError):
    """The server that answers the rows can't be reached, or turns requests away.

    Cure: check the server, then run again. Answered rows are kept.
    """

    retryable = True


class PredictError(BackendError):
    """``batch_predict()`` raised. Cure: fix the named row, or use ``on_error="record"``."""


class TooManyErrorsError(PredictError):
    """More rows failed than ``max_error_rows`` or ``max_error_fraction`` allows.

    Cure: fix the named rows or the model, or raise the limit. A rerun continues where this run ended.
    """


class BatchTimeoutError(BackendError):
    """``batch_predict()`` took longer than ``batch_timeout`` and was stopped.

    Cure: check the named rows, raise ``batch_timeout``, or use ``on_error="record"``.
    """


class ResponseMismatchError(BackendError):
    """A backend returned a wrong number, order or type of responses.

    Cure: ``batch_predict`` must return one response for each request, in the same order.
    """


class SpendingLimitError(SheafError):
    """The job's answers reached its limit on cost or tokens.

    Cure: raise ``max_cost`` or ``max_tokens_total``, then run again. Answered rows are kept.
    """


class WorkerCrashError(SheafError):
    """A chunk of rows killed its worker process on every attempt. Cure: check the named rows."""
