"""The files of one step: what to run, and what came of each, as data that can travel."""

from __future__ import annotations

import importlib
import json
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from sheaf_dagster.batch.messages import ErrorMessage
from sheaf_dagster.batch.progress import EVERY_SECONDS
from sheaf_dagster.batch.ray.cluster_config import ClusterConfig
from sheaf_dagster.batch.results import BatchOutcome, BatchResult
from sheaf_dagster.batch.rows.sample import OutputSample, sample_output
from sheaf_dagster.batch.runner import BatchRunner
from sheaf_dagster.batch.spec import BatchSpec, ModelSpec
from sheaf_dagster.environment import from_environment
from sheaf_dagster.errors import SheafError, SpecError
from sheaf_dagster.storage import Location

__all__ = [
    "Committed",
    "FileOutcome",
    "FileWork",
    "StepOrder",
    "run_files",
]

log = logging.getLogger(__name__)

_SAMPLE_BYTES = 48 * 1024
"""About what the shown rows of one file may take in a message."""


@dataclass(frozen=True)
class Committed:
    """A sink that an earlier run committed.

    Attributes:
        fingerprint: The job's, or its first digits.
        output_bytes: Size of the sink.
    """

    fingerprint: str
    output_bytes: int

    def still_holds(self, runner: BatchRunner, spec: BatchSpec) -> bool:
        """Whether the sink is what running the job again would write."""
        try:
            state = Location.of(spec.sink, spec.storage_options).state()
            if state is None or state.size != self.output_bytes:
                return False
            return runner.fingerprint(spec).startswith(self.fingerprint)
        except SheafError:
            return False  # running it will say what is wrong


@dataclass(frozen=True)
class FileWork:
    """One file to run, unless what an earlier run committed still holds."""

    spec: BatchSpec
    committed: Committed | None = None


@dataclass(frozen=True)
class FileOutcome:
    """What came of one file: a result, an error, or nothing to do."""

    sink: str
    result: BatchResult | None = None
    sample: OutputSample | None = None
    error: Exception | None = None

    @property
    def unchanged(self) -> bool:
        """Whether it was passed over."""
        return self.result is None and self.error is None

    def to_message(self) -> dict[str, Any]:
        """JSON-ready form, with as many of the sample's rows as a message should carry."""
        return {
            "sink": self.sink,
            "result": self.result and self.result.model_dump(mode="json"),
            "sample": self.sample and asdict(_trimmed(self.sample)),
            "error": self.error and ErrorMessage.of(self.error).briefly().to_dict(),
        }

    @classmethod
    def from_message(cls, message: dict[str, Any]) -> FileOutcome:
        """The outcome that ``to_message`` described."""
        result, sample, error = message["result"], message["sample"], message["error"]
        return cls(
            message["sink"],
            BatchResult.model_validate(result) if result else None,
            OutputSample(**{**sample, "pairs": [(a, b) for a, b in sample["pairs"]]})
            if sample
            else None,
            ErrorMessage.from_dict(error).rebuilt() if error else None,
        )


def run_files(
    runner: BatchRunner, files: Iterable[FileWork], count: int | None = None
) -> Iterator[FileOutcome]:
    """Runs the files as one job; yields what came of each as it is committed or has failed.

    Args:
        runner: One made ``for_one_step``, or each file that was committed has the weights looked
            at again.
        files: The files; may be lazy.
        count: How many they are, where that is known.
    """
    passed_over: deque[FileOutcome] = deque()  # filled by the thread that reads the specs

    def specs() -> Iterator[BatchSpec]:
        for file in files:
            if file.committed is not None and file.committed.still_holds(runner, file.spec):
                passed_over.append(FileOutcome(file.spec.sink))
            else:
                yield file.spec

    with closing(runner.run_many(specs(), count)) as outcomes:  # type: ignore[type-var]
        for outcome in outcomes:
            yield from _drained(passed_over)
            yield _finished(runner, outcome)
    yield from _drained(passed_over)


