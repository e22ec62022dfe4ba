"""Which partitions there are at the moment, for many keys at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import dagster as dg

__all__ = ["PartitionKeys"]


class PartitionKeys:
    """The keys of a definition in an instance; dynamic sets are looked up once."""

    def __init__(
        self, partitions_def: dg.PartitionsDefinition | None, instance: dg.DagsterInstance
    ) -> None:
        self._definition = partitions_def
        self._instance = instance
        self._dynamic: dict[str, list[str]] = {}

    def can_run(self, key: str | None) -> bool:
        """Whether there is such a partition, or will be once dynamic keys are added."""
        for definition, value in self._parts(key):
            if _set_name(definition) is not None:
                continue
            try:
                if not definition.has_partition_key(value):
                    return False
            except Exception:  # a time window's parser met something that it can't hold
                return False
        return True

    def additions(self, keys: Iterable[str | None]) -> list[dg.AddDynamicPartitionsRequest]:
        """What has to be added to dynamic sets so that partitions exist, in their order."""
        missing: dict[str, dict[str, None]] = {}
        have: dict[str, set[str]] = {}
        makers: dict[str, dg.DynamicPartitionsDefinition] = {}
        for key in keys:
            for definition, value in self._parts(key):
                name = _set_name(definition)
                if name is None:
                    continue
                if name not in have:
                    have[name] = set(self._keys_of(name))
                if value not in have[name]:
                    missing.setdefault(name, {})[value] = None
                    makers[name] = definition  # type: ignore[assignment]
        return [makers[name].build_add_request(list(values)) for name, values in missing.items()]

    def order(self) -> dict[str, int]:
        """Position of each key, by which Dagster fills in a range; for one dimension."""
        assert self._definition is not None
        name = _set_name(self._definition)
        keys = self._definition.get_partition_keys() if name is None else self._keys_of(name)
        return {key: i for i, key in enumerate(keys)}

    def _keys_of(self, name: str) -> list[str]:
        if name not in self._dynamic:
            self._dynamic[name] = list(self._instance.get_dynamic_partitions(name))
        return self._dynamic[name]

    def _parts(self, key: str | None) -> Iterator[tuple[dg.PartitionsDefinition, str]]:
        if key is None or self._definition is None:
            return
        if isinstance(self._definition, dg.MultiPartitionsDefinition):
            assert isinstance(key, dg.MultiPartitionKey)
            for dimension in self._definition.partitions_defs:
                yield dimension.partitions_def, key.keys_by_dimension[dimension.name]
        else:
            yield self._definition, key


def _set_name(definition: dg.PartitionsDefinition) -> str | None:
    return definition.name if isinstance(definition, dg.DynamicPartitionsDefinition) else None
