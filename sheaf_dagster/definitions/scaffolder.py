"""What ``dg scaffold`` writes for a batch inference asset."""

# No postponed annotations here: Dagster reads those of components as they are.
import dagster as dg
from pydantic import BaseModel, Field

__all__ = ["BatchInferenceScaffolder"]


class BatchInferenceParams(BaseModel):
    """What ``dg scaffold`` may be told."""

    backend: str = Field(default="statsforecast", description="Backend of the model.")
    model_type: str = Field(default="time_series", description="Model type of the rows.")


class BatchInferenceScaffolder(dg.Scaffolder[BatchInferenceParams]):
    """Writes a ``defs.yaml`` that loads as it is."""

    @classmethod
    def get_scaffold_params(cls) -> type[BatchInferenceParams]:
        """What it may be told."""
        return BatchInferenceParams

    def scaffold(self, request: dg.ScaffoldRequest[BatchInferenceParams]) -> None:
        """Writes the file, named after its folder."""
        name = request.target_path.name
        dg.scaffold_component(
            request,
            {
                "asset": {
                    "key": name,
                    "deps": [f"{name}_requests"],
                    "partitions_def": {"type": "daily", "start_date": "2026-01-01"},
                },
                "source": f"{{root}}/{name}_requests/{{partition_key}}.jsonl",
                "sink": f"{{root}}/{name}/{{partition_key}}.jsonl",
                "batch_size": 64,
                "model": {
                    "name": name,
                    "model_type": request.params.model_type,
                    "backend": request.params.backend,
                },
                "ray_cluster": {},
                "storage": {"root": "data"},
            },
        )
