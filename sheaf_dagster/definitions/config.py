"""What a person may change for one materialisation, in the Launchpad."""

from collections.abc import Mapping
from enum import Enum
from typing import Any, Optional

import dagster as dg
from pydantic import Field, ValidationError

from sheaf_dagster.errors import SpecError

__all__ = ["BatchConfig", "ComputeMode", "Engine", "ErrorPolicy", "run_config"]


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


def run_config(path: str, given: Mapping[str, Any]) -> BatchConfig:
    """The config of a run, whose names and types Dagster has checked.

    Args:
        path: Where it stands, for errors.
        given: Its values.

    Raises:
        SpecError: A value can't work; the message says where it stands, and what can.
    """
    try:
        return BatchConfig(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as e:
        problems = (
            f"{path}.{'.'.join(map(str, x['loc']))}: {x['msg']} (got {x['input']!r})"
            for x in e.errors()
        )
        raise SpecError(
            f"{'; '.join(problems)}. Change it, or leave it out to run with the asset's own"
        ) from e