def _drained(waiting: deque[FileOutcome]) -> Iterator[FileOutcome]:
    while waiting:
        yield waiting.popleft()


def _finished(runner: BatchRunner, outcome: BatchOutcome) -> FileOutcome:
    spec = outcome.spec
    if outcome.result is None:
        return FileOutcome(spec.sink, error=outcome.error)
    try:
        sample = sample_output(runner.model_spec, spec)
    except Exception as e:  # the file is committed: that it can't be shown is no failure
        # What isn't ours may quote rows: of a source, say, that has been written anew meanwhile.
        why = e if isinstance(e, SheafError) else type(e).__name__
        log.warning("%s: no preview, and the order was not compared: %s", spec.sink, why)
        sample = OutputSample([], in_order=True, compared=0)
    return FileOutcome(spec.sink, outcome.result, sample)


def _trimmed(sample: OutputSample) -> OutputSample:
    kept, size = [], 0
    for pair in sample.pairs:
        size += len(json.dumps(pair, default=str))
        if size > _SAMPLE_BYTES:
            break
        kept.append(pair)
    return replace(sample, pairs=kept)


@dataclass(frozen=True)
class StepOrder:
    """All that another process needs to run a step's files; holds no secret.

    Attributes:
        model: The model.
        cluster: Limits, and what the job is called.
        spec: What the specs of all files have in common; ``storage_options`` name environment
            variables (``{"env": NAME}``) in place of their values.
        files: Of each file its source, its sink, and what an earlier run committed.
        imports: Modules that register the model's contract and backend.
        redact_rows: Keep row values out of errors and messages.
        progress_every_s: Seconds between two lines of progress.
        identify: Whether somebody wants to know the identity of the weights.
    """

    model: ModelSpec
    cluster: ClusterConfig
    spec: dict[str, Any]
    files: list[FileWork]
    imports: list[str] = field(default_factory=list)
    redact_rows: bool = False
    progress_every_s: float = EVERY_SECONDS
    identify: bool = False

    def to_message(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "model": self.model.model_dump(mode="json"),
            "cluster": self.cluster.model_dump(mode="json"),
            "spec": self.spec,
            "files": [
                [
                    f.spec.source,
                    f.spec.sink,
                    # 32 bits and the size tell two versions of one file apart, and a retry over
                    # ten years of partitions must fit an environment variable.
                    f.committed and [f.committed.fingerprint[:8], f.committed.output_bytes],
                ]
                for f in self.files
            ],
            "imports": self.imports,
            "redact_rows": self.redact_rows,
            "progress_every_s": self.progress_every_s,
            "identify": self.identify,
        }

    @classmethod
    def from_message(cls, message: dict[str, Any]) -> StepOrder:
        """The order that ``to_message`` described, environment variables filled in.

        Raises:
            SpecError: One of them is not set here.
        """
        options = message["spec"].get("storage_options", {})
        spec = {**message["spec"], "storage_options": from_environment("storage", options)}
        return cls(
            ModelSpec.model_validate(message["model"]),
            ClusterConfig.model_validate(message["cluster"]),
            spec,
            [
                FileWork(
                    BatchSpec(**spec, source=source, sink=sink),
                    Committed(*committed) if committed else None,
                )
                for source, sink, committed in message["files"]
            ],
            message["imports"],
            message["redact_rows"],
            message["progress_every_s"],
            message["identify"],
        )

    def runner(self, on_progress: Callable[[Any], None] | None = None) -> BatchRunner:
        """The runner of these files, for one step, once the model's modules are imported.

        Raises:
            SpecError: One can't be imported here.
        """
        for name in self.imports:
            try:
                importlib.import_module(name)
            except ImportError as e:
                raise SpecError(
                    f"module {name!r}, which the model {self.model.name!r} needs, can't be "
                    f"imported on the cluster: {e}; put it into the cluster's image, or into "
                    "the working_dir or py_modules of the ray_cluster's runtime_env"
                ) from e
        runner = BatchRunner(self.model, self.cluster, on_progress, redact_rows=self.redact_rows)
        return runner.for_one_step()
