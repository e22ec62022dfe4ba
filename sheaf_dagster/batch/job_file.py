"""A job as a YAML file: the model, what it runs over, and where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from sheaf_dagster.batch.model_spec import ModelSpec
from sheaf_dagster.batch.ray.cluster_config import ClusterConfig
from sheaf_dagster.batch.spec import BatchSpec
from sheaf_dagster.environment import from_environment
from sheaf_dagster.errors import SpecError

__all__ = ["JobFile"]


class JobFile(BaseModel):
    """The content of a job's YAML file.

    Example::

        model:
          name: forecaster
          model_type: time_series
          backend: chronos2
          backend_kwargs: {model_id: amazon/chronos-bolt-tiny}
        batch:
          source: s3://my-bucket/requests.jsonl
          sink: s3://my-bucket/forecasts.jsonl
          batch_size: 64

    Attributes:
        imports: Python modules to import first, because they register contracts or backends.
        model: The model.
        batch: The files: one, or a list of files that run as one job.
        cluster: The Ray cluster, and how much of it the job may take.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), hide_input_in_errors=True)

    imports: list[str] = Field(
        default_factory=list,
        description="Python modules to import first, such as those that register contracts.",
    )
    model: ModelSpec = Field(description="The model.")
    batch: Annotated[
        Annotated[BatchSpec, Tag("one")] | Annotated[list[BatchSpec], Tag("many")],
        # Told apart by what is written: errors of the form that isn't meant would only confuse.
        Discriminator(lambda value: "many" if isinstance(value, list) else "one"),
    ] = Field(description="What to run it over: one source and sink, or a list of them.")
    cluster: ClusterConfig = Field(
        default_factory=ClusterConfig, description="Which Ray, and how much of it."
    )

    @property
    def batches(self) -> list[BatchSpec]:
        """The files of the job."""
        return self.batch if isinstance(self.batch, list) else [self.batch]

    @classmethod
    def read(cls, path: str, changes: Mapping[str, str] | None = None) -> JobFile:
        """Reads a file. ``{env: NAME}`` in storage options is replaced by an environment variable.

        Args:
            path: The file.
            changes: Values that replace the file's, by dotted path, such as
                ``{"batch.batch_size": "128"}``. Each value is read as YAML.

        Raises:
            SpecError: The file can't be read, or some values can't work. The message gives each with its
                line.
        """
        try:
            with open(path, encoding="utf-8") as f:
                text = f.read()
        except (OSError, UnicodeDecodeError) as e:
            raise SpecError(f"{path} can't be read: {getattr(e, 'strerror', None) or e}") from e
        return cls.parse(text, path, changes)

    @classmethod
    def parse(cls, text: str, name: str, changes: Mapping[str, str] | None = None) -> JobFile:
        """As ``read``, from text; ``name`` stands for the file in messages."""
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
            data = yaml.safe_load(text)
        except yaml.YAMLError as e:
            raise SpecError(f"{name}: is not YAML: {' '.join(str(e).split())}") from e
        if not isinstance(data, dict):
            raise SpecError(f"{name}: must have 'model' and 'batch' at the top")
        for dotted, value in (changes or {}).items():
            _change(data, dotted, value)
        batches = data.get("batch")
        for batch in batches if isinstance(batches, list) else [batches]:
            if isinstance(batch, dict) and isinstance(batch.get("storage_options"), dict):
                batch["storage_options"] = from_environment(
                    f"{name}: storage_options", batch["storage_options"]
                )
        try:
            return cls.model_validate(data)
        except ValidationError as e:
            raise SpecError("\n".join(_problems(e, name, node))) from None


def _change(data: dict[str, Any], dotted: str, value: str) -> None:
    *folders, last = dotted.split(".")
    at: Any = data
    for folder in folders:
        if not isinstance(at, dict):
            break
        at = at.setdefault(folder, {})
    if not isinstance(at, dict):
        raise SpecError(f"{dotted!r} can't be set: {'.'.join(folders)} is not a mapping")
    try:
        at[last] = yaml.safe_load(value)
    except yaml.YAMLError as e:
        raise SpecError(f"{dotted}={value}: is not YAML: {' '.join(str(e).split())}") from e


def _problems(error: ValidationError, name: str, node: Any) -> list[str]:
    lines = []
    for problem in error.errors(include_url=False, include_input=False):
        loc = list(problem["loc"])
        if loc[0] == "batch":
            del loc[1:2]  # the tag
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = f"unknown field{_known(loc)}"
        line = _line_of(node, loc)
        dotted = ".".join(map(str, loc)) or "job"
        lines.append(f"{name}:{line}: {dotted}: {message}")
    return lines


def _known(loc: Sequence[Any]) -> str:
    places: dict[str, type[BaseModel]] = {
        "model": ModelSpec,
        "batch": BatchSpec,
        "cluster": ClusterConfig,
    }
    if len(loc) == 1:
        return f"; known: {', '.join(JobFile.model_fields)}"
    if loc[0] in places and all(isinstance(part, int) for part in loc[1:-1]):
        return f"; known: {_fields_of(places[loc[0]])}"
    return ""


def _line_of(node: Any, loc: Sequence[Any]) -> int:
    """Line of the deepest part of a path that the file has."""
    line = node.start_mark.line
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == str(part)), None)
            if found is None:
                break
            line, node = found[0].start_mark.line, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            if part >= len(node.value):
                break
            node = node.value[part]
            line = node.start_mark.line
        else:
            break
    return int(line) + 1


def _fields_of(model: type[BaseModel]) -> str:
    """Names of fields, those that are needed first."""
    fields = sorted(model.model_fields.items(), key=lambda field: not field[1].is_required())
    return ", ".join(name for name, _ in fields)
