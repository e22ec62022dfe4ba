"""Options that can be changed for one materialisation, in the Launchpad."""

from collections.abc import Iterator, Mapping
from enum import Enum
from types import UnionType
from typing import Any, Literal, Optional, Union, get_args, get_origin

import dagster as dg
from pydantic import Field, ValidationError, create_model
from pydantic.fields import FieldInfo

from sheaf_dagster.batch.spec import BatchOptions, BatchSpec
from sheaf_dagster.errors import SpecError

__all__ = ["BatchConfig", "Engine", "run_config"]


class Engine(Enum):
    """What starts the workers on Ray."""

    auto = "auto"
    ray_data = "ray_data"
    ray_core = "ray_core"


def _bounds_of(field: FieldInfo) -> dict[str, Any]:
    """The bounds of a number; one that has none is above 0."""
    found = {
        name: value
        for rule in field.metadata
        for name in ("gt", "ge", "lt", "le")
        if (value := getattr(rule, name, None)) is not None
    }
    return found or {"gt": 0}


def _field_of(name: str, field: FieldInfo) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """A field of ``BatchOptions`` in the types that Dagster's config knows, and may leave out."""
    union = get_origin(field.annotation) in (Union, UnionType)
    kinds = get_args(field.annotation) if union else (field.annotation,)
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    for kind in kinds:
        values = get_args(kind)
        if get_origin(kind) is not Literal:
            rules = _bounds_of(field) if kind in (int, float) else {}
            yield name, (Optional[kind], Field(None, description=field.description, **rules))
        elif len(kinds) == 1:  # an enum, since Dagster's config knows no Literal
            enum = Enum(name, {value: value for value in values})  # type: ignore[misc]
            yield name, (Optional[enum], Field(None, description=field.description))
        else:
            for value in values:
                said = f"{name}: {value}, instead of a number."
                yield f"{value}_{name}", (Optional[bool], Field(None, description=said))


_AUTO = "auto_"

_ONLY = BatchSpec.model_fields["only"]

_Options = create_model(  # type: ignore[call-overload]
    "_Options",
    __base__=dg.Config,
    __module__=__name__,
    **{
        name: written
        for option, field in {**BatchOptions.model_fields, "only": _ONLY}.items()
        for name, written in _field_of(option, field)
    },
)


class BatchConfig(_Options):  # type: ignore[misc, valid-type]
    """Run config of a batch inference asset. Fields that are left out keep the asset's own values.

    It takes each field of ``BatchOptions``; write ``auto_batch_size: true`` for ``batch_size: auto``.
    It also takes ``only: failed``, which runs the rows that failed last time and keeps the other answers.
    """

    source: Optional[str] = Field(
        default=None,
        description="Template of another source to read instead, such as "
        '"{root}/inbox/{partition_key}.jsonl".',
    )

    def __init__(self, **values: Any) -> None:
        """Takes fields by name."""
        super().__init__(**values)

    def changes(self) -> dict[str, Any]:
        """The options and the source that this config sets."""
        changed = {
            name: value.value if isinstance(value, Enum) else value
            for name in type(self).model_fields
            if (value := getattr(self, name)) is not None
        }
        for name in [name for name in changed if name.startswith(_AUTO)]:
            if changed.pop(name):
                changed[name.removeprefix(_AUTO)] = "auto"
        return changed


def run_config(path: str, given: Mapping[str, Any]) -> BatchConfig:
    """The config of a run. Dagster has already checked the names and types of its fields.

    Args:
        path: Where the config is written, for errors.
        given: Its values.

    Raises:
        SpecError: A value can't work. The message says where the value is and what is allowed.
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
