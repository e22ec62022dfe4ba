"""What a step's driver is told to run, and what it tells of each file, as data that can travel."""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from sheaf_dagster.batch.committed import CommittedSink
from sheaf_dagster.batch.messages import ErrorMessage
from sheaf_dagster.batch.model_spec import ModelSpec
from sheaf_dagster.batch.progress import EVERY_SECONDS
from sheaf_dagster.batch.ray.cluster_config import ClusterConfig
from sheaf_dagster.batch.results import BatchOutcome, BatchResult
from sheaf_dagster.batch.rows.sample import OutputSample, sample_output
from sheaf_dagster.batch.runner import BatchRunner
from sheaf_dagster.batch.spec import BatchSpec
from sheaf_dagster.environment import from_environment
from sheaf_dagster.errors import SheafError, SpecError

__all__ = ["FileOutcome", "StepOrder"]

log = logging.getLogger(__name__)

_DIGITS = len("sha256:") + 8

_SAMPLE_BYTES = 48 * 1024
"""About what the shown rows of one file may take in a message."""


@dataclass(frozen=True)
class FileOutcome:
    """What came of one file: a result, an error, or nothing to do."""

    sink: str
    result: BatchResult | None = None
    sample: OutputSample | None = None
    error: Exception | None = None

    @classmethod
    def of(cls, outcome: BatchOutcome, model: ModelSpec) -> FileOutcome:
        """An outcome of a job of that model, with the first rows of what it committed."""
        spec = outcome.spec
        if outcome.result is None:
            return cls(spec.sink, error=outcome.error)
        try:
            sample = sample_output(model, spec)
        except Exception as e:  # the file is committed: that it can't be shown is no failure
            # What isn't ours may quote rows: of a source, say, that has been written anew meanwhile.
            why = e if isinstance(e, SheafError) else type(e).__name__
            log.warning("%s: no preview, and the order was not compared: %s", spec.sink, why)
            sample = OutputSample([], in_order=True, compared=0)
        return cls(spec.sink, outcome.result, sample)

    @property
    def unchanged(self) -> bool:
        """Whether what an earlier job committed still holds, so that the file was not run."""
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
        files: The files; of each its source and its sink travel, besides ``spec``.
        committed: By sink what an earlier run committed.
        imports: Modules that register the model's contract and backend.
        redact_rows: Keep row values out of errors and messages.
        progress_every_s: Seconds between two lines of progress.
        identify: Whether somebody wants to know the identity of the weights.
    """

    model: ModelSpec
    cluster: ClusterConfig
    spec: dict[str, Any]
    files: list[BatchSpec]
    committed: Mapping[str, CommittedSink] = field(default_factory=dict)
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
            "files": [[f.source, f.sink, self._committed_at(f.sink)] for f in self.files],
            "imports": self.imports,
            "redact_rows": self.redact_rows,
            "progress_every_s": self.progress_every_s,
            "identify": self.identify,
        }

    def _committed_at(self, sink: str) -> list[str | int] | None:
        # 32 bits and the size tell two versions of one file apart, and a retry over ten years of
        # partitions must fit an environment variable.
        committed = self.committed.get(sink)
        if committed is None:
            return None
        told: list[str | int] = [committed.fingerprint[:8], committed.output_bytes]
        if self.spec.get("only"):
            told += [committed.source_digest[:_DIGITS], committed.model_version[:8]]
        return told

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
            [BatchSpec(**spec, source=source, sink=sink) for source, sink, _ in message["files"]],
            {sink: CommittedSink(*told) for _, sink, told in message["files"] if told},
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
