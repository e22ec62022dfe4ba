"""Rows that share the key of which a contract wants each once."""

from __future__ import annotations

import random
from typing import ClassVar
from uuid import UUID

import orjson
import pytest
from pydantic import BaseModel

from sheaf_dagster.batch.rows import spill
from sheaf_dagster.batch.rows.fast import fast_codec
from sheaf_dagster.batch.rows.requests import RowContract
from sheaf_dagster.batch.rows.unique import (
    Duplicate,
    KeysOfChunk,
    SeenKeys,
    key_field,
    unique_key,
)
from sheaf_dagster.contracts import OpenAIBatchRequest, TimeSeriesRequest, contract_for


class Keyed(BaseModel):
    unique_key: ClassVar[str] = "name"
    name: str


def packed(rows: list[tuple[str, int]]) -> bytes:
    keys = KeysOfChunk()
    keys.add([line for _, line in rows], [name for name, _ in rows])
    return keys.packed()


@pytest.mark.parametrize("at_a_time", [2**16, 100, 1], ids=["together", "some", "each"])
@pytest.mark.parametrize("seed", range(3))
def test_each_later_row_is_paired_with_the_first_of_its_key(seed, at_a_time, monkeypatch):
    monkeypatch.setattr(spill, "_AT_A_TIME", at_a_time)
    monkeypatch.setattr(spill, "_IN_MEMORY", 1)
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
            seen.add(file, packed(rows))

    with seen:
        number, found = seen.duplicates()

    assert list(found) == wanted
    assert number == len(wanted)


def test_a_source_without_keys_has_no_duplicates():
    seen = SeenKeys()
    seen.add(0, b"")

    assert seen.duplicates()[0] == 0


def test_a_key_is_a_field_of_the_contract():
    class Other(BaseModel):
        name: str

    assert unique_key(Keyed) == key_field(Keyed) == "name"
    assert unique_key(Other) is key_field(Other) is None
    assert unique_key(TimeSeriesRequest) is None
    assert key_field(TimeSeriesRequest) == "request_id"
    assert key_field(OpenAIBatchRequest) == "custom_id"


def series(id: str | None, **fields: object) -> bytes:
    given = {} if id is None else {"request_id": id}
    row = {**given, "model_type": "time_series", "model_name": "m", "history": [1.0], "horizon": 1}
    return orjson.dumps({**row, "frequency": "1d", **fields}) + b"\n"


def test_a_row_that_is_read_the_short_way_has_the_key_of_one_that_is_read_the_long_way():
    contract, fast = RowContract.of(contract_for("time_series")), fast_codec(TimeSeriesRequest)
    id = "0f8fad5b-d9cb-469f-a165-70867728950e"
    short, long = series(id), series(id.upper(), unknown=1)

    found = [contract.validate(line, 7) for line in (short, long)]
    without = contract.validate(series(None) + series(None), 1)

    assert fast.fields(short)["request_id"] == UUID(id)
    assert fast.fields(long) is None
    assert found[0].keys == found[1].keys != b""
    assert without.keys == b""
    assert "request_id" not in fast.fields(series(None))
