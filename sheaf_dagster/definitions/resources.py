"""Configurable resources: the model, the Ray cluster, the storage."""

# No postponed annotations here: Dagster reads those of nested resources as they are.
import os
from contextlib import suppress
from difflib import get_close_matches
from typing import Any

import dagster as dg
from pydantic import Field, PrivateAttr, ValidationError, field_validator

from sheaf_dagster.batch.model_spec import ModelSpec, ResourceConfig, problems_of
from sheaf_dagster.batch.ray.cluster_config import ClusterConfig, refuse_ray_client
from sheaf_dagster.definitions.config import Engine
from sheaf_dagster.definitions.credentials import merged, named_variables, s3_options
from sheaf_dagster.definitions.variables import refuse_variables
from sheaf_dagster.environment import from_environment
from sheaf_dagster.errors import SpecError
from sheaf_dagster.storage.options import literal_secrets

__all__ = ["ModelResource", "RayClusterResource", "StorageResource"]


class _Resource(dg.ConfigurableResource):
    # Dagster drops arguments that are no fields: a model with a typo in num_gpus would run on CPUs.
    def __init__(self, **data: Any) -> None:
        known = type(self).model_fields
        for name in data.keys() - known.keys():
            near = get_close_matches(name, known, n=1)
            raise SpecError(
                f"{type(self).__name__} has no field {name!r}; "
                + (f"did you mean {near[0]!r}? " if near else "")
                + f"Its fields: {', '.join(known)}"
            )
        for name, value in data.items():
            refuse_variables(type(self).__name__, name, known[name].annotation, value)
        super().__init__(**data)


class ModelResource(_Resource):
    """The model that an asset runs. Its fields are those of ``ModelSpec``."""

    name: str = Field(description="Name of the model, shown in metadata.")
    model_type: str = Field(
        description="Contract of the model's rows: time_series, embedding, tabular, or another registered "
        "name."
    )
    backend: str = Field(description='Registry name of the backend, or "pkg.module:Class".')
    backend_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="Arguments of the backend's constructor. Take secrets from environment variables with "
        "EnvVar; each worker reads the variables on its own machine.",
    )
    num_cpus: float = Field(default=1.0, description="CPUs that one task or actor reserves.")
    num_gpus: float = Field(
        default=0.0, description="GPUs that one task or actor reserves. A fraction shares a GPU."
    )
    memory_gb: float | None = Field(
        default=None, description="Memory that one task or actor reserves (GiB)."
    )
    custom_resources: dict[str, float] = Field(
        default_factory=dict, description="Custom Ray resources that one task or actor reserves."
    )

    @field_validator("backend_kwargs")
    @classmethod
    def _no_nulls(cls, value: dict[str, Any]) -> dict[str, Any]:
        nulls = [name for name, argument in value.items() if argument is None]
        if nulls:
            raise ValueError(
                f"backend_kwargs: {', '.join(nulls)} is None, which Dagster's config can't hold; "
                "leave it out"
            )
        return value

    @classmethod
    def from_spec(cls, spec: ModelSpec) -> "ModelResource":
        """The resource of a ``ModelSpec``."""
        return cls(
            name=spec.name,
            model_type=spec.model_type,
            backend=spec.backend,
            backend_kwargs=spec.backend_kwargs,
            num_cpus=spec.resources.num_cpus,
            num_gpus=spec.resources.num_gpus,
            memory_gb=spec.resources.memory_gb,
            custom_resources=spec.resources.custom,
        )

    def to_spec(self) -> ModelSpec:
        """The ``ModelSpec`` of this resource.

        The spec names an ``EnvVar`` of ``backend_kwargs`` (``{"env": NAME}``) and never holds its value,
        because a spec is shown in many places. Workers read the variables when they load the model.

        Raises:
            SpecError: A field can't work; the message names it.
        """
        try:
            return ModelSpec(
                name=self.name,
                model_type=self.model_type,
                backend=self.backend,
                backend_kwargs=named_variables(self.backend_kwargs),
                resources=ResourceConfig(
                    num_cpus=self.num_cpus,
                    num_gpus=self.num_gpus,
                    memory_gb=self.memory_gb,
                    custom=dict(self.custom_resources),
                ),
            )
        except ValidationError as e:
            raise SpecError(f"model {self.name!r}: {problems_of(e)}") from e


