"""What an asset's last materialisations took: what an estimate goes by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dagster as dg

from sheaf_dagster.batch.estimate import Past
from sheaf_dagster.definitions.metadata import ROW_COUNTS
from sheaf_dagster.errors import SpecError

__all__ = ["past_jobs"]

_LOOKED_AT = 10


def past_jobs(asset: str, instance: dg.DagsterInstance | None = None) -> list[Past]:
    """Of each of the last materialisations of an asset what it took, the newest first.

    What was resumed as a whole has no rate, and doesn't count.

    Args:
        asset: Key of the asset, its parts with slashes between them.
        instance: By default the one that ``DAGSTER_HOME`` names.

    Raises:
        SpecError: There is no instance.
    """
    if instance is None:
        try:
            instance = dg.DagsterInstance.get()
        except dg.DagsterError as e:
            raise SpecError(
                f"asset {asset}: there is no Dagster instance to read from; set DAGSTER_HOME to the "
                f"folder of the one that ran it ({' '.join(str(e).split())[:200]})"
            ) from e
    only = dg.AssetRecordsFilter(asset_key=dg.AssetKey.from_user_string(asset))
    found = []
    for record in instance.fetch_materializations(only, limit=_LOOKED_AT).records:
        made = record.asset_materialization
        past = _past({} if made is None else made.metadata)
        if past is not None:
            found.append(past)
    return found


def _past(metadata: Mapping[str, Any]) -> Past | None:
    def number(*names: str) -> float | None:
        values = (getattr(metadata.get(name), "value", None) for name in names)
        return next((v for v in values if isinstance(v, int | float)), None)

    def tokens(name: str) -> int | None:
        value = number(name)
        return None if value is None else int(value)

    rows, rate = number(*ROW_COUNTS), number("rows_per_second")
    if not rows or not rate:
        return None
    return Past(
        int(rows),
        rate,
        number("load_seconds") or 0.0,
        tokens("prompt_tokens"),
        tokens("completion_tokens"),
    )
