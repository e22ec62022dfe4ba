"""From a partition key to a file."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping

import dagster as dg

from sheaf_dagster.errors import SpecError

__all__ = [
    "SINK_METADATA",
    "SOURCE_METADATA",
    "SOURCE_PARTITIONS_METADATA",
    "check_placeholders",
    "check_template",
    "partition_fields",
    "resolve",
]

SOURCE_METADATA = "sheaf_dagster/source"
"""Metadata of a batch inference asset: the template of its source."""

SINK_METADATA = "sheaf_dagster/sink"
"""Metadata of an asset: the template of the JSONL file that it is."""

SOURCE_PARTITIONS_METADATA = "sheaf_dagster/source_partitions"
"""Metadata of one whose source has partitions of its own: what they are."""

_UNSAFE = re.compile(r"[/\\\x00-\x1f\x7f-\x9f]")


def check_template(
    what: str,
    template: str,
    dimensions: list[str],
    *,
    partitioned: bool,
    shared: bool = False,
) -> None:
    """Refuses a path template that can't be filled in, or that is the same for several partitions.

    Args:
        what: Names it in messages.
        template: Such as ``"{root}/requests/{partition_key}.jsonl"``.
        dimensions: Names of a multi-dimensional partitions definition.
        partitioned: Whether there are partition keys.
        shared: Whether partitions that agree in one dimension may have the same file.

    Raises:
        SpecError: An unknown placeholder, or none that tells partitions apart.
    """
    used = check_placeholders(what, template, dimensions, partitioned=partitioned)
    if not partitioned or "partition_key" in used:
        return
    missing = [d for d in dimensions if d not in used]
    if not dimensions or (len(missing) == len(dimensions) if shared else missing):
        raise SpecError(
            f"{what} {template!r} is the same for "
            + (
                f"partitions that differ in {' and '.join(missing)} only; put "
                f"{' and '.join('{' + d + '}' for d in missing)} into it"
                if dimensions
                else "every partition; put {partition_key} into it"
            )
        )


def check_placeholders(
    what: str, template: str, dimensions: list[str], *, partitioned: bool
) -> list[str]:
    """Refuses a path template that can't be filled in; returns its placeholders.

    Arguments are those of ``check_template``.

    Raises:
        SpecError: It is no template, or a placeholder is unknown.
    """
    known = ["root", *(["partition_key", *dimensions] if partitioned else [])]
    try:
        used = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as e:
        raise SpecError(f"{what} {template!r} is not a valid template: {e}") from e
    for name in used:
        if name not in known:
            raise SpecError(
                f"{what} {template!r}: unknown placeholder {{{name}}}; known here: "
                + ", ".join(f"{{{k}}}" for k in known)
            )
    return used


def partition_fields(key: str | None) -> dict[str, str]:
    """What a partition key fills into a template.

    ``{partition_key}`` of a multi-dimensional key joins its dimensions with ``|``, in the order
    of their names; each dimension is there by its own name too.

    Raises:
        SpecError: The key could lead out of the storage root.
    """
    if key is None:
        return {}
    fields = {"partition_key": str(key)}
    if isinstance(key, dg.MultiPartitionKey):
        fields.update(key.keys_by_dimension)
    for name, value in fields.items():
        if (
            not value
            or value in (".", "..")
            or value.startswith("~")
            or value != value.strip()
            or _UNSAFE.search(value)
        ):
            raise SpecError(
                f"partition key {str(key)!r}: {name} can't be part of a file name; slashes, "
                "backslashes, control characters, '.', '..', a leading '~' and outer blanks are "
                "refused because they could lead out of the storage root"
            )
    return fields


def resolve(template: str, root: str, fields: Mapping[str, str]) -> str:
    """The file that a checked template names."""
    return template.format(root=root, **fields)
