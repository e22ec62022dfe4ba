"""Rows that share the key of which a contract wants each once."""

from __future__ import annotations

import random
from typing import ClassVar

import pytest
from pydantic import BaseModel

from sheaf_dagster.batch.rows.unique import Duplicate, KeysOfChunk, SeenKeys, unique_key


class Keyed(BaseModel):
    unique_key: ClassVar[str] = "name"
    name: str


def packed(rows: list[tuple[str, int]]) -> bytes:
    keys = KeysOfChunk("name")
    for name, line in rows:
        keys.add(Keyed(name=name), line)
    return keys.packed()


@pytest.mark.parametrize("seed", range(5))
def test_each_later_row_is_paired_with_the_first_of_its_key(seed):
    rng = random.Random(seed)
    seen, first, wanted = SeenKeys(), {}, []
    for file in range(3):
        line = 1
        for _ in range(4):
            rows = []
            for _ in range(rng.randrange(0, 40)):
                name = f"row-{rng.randrange(0, 150)}"
                rows.append((name, line))
                if name in first:
                    wanted.append(Duplicate(file, line, *first[name]))
                first.setdefault(name, (file, line))
                line += rng.randrange(1, 3)
            seen.add(file, "name", packed(rows))

    number, found = seen.duplicates()

    assert list(found) == wanted
    assert number == len(wanted)


def test_a_source_without_keys_has_no_duplicates():
    seen = SeenKeys()
    seen.add(0, "", b"")

    assert seen.duplicates()[0] == 0


def test_a_key_is_a_field_of_the_contract():
    class Other(BaseModel):
        name: str

    assert unique_key(Keyed) == "name"
    assert unique_key(Other) is None
