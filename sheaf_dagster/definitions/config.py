"""What a person may change for one materialisation, in the Launchpad."""

from enum import Enum
from typing import Any, Optional

import dagster as dg
from pydantic import Field

__all__ = ["BatchConfig", "ComputeMode", "Engine", "ErrorPolicy"]


class ComputeMode(Enum):
    """Where batches run. An enum, since Dagster's config knows no Literal."""

    tasks = "tasks"
    actors = "actors"
    local = "local"


class ErrorPolicy(Enum):
    """What a failing row does."""

    fail = "fail"
    record = "record"


class Engine(Enum):
    """What starts the workers on Ray."""

    auto = "auto"
    ray_data = "ray_data"
    ray_core = "ray_core"


class BatchConfig(dg.Config):
    """Run config of a batch inference asset; what is left out stays as the asset was built."""

    batch_size: Optional[int] = Field(
        default=None, gt=0, description="Rows that one batch_predict call is given."
    )
    auto_batch_size: Optional[bool] = Field(
        default=None,
        description="Let each worker find the batch size with the best rows per second, in place "
        "of batch_size.",
    )
    compute: Optional[ComputeMode] = Field(
        default=None,
        description="tasks: elastic Ray tasks; actors: a pool of warm actors; local: this "
        "process, without Ray.",
    )
    num_actors: Optional[int] = Field(
        default=None, gt=0, description="Size of the actor pool, with compute: actors."
    )
    on_error: Optional[ErrorPolicy] = Field(
        default=None,
        description="fail: the first failing row ends the job; record: write it as an error row.",
    )
    batch_timeout: Optional[float] = Field(
        default=None, gt=0, description="Seconds that one batch_predict call may take."
    )
    row_limit: Optional[int] = Field(
        default=None, gt=0, description="Run the first rows only, to try things out."
    )
    resume: Optional[bool] = Field(
        default=None, description="Reuse the finished parts of a killed run."
    )

    source: Optional[str] = Field(
        default=None,
        description="Template of another source to read, such as "
        '"{root}/inbox/{partition_key}.jsonl".',
    )

    def changes(self) -> dict[str, Any]:
        """The BatchSpec fields that it sets."""
        changed = {
            name: value.value if isinstance(value, Enum) else value
            for name in type(self).model_fields
            if (value := getattr(self, name)) is not None
        }
        if changed.pop("auto_batch_size", False):
            changed["batch_size"] = "auto"
        return changed
