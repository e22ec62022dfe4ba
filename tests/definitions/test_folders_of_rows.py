"""Upstream places that are folders: loaded as one table, and handed on as one file."""

from __future__ import annotations

import json
from pathlib import Path

import dagster as dg
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import sheaf_dagster as sd
from tests.conftest import read_rows
from tests.definitions.rows import DAYS, failure, returning, run, taking
from tests.toys import NumberRequest

VALUES = {2: [1.5], 10: [2.5, 3.5]}
"""By group: a folder each, in the order of their names 10 and 2."""

ROWS = [("m", 2.5, 10), ("m", 3.5, 10), ("m", 1.5, 2)]


def fill(folder: Path, suffix: str = "parquet") -> Path:
    """Writes a folder as Spark leaves it."""
    for group, values in VALUES.items():
        path = folder / f"group={group}" / f"part-0.{suffix}"
        path.parent.mkdir(parents=True)
        rows = [{"model_name": "m", "value": value} for value in values]
        if suffix == "parquet":
            narrow = pa.schema({"model_name": pa.string(), "value": pa.float32()})
            pq.write_table(pa.Table.from_pylist(rows, narrow), path)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (path.parent / "_SUCCESS").touch()
    return folder


def filling(place: str, suffix: str = "parquet", **fields) -> dg.AssetsDefinition:
    """The asset ``numbers``, which fills its folder itself; of a range those of two days."""

    def write(context):
        for day in context.partition_keys[:2] if context.has_partition_key_range else [""]:
            fill(Path(place.replace("{partition_key}", day)), suffix)
        return dg.MaterializeResult()

    return returning(write, metadata={"sheaf_dagster/sink": place}, **fields)


def tuples(loaded) -> list[tuple]:
    if isinstance(loaded, pl.LazyFrame):
        loaded = loaded.collect()
    if isinstance(loaded, (pl.DataFrame, pa.Table)):
        loaded = loaded.to_dicts() if isinstance(loaded, pl.DataFrame) else loaded.to_pylist()
    elif isinstance(loaded, pd.DataFrame):
        loaded = loaded.to_dict("records")
    rows = [r if isinstance(r, dict) else r.model_dump() for r in loaded]
    return [(r["model_name"], r["value"], r["group"]) for r in rows]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
@pytest.mark.parametrize(
    "wanted",
    [
        pd.DataFrame,
        pl.DataFrame,
        pl.LazyFrame,
        pa.Table,
        list[dict],
        list[NumberRequest],
        sd.RowStream[NumberRequest],
    ],
    ids=str,
)
def test_a_folder_is_loaded_as_one_table(wanted, suffix, tmp_path):
    seen: list = []
    run(tmp_path, filling(f"{tmp_path}/sales", suffix), taking(wanted, seen))
    assert tuples(seen[0]) == ROWS


@pytest.mark.ray
def test_a_folder_is_loaded_as_a_dataset_of_ray(tmp_path, ray_cluster):
    import ray.data

    seen: list = []
    place = tmp_path / "year=2026" / "sales"
    run(tmp_path, filling(str(place)), taking(ray.data.Dataset, seen))
    assert sorted(tuples(seen[0].take_all())) == sorted(ROWS)
    assert set(seen[0].columns()) == {"model_name", "value", "group"}


@pytest.mark.parametrize("wanted", [Path, str])
def test_a_folder_is_handed_on_by_its_path(wanted, tmp_path):
    seen: list = []
    run(tmp_path, filling(f"{tmp_path}/sales"), taking(wanted, seen))
    assert seen == [wanted(tmp_path / "sales")]


def test_days_of_folders_are_joined_without_those_that_are_missing(tmp_path):
    seen: list = []
    single = {"partitions_def": DAYS, "backfill_policy": dg.BackfillPolicy.single_run()}
    filled = filling(f"{tmp_path}/sales/day={{partition_key}}", **single)
    allow = dg.AssetIn(metadata={"allow_missing_partitions": True})
    taker = taking(pa.Table, seen, ins={"numbers": allow}, **single)

    run(tmp_path, filled, taker, keys=DAYS.get_partition_keys()[:3])

    assert tuples(seen[0]) == ROWS * 2


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_a_folder_that_an_asset_returns_becomes_one_file(suffix, tmp_path):
    folder = fill(tmp_path / "ready")

    run(tmp_path, returning(folder), format=suffix, model_type="number")

    if suffix == "jsonl":
        assert tuples(read_rows(tmp_path / "numbers.jsonl")) == ROWS
        return
    table = pq.read_table(tmp_path / "numbers.parquet")
    assert tuples(table) == ROWS
    assert table.schema.field("value").type == pa.float32(), "a table keeps its types"


def test_a_folder_without_rows_is_named(tmp_path):
    (tmp_path / "ready").mkdir()
    said = failure(run(tmp_path, returning(tmp_path / "ready"), raise_on_error=False))
    assert f"{tmp_path}/ready is a folder, and no .parquet or .jsonl file is in it" in said


@pytest.mark.s3
def test_a_folder_in_s3_is_loaded_as_one_table(s3):
    def write(context):
        for group, values in VALUES.items():
            file = pa.BufferOutputStream()
            pq.write_table(pa.table({"model_name": ["m"] * len(values), "value": values}), file)
            s3.put(f"data/sales/group={group}/part-0.parquet", file.getvalue().to_pybytes())
        return dg.MaterializeResult()

    seen: list = []
    filled = returning(write, metadata={"sheaf_dagster/sink": "{root}/sales"})
    storage = sd.StorageResource(root=s3.uri("data"), storage_options=s3.options())
    run("", filled, taking(pl.DataFrame, seen), storage=storage)

    assert tuples(seen[0]) == ROWS
