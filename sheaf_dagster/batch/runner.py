"""Runs jobs: validate, infer, commit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from sheaf_dagster.batch.cluster_config import ClusterConfig
from sheaf_dagster.batch.results import BatchOutcome, BatchProgress, BatchResult, ValidationReport
from sheaf_dagster.batch.spec import BatchSpec, ModelSpec

__all__ = ["BatchRunner"]


class BatchRunner:
    """Runs batch jobs of one model."""

    def __init__(
        self,
        model_spec: ModelSpec,
        cluster: ClusterConfig | None = None,
        on_progress: Callable[[BatchProgress], None] | None = None,
    ) -> None:
        self.model_spec = model_spec

    def validate(self, spec: BatchSpec) -> ValidationReport:
        raise NotImplementedError

    def run(self, spec: BatchSpec) -> BatchResult:
        raise NotImplementedError

    def run_many(self, specs: Iterable[BatchSpec]) -> Iterator[BatchOutcome]:
        raise NotImplementedError
