"""Where rows of assets are stored, through real runs on disk and on S3."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from dagster_aws.s3 import S3Resource
from upath import UPath

import sheaf_dagster as sd
from tests.conftest import read_rows
from tests.definitions.rows import DAYS, failure, returning, row, run, taking
from tests.object_store import ObjectStore
from tests.toys import NumberRequest, NumberResponse

GRID = dg.MultiPartitionsDefinition(
    {
        "shop": dg.StaticPartitionsDefinition(["north", "south"]),
        "day": dg.StaticPartitionsDefinition(["mon", "tue"]),
    }
)


def test_one_run_over_many_days_writes_each_with_its_own_metadata(tmp_path):
    numbers = returning(
        lambda c: dg.Output((k, [row(i)] * (i + 1)) for i, k in enumerate(c.partition_keys)),
        partitions_def=DAYS,
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    days = DAYS.get_partition_keys()

    result = run(tmp_path, numbers, keys=days)

    counts = {
        m.partition: m.metadata["dagster/partition_row_count"].value
        for m in result.asset_materializations_for_node("numbers")
    }
    assert counts == {day: i + 1 for i, day in enumerate(days)}
    assert len(read_rows(tmp_path / "numbers" / f"{days[2]}.jsonl")) == 3


@pytest.mark.parametrize(
    ("obj", "message"),
    [
        (lambda c: {"2026-01-01": []}, "no rows of 3 of 4 partitions: 2026-01-02"),
        (lambda c: [row(1)], "must return a dictionary of rows by partition key"),
        (
            lambda c: {**dict.fromkeys(c.partition_keys, []), "x": []},
            "partition 'x' which is not one of the 4",
        ),
    ],
)
def test_one_run_over_many_days_must_name_each(obj, message, tmp_path):
    numbers = returning(obj, partitions_def=DAYS, backfill_policy=dg.BackfillPolicy.single_run())

    result = run(tmp_path, numbers, keys=DAYS.get_partition_keys(), raise_on_error=False)

    assert message in failure(result)


def test_dimensions_are_folders(tmp_path):
    seen: list = []
    numbers = returning(lambda c: [row(1)], partitions_def=GRID)
    taker = taking(list[NumberRequest], seen, partitions_def=GRID)

    run(tmp_path, numbers, taker, key=dg.MultiPartitionKey({"shop": "north", "day": "tue"}))

    assert (tmp_path / "numbers" / "tue" / "north.jsonl").is_file()
    assert seen[0][0].value == 1


def test_an_unsafe_key_writes_nothing(tmp_path):
    partitions = dg.StaticPartitionsDefinition(["a/../../b"])
    numbers = returning([row(1)], partitions_def=partitions)

    result = run(tmp_path / "root", numbers, key="a/../../b", raise_on_error=False)

    assert "can't be part of a file name" in failure(result)
    assert list(tmp_path.iterdir()) == []


def test_rows_through_the_model_into_typed_responses_and_a_table(tmp_path):
    responses, tables, any_type = [], [], []
    requests = returning(
        lambda c: [NumberRequest(model_name="m", value=v) for v in (1, 2)],
        partitions_def=DAYS,
        metadata={"sheaf_dagster/sink": "{root}/in-{partition_key}.jsonl"},
    )
    doubled = sd.build_batch_inference_asset(
        "doubled",
        deps=[requests],
        source="{root}/in-{partition_key}.jsonl",
        sink="{root}/out/{partition_key}/answers.jsonl.gz",
        partitions_def=DAYS,
        compute="local",
    )

    @dg.asset(partitions_def=DAYS)
    def typed(doubled: list[NumberResponse]) -> None:
        responses.extend(doubled)

    @dg.asset(partitions_def=DAYS)
    def framed(doubled: pd.DataFrame) -> None:
        tables.append(doubled)

    @dg.asset(partitions_def=DAYS)
    def streamed(doubled: sd.RowStream[sd.BaseResponse]) -> None:
        any_type.extend(doubled)

    result = run(tmp_path, requests, doubled, typed, framed, streamed, key="2026-01-03")
    alone = run(tmp_path, doubled.to_source_asset(), typed, key="2026-01-03")

    assert result.success
    assert alone.success
    assert [r.value for r in responses] == [2, 4, 2, 4]
    assert tables[0]["value"].tolist() == [2, 4]
    assert any_type == responses[:2]


def test_outputs_of_ops_have_a_file_a_run(tmp_path):
    seen: list = []

    @dg.op
    def make():
        return [{"a": 1}]

    @dg.op
    def take(rows: list[dict]):
        seen.extend(rows)
        return [*rows, *rows]

    @dg.graph_asset
    def numbers():
        return take(make())

    run(tmp_path, numbers)

    assert seen == [{"a": 1}]
    assert len(read_rows(tmp_path / "numbers.jsonl")) == 2


def storages(s3: ObjectStore) -> dict[str, dict[str, Any]]:
    root = s3.uri("data")
    resource = S3Resource(
        endpoint_url=s3.endpoint,
        region_name="us-east-1",
        aws_access_key_id=s3.key,
        aws_secret_access_key=s3.secret,
    )
    return {
        "resource": {"storage": sd.StorageResource(root=root, s3=resource)},
        "options": {"storage": sd.StorageResource(root=root, storage_options=s3.options())},
    }


@pytest.mark.s3
@pytest.mark.parametrize("kind", ["resource", "options"])
@pytest.mark.parametrize("compression", ["", "gz"])
def test_the_same_on_s3(kind, compression, s3):
    seen: list = []
    numbers = returning(
        lambda c: dg.Output(row(i, note="x" * 1000) for i in range(20_000)), partitions_def=DAYS
    )
    takers = [
        taking(a, seen, name=f"taker_{i}", partitions_def=DAYS)
        for i, a in enumerate((pd.DataFrame, pl.LazyFrame, pa.Table, list[NumberRequest], UPath))
    ]

    run("", numbers, *takers, key="2026-01-02", compression=compression, **storages(s3)[kind])

    suffix = f".{compression}" if compression else ""
    assert s3.names() == [f"data/numbers/2026-01-02.jsonl{suffix}"]
    frame, query, table, typed, path = seen
    assert frame["value"].tolist() == list(range(20_000))
    assert query.collect()["value"].to_list() == frame["value"].tolist()
    assert table.num_rows == len(typed) == 20_000
    assert path.read_bytes() == s3.get(s3.names()[0])
    assert not s3.uploads()


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.s3
def test_ray_datasets_go_out_and_come_in(ray_cluster, s3, tmp_path):
    import ray.data

    seen: list = []

    def dataset(_):
        return ray.data.from_items([{"value": i} for i in range(10)])

    def count(numbers: ray.data.Dataset) -> None:
        seen.append(numbers.sum("value"))

    count.__annotations__ = {"numbers": ray.data.Dataset, "return": None}

    run(tmp_path, returning(dataset), dg.asset(count), compression="gz")
    run("", returning(dataset), dg.asset(count), **storages(s3)["options"])

    assert seen == [45, 45]
