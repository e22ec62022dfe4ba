"""Environment variables as fields of a resource, where Dagster can't fill them in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum
from types import UnionType
from typing import Any, Union, get_args, get_origin

import dagster as dg

from sheaf_dagster.errors import SpecError

__all__ = ["refuse_variables"]

_IntEnvVar = type(dg.EnvVar.int(""))
_READ = {
    float: 'float(os.environ["{}"])',
    bool: 'os.environ["{}"] == "true"',
    dict: 'json.loads(os.environ["{}"])',
}


def refuse_variables(resource: str, name: str, annotation: Any, value: Any) -> None:
    """Refuses an ``EnvVar`` as a field that is not text, or an ``EnvVar.int`` inside one.

    When a run begins Dagster fills in those of text and whole numbers, and none of our fields is a
    whole number. Inside a free dictionary we fill them in ourselves, as text.

    Raises:
        SpecError: With what to write instead.
    """
    if get_origin(annotation) in (Union, UnionType):  # … | None
        (annotation,) = (a for a in get_args(annotation) if a is not type(None))
    kind = get_origin(annotation) or annotation
    free = kind is dict and Any in get_args(annotation)
    for place, variable in _variables(name, value):
        named = variable.env_var_name if isinstance(variable, dg.EnvVar) else variable.name
        inside = place != name
        if isinstance(variable, dg.EnvVar) and (free if inside else kind in (str, Any)):
            continue
        if inside:
            read = f'int(os.environ["{named}"])' if free else f'float(os.environ["{named}"])'
        elif isinstance(kind, type) and issubclass(kind, Enum):
            read = f'os.environ["{named}"]'
        else:
            read = _READ.get(kind, 'os.environ["{}"]').format(named)
        raise SpecError(
            f"{resource}: {place} can't be an EnvVar ({named}), because Dagster fills those in as "
            f"text when a run begins; give {read}, which is read when the definitions are loaded"
        )


def _variables(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, (dg.EnvVar, _IntEnvVar)):
        yield place, value
    elif isinstance(value, Mapping):
        for name, below in value.items():
            yield from _variables(f"{place}.{name}", below)
    elif isinstance(value, (list, tuple)):
        for i, below in enumerate(value):
            yield from _variables(f"{place}[{i}]", below)
