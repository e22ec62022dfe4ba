"""A model: its backend, the backend's arguments, and the hardware that it needs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

__all__ = ["ModelSpec", "ResourceConfig", "Spec", "problems_of"]


class Spec(BaseModel):
    """Base of all specs: unknown fields are refused, and fields are validated when they are set."""

    model_config = ConfigDict(
        extra="forbid",
        protected_namespaces=(),
        validate_assignment=True,
        hide_input_in_errors=True,  # a refused spec would be quoted with its credentials
    )


class ResourceConfig(Spec):
    """What one worker of a model (one task or one actor) reserves on Ray."""

    num_cpus: float = Field(default=1.0, ge=0, description="CPUs that one worker reserves.")
    num_gpus: float = Field(
        default=0.0, ge=0, description="GPUs that one worker reserves. A fraction shares a GPU."
    )
    memory_gb: float | None = Field(
        default=None, gt=0, description="Memory that one worker reserves (GiB)."
    )
    custom: dict[str, float] = Field(
        default_factory=dict, description="Custom Ray resources that one worker reserves."
    )
    replicas: int = Field(
        default=1, ge=1, description="For sheaf-serve deployments only. Batch jobs ignore it."
    )

    @field_validator("num_gpus")
    @classmethod
    def _whole_above_one(cls, value: float) -> float:
        if value > 1 and value != int(value):
            raise ValueError(
                f"num_gpus={value:g}: a worker reserves a fraction of one GPU or a whole number of "
                "them"
            )
        return value

    @field_validator("custom")
    @classmethod
    def _custom_is_custom(cls, value: dict[str, float]) -> dict[str, float]:
        named = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory_gb"}
        for name, amount in value.items():
            if name in named:
                raise ValueError(f"custom: {name} is reserved by {named[name]}")
            if amount < 0:
                raise ValueError(f"custom: {name} must not be negative (got {amount:g})")
        return value


class ModelSpec(Spec):
    """A model: its backend, the backend's arguments, and the hardware that it needs.

    The fields match those of sheaf-serve 0.13's ``ModelSpec`` that say what to load.
    """

    name: str = Field(min_length=1, description="Name of the model, shown in metadata.")
    model_type: str = Field(
        description="Contract of the model's rows: a ModelType value or a registered name."
    )
    backend: str = Field(
        min_length=1, description='Registry name of the backend, or "pkg.module:Class".'
    )
    backend_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description='Arguments of the backend\'s constructor, as JSON values. Write {"env": NAME} for a '
        "value that each worker reads from its environment.",
    )
    resources: ResourceConfig = Field(
        default_factory=ResourceConfig, description="What one worker reserves."
    )

    @field_validator("model_type", mode="before")
    @classmethod
    def _plain_name(cls, value: Any) -> Any:
        return str(value) if isinstance(value, str) else value

    @field_validator("backend_kwargs")
    @classmethod
    def _kwargs_are_json(cls, value: dict[str, Any]) -> dict[str, Any]:
        try:
            json.dumps(value)
        except (TypeError, ValueError) as e:
            raise ValueError(f"backend_kwargs must hold JSON values only: {e}") from e
        return value

    def digest(self, tunables: Collection[str] = ()) -> str:
        """Hash of everything that decides the answers (hex, 64 digits).

        The name and the reserved resources don't change answers, so they don't count.

        Args:
            tunables: Names of the backend's arguments that don't change answers either.
        """
        identity = self.model_dump(mode="json", include={"model_type", "backend", "backend_kwargs"})
        for name in tunables:
            identity["backend_kwargs"].pop(name, None)
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def problems_of(error: ValidationError) -> str:
    """The problems of a spec, field by field, in one line."""
    return "; ".join(
        f"{'.'.join(map(str, x['loc'])) or 'spec'}: {x['msg'].removeprefix('Value error, ')}"
        for x in error.errors()
    )