class RayClusterResource(_Resource):
    """The Ray cluster that assets run on, and how much of it one job may take."""

    address: str | None = Field(
        default=None,
        description='None: a local Ray for the run. "auto" or "host:port": a running cluster; the step '
        "then runs on one of its machines.",
    )
    connect_timeout_s: float = Field(
        default=30.0,
        gt=0,
        description="Seconds to try to reach the cluster. After that the step fails, and its retry policy "
        "may try again.",
    )
    gpu_limit: float | None = Field(
        default=None,
        ge=0,
        description="GPUs that one job may reserve. None: as many as the cluster has.",
    )
    shared_gpu_limit: float | None = Field(
        default=None,
        gt=0,
        description="GPUs that all jobs of this library on the cluster may reserve together, in any asset "
        "or run. A job that would exceed the limit waits for its turn, and its run's log "
        "names the jobs ahead of it. Needs an address. None: no such limit.",
    )
    cpu_limit: float | None = Field(
        default=None,
        gt=0,
        description="CPUs that one job may reserve. None: as many as the cluster has.",
    )
    autoscaling: bool = Field(
        default=False,
        description="Set this if the cluster grows on demand: a job asks for machines that aren't alive "
        "yet, and waits for them.",
    )
    wait_for_capacity_s: float = Field(
        default=600.0, ge=0, description="Seconds to wait for capacity that is busy or starting."
    )
    engine: Engine = Field(
        default=Engine.auto,
        description="What starts the workers. ray_data: Ray Data. ray_core: plain Ray, which starts "
        "sooner. auto: ray_core for less than 2 GiB of input on a cluster of fixed size, "
        "ray_data otherwise. The output is the same.",
    )
    dashboard: str | None = Field(
        default=None,
        description='Address of the cluster\'s dashboard, such as "http://head:8265". Assets with '
        'launch="ray_job" submit their steps to it.',
    )
    headers: dict[str, Any] = Field(
        default_factory=dict,
        repr=False,
        description="HTTP headers for requests to the dashboard, if a proxy stands in front of it. Take "
        "secrets from environment variables with EnvVar. Ray's own token needs no header: set "
        "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN.",
    )
    runtime_env: dict[str, Any] = Field(
        default_factory=dict,
        description='Ray runtime environment of steps with launch="ray_job". Put no secrets here: the '
        "dashboard shows all of it, env_vars included.",
    )

    @field_validator("address")
    @classmethod
    def _no_ray_client(cls, value: str | None) -> str | None:
        refuse_ray_client(value)
        return value

    def to_config(self) -> ClusterConfig:
        """The ``ClusterConfig`` of this resource.

        Raises:
            SpecError: The address is a ``ray://`` address. Ray Data can't run over those.
        """
        refuse_ray_client(self.address)  # an EnvVar has a value only now
        return ClusterConfig(
            address=self.address,
            connect_timeout_s=self.connect_timeout_s,
            gpu_limit=self.gpu_limit,
            shared_gpu_limit=self.shared_gpu_limit,
            cpu_limit=self.cpu_limit,
            autoscaling=self.autoscaling,
            wait_for_capacity_s=self.wait_for_capacity_s,
            engine=self.engine.value,
        )


class StorageResource(_Resource):
    """Where the files are, and the credentials for them.

    Credentials come from the environment (an instance profile, ``AWS_…`` variables, a profile), from
    ``s3``, or from ``storage_options``. Any value of ``storage_options`` may be an ``EnvVar``:

        StorageResource(
            root="s3://my-bucket/prefix",
            s3=S3Resource(
                endpoint_url="https://minio.example.com",
                aws_access_key_id=dg.EnvVar("S3_KEY"),
                aws_secret_access_key=dg.EnvVar("S3_SECRET"),
            ),
        )

    Credentials are read when a step runs. They are never shown.
    """

    root: str = Field(
        description='Folder or URI prefix that replaces "{root}" in templates: a path, '
        '"s3://bucket/prefix" …'
    )
    s3: dg.ResourceDependency[Any] = Field(
        default=None,  # type: ignore[arg-type]
        repr=False,
        description="An S3Resource of dagster-aws. Files on s3:// use its credentials, endpoint, region, "
        "profile and retries.",
    )
    storage_options: dict[str, Any] = Field(
        default_factory=dict,
        repr=False,
        description="Arguments of the fsspec file system (key, secret, endpoint_url …). They take "
        "precedence over those of s3. Take secrets from environment variables with EnvVar.",
    )

    _s3_itself: Any = PrivateAttr(default=None)
    _s3_as_given: Any = PrivateAttr(default=None)

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Finds the ``S3Resource`` behind ``s3`` if the project has it as a resource of its own."""
        # Dagster then hands us what it hands to ops: the boto3 client that the resource makes.
        originals = context.resources.original_resource_dict
        for key, original in originals.items():
            if self.s3 is not None and getattr(context.resources, key) is self.s3:
                self._s3_itself = original
        # As it was defined, environment variables not filled in yet.
        with suppress(dg.DagsterInvariantViolationError):  # initialised outside of a run
            nested = getattr(context.resource_def, "nested_resources", {})
            self._s3_as_given = nested.get("s3")

    @property
    def options(self) -> dict[str, Any]:
        """All arguments of the fsspec file system, environment variables filled in.

        Raises:
            SpecError: An environment variable is not set, or ``s3`` doesn't fit the root.
        """
        named = named_variables(self.storage_options)
        given = from_environment("storage: storage_options", named)
        return self._over_s3(given, self._s3_itself if self._s3_itself is not None else self.s3)

    @property
    def options_by_name(self) -> dict[str, Any]:
        """The same arguments for another machine: environment variables are named (``{"env": NAME}``).

        Raises:
            SpecError: A secret is written in plain text. Others could read it where the arguments are
                sent.
        """
        given = dict(self.storage_options)
        options: dict[str, Any] = named_variables(
            self._over_s3(given, self._s3_as_given or self.s3)
        )
        if secrets := literal_secrets(options):
            raise SpecError(
                f"storage: {', '.join(secrets)} would be sent to the cluster as plain text, which "
                "the "
                'dashboard shows. With launch="ray_job" give EnvVar("NAME") (the variable is '
                "read on the cluster), or leave them out and let the cluster's machines have access"
            )
        return options

    def _over_s3(self, given: dict[str, Any], resource: Any) -> dict[str, Any]:
        if resource is None:
            return given
        protocol = self.root.partition("://")[0] if "://" in self.root else "s3"
        if protocol not in ("s3", "s3a"):
            raise SpecError(f"storage: s3 was given, but the root is {self.root}; leave s3 out")
        return merged(s3_options(resource), given)

    @property
    def base(self) -> str:
        """The root without a trailing slash; local paths are absolute."""
        if "://" in self.root:
            return self.root.rstrip("/")
        return os.path.abspath(os.path.expanduser(self.root))
