"""Assets that return rows and take them, through real runs on disk and on S3."""

from __future__ import annotations

import dataclasses
import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import zstandard
from dagster_aws.s3 import S3Resource
from upath import UPath

import sheaf_dagster as sd
from tests.conftest import read_rows
from tests.object_store import KEY, SECRET, ObjectStore
from tests.toys import NumberRequest, NumberResponse, doubler

DAYS = dg.DailyPartitionsDefinition("2026-01-01", end_date="2026-01-05")
GRID = dg.MultiPartitionsDefinition(
    {
        "shop": dg.StaticPartitionsDefinition(["north", "south"]),
        "day": dg.StaticPartitionsDefinition(["mon", "tue"]),
    }
)
VALUES = [1.0, float("nan"), 3.5]


@dataclasses.dataclass
class Point:
    value: float


def row(value: float, **fields) -> dict[str, Any]:
    return {"model_type": "number", "model_name": "m", "value": value, **fields}


def run(
    root: Path | str, *assets, key: str | None = None, keys=None, raise_on_error=True, **manager
) -> dg.ExecuteInProcessResult:
    storage = manager.pop("storage", None) or sd.StorageResource(root=str(root))
    tags = {}
    if keys:
        tags = {
            "dagster/asset_partition_range_start": keys[0],
            "dagster/asset_partition_range_end": keys[-1],
        }
    with dg.DagsterInstance.ephemeral() as instance:
        return dg.materialize(
            list(assets),
            partition_key=key,
            tags=tags,
            instance=instance,
            resources={
                "io_manager": sd.JsonlIOManager(storage=storage, **manager),
                "storage": storage,
                "model": sd.ModelResource.from_spec(doubler()),
                "ray_cluster": sd.RayClusterResource(),
            },
            raise_on_error=raise_on_error,
        )


def returning(obj: Any, **fields) -> dg.AssetsDefinition:
    @dg.asset(name="numbers", **fields)
    def numbers(context):
        return obj(context) if callable(obj) else obj

    return numbers


def taking(annotation: Any, seen: list, **fields) -> dg.AssetsDefinition:
    def taker(numbers):
        seen.append(list(numbers) if isinstance(numbers, Iterator) else numbers)

    taker.__annotations__ = {"numbers": annotation, "return": None}
    return dg.asset(taker, **fields)


def failure(result: dg.ExecuteInProcessResult) -> str:
    (event,) = [e for e in result.all_events if e.event_type_value == "STEP_FAILURE"]
    error = event.step_failure_data.error
    return f"{error.message} {error.cause.message if error.cause else ''}"


@pytest.mark.parametrize(
    "obj",
    [
        pytest.param([{"value": v} for v in VALUES], id="dictionaries"),
        pytest.param([Point(v) for v in VALUES], id="dataclasses"),
        pytest.param(lambda _: dg.Output({"value": v} for v in VALUES), id="generator"),
        pytest.param(pd.DataFrame({"value": VALUES}), id="pandas"),
        pytest.param(pl.DataFrame({"value": VALUES}), id="polars"),
        pytest.param(pl.LazyFrame({"value": VALUES}), id="polars query"),
        pytest.param(pa.table({"value": VALUES}), id="arrow"),
        pytest.param(pa.record_batch({"value": VALUES}), id="arrow batch"),
        pytest.param(
            lambda _: iter([pd.DataFrame({"value": [v]}) for v in VALUES]), id="iterator of tables"
        ),
    ],
)
def test_whatever_holds_rows_becomes_the_same_file(obj, tmp_path):
    numbers = returning(obj)

    run(tmp_path, numbers)

    assert (tmp_path / "numbers.jsonl").read_bytes() == (
        b'{"value":1.0}\n{"value":null}\n{"value":3.5}\n'
    )
    assert [p.name for p in tmp_path.iterdir()] == ["numbers.jsonl"]


def test_cells_of_tables_become_json(tmp_path):
    table = pd.DataFrame(
        {
            "at": [pd.Timestamp("2026-01-01T12:00"), pd.NaT],
            "history": [[1, 2], [3.5, float("nan")]],
            "count": pd.array([1, None], dtype="Int64"),
            "nested": [{"a": {"b": {1}}}, None],
        }
    )

    run(tmp_path, returning(table))

    assert read_rows(tmp_path / "numbers.jsonl") == [
        {"at": "2026-01-01T12:00:00", "history": [1, 2], "count": 1, "nested": {"a": {"b": [1]}}},
        {"at": None, "history": [3.5, None], "count": None, "nested": None},
    ]


def test_requests_give_the_same_bytes_at_every_run(tmp_path):
    def requests(_):
        return [NumberRequest(model_name="m", value=v) for v in (1, 2)]

    run(tmp_path, returning(requests))
    first = (tmp_path / "numbers.jsonl").read_bytes()
    run(tmp_path, returning(requests))

    assert (tmp_path / "numbers.jsonl").read_bytes() == first
    assert read_rows(tmp_path / "numbers.jsonl")[0] == {**row(1.0), "group": 0, "note": None}


@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_a_ready_file_is_taken_over_and_compressed(compression, tmp_path):
    ready = tmp_path / "ready.jsonl"
    ready.write_bytes(b'\xef\xbb\xbf{"value":1}\r\n\n{"value":2}')
    seen: list = []

    run(tmp_path, returning(ready), taking(list[dict], seen), compression=compression)

    stored = (tmp_path / f"numbers.jsonl.{compression}").read_bytes()
    unpack = gzip.decompress if compression == "gz" else zstandard.ZstdDecompressor().decompress
    text = unpack(stored) if compression == "gz" else unpack(stored, max_output_size=100)
    assert text == b'{"value":1}\n{"value":2}\n'
    assert seen == [[{"value": 1}, {"value": 2}]]


ROWS = [
    {"id": "a", "mean": [1.0, 2.5], "quantiles": {"0.1": [0.5, None]}, "at": "2026-01-01"},
    {"id": "b", "mean": None, "quantiles": None, "at": "2026-01-02"},
]


@pytest.mark.parametrize("compression", ["", "zst"])
@pytest.mark.parametrize(
    ("annotation", "rows"),
    [
        (Any, lambda x: x),
        (list[dict[str, Any]], lambda x: x),
        (Iterator, lambda x: x),
        (sd.RowStream, lambda x: [*x] if list(x) == list(x) else None),
        (pd.DataFrame, lambda x: x.to_dict("records")),
        (pl.DataFrame, lambda x: x.to_dicts()),
        (pl.LazyFrame, lambda x: x.collect().to_dicts()),
        (
            pa.Table,
            lambda x: [{**r, "at": str(r["at"].date())} for r in x.to_pylist()],
        ),
        (UPath, lambda x: read_rows(x) if not str(x).endswith("zst") else ROWS),
        (str, lambda x: ROWS if x.endswith((".jsonl", ".jsonl.zst")) else None),
        (Path, lambda x: ROWS if x.is_file() else None),
        (pd.DataFrame | None, lambda x: x.to_dict("records")),
    ],
    ids=str,
)
def test_the_annotation_says_what_rows_are_loaded_as(annotation, rows, compression, tmp_path):
    seen: list = []

    run(tmp_path, returning(ROWS), taking(annotation, seen), compression=compression)

    assert rows(seen[0]) == ROWS


@pytest.mark.parametrize(
    ("annotation", "size"),
    [(list[dict], len), (pd.DataFrame, len), (pl.DataFrame, len), (pa.Table, len)],
    ids=str,
)
def test_an_empty_file_is_an_empty_table(annotation, size, tmp_path):
    seen: list = []

    run(tmp_path, returning([]), taking(annotation, seen))

    assert size(seen[0]) == 0


def test_days_are_joined_or_kept_apart_as_the_annotation_says(tmp_path):
    joined, apart, untyped, one = [], [], [], []
    numbers = returning(lambda c: [{"day": c.partition_key}], partitions_def=DAYS)
    daily = {"partitions_def": DAYS, "backfill_policy": dg.BackfillPolicy.single_run()}
    for key in DAYS.get_partition_keys():
        run(tmp_path, numbers, key=key)

    for annotation, seen in (
        (pl.DataFrame, joined),
        (dict[str, list[dict]], apart),
        (Any, untyped),
    ):
        run(tmp_path, numbers.to_source_asset(), taking(annotation, seen))
    run(
        tmp_path,
        numbers.to_source_asset(),
        taking(dict[str, list[dict]], one, **daily),
        key="2026-01-02",
    )

    days = DAYS.get_partition_keys()
    assert joined[0]["day"].to_list() == days
    assert apart[0] == untyped[0] == {day: [{"day": day}] for day in days}
    assert one[0] == {"2026-01-02": [{"day": "2026-01-02"}]}


def test_a_missing_day_is_an_error_or_passed_over(tmp_path):
    numbers = returning(lambda c: [{"day": c.partition_key}], partitions_def=DAYS)
    for key in DAYS.get_partition_keys()[:3]:
        run(tmp_path, numbers, key=key)
    seen: list = []

    def lenient(annotation):
        return taking(
            annotation,
            seen,
            ins={"numbers": dg.AssetIn(metadata={"allow_missing_partitions": True})},
        )

    strict = run(tmp_path, numbers.to_source_asset(), taking(list[dict], []), raise_on_error=False)
    for annotation in (list[dict], dict[str, list[dict]]):
        run(tmp_path, numbers.to_source_asset(), lenient(annotation))

    assert "2026-01-04.jsonl does not exist" in failure(strict)
    assert len(seen[0]) == len(seen[1]) == 3


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
        (lambda c: {**dict.fromkeys(c.partition_keys, []), "x": []}, "partition 'x' which this"),
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


@pytest.mark.parametrize(
    ("obj", "message"),
    [
        (None, "the asset returned a NoneType; return a list or iterator of rows"),
        ({"value": 1}, "the asset returned one row"),
        ("rows", "the asset returned a str"),
        ([{"a": 1}, {"a": object()}], "row 2: can't be written as JSON: a value is a object"),
        ([{"a": 1}, 3], "row 2: a int is no row"),
        ([[{"a": 1}]], "row 1: a list is no row"),
    ],
)
def test_what_is_no_row_is_named(obj, message, tmp_path):
    numbers = returning(obj)

    result = run(tmp_path, numbers, raise_on_error=False)

    assert message in failure(result)
    assert list(tmp_path.rglob("*")) == []


def test_invalid_rows_are_named_and_the_old_file_stays(tmp_path):
    run(tmp_path, returning([row(1)]))
    before = (tmp_path / "numbers.jsonl").read_bytes()
    bad = [row(1), row("x"), row(2, group="y"), {**row(3), "model_type": "time_series"}]
    numbers = returning(bad, metadata={"sheaf_dagster/model_type": "number"})

    result = run(tmp_path, numbers, raise_on_error=False)

    message = failure(result)
    assert "3 of 4 rows are invalid" in message
    assert "line 2, field 'value'" in message
    assert "line 3, field 'group'" in message
    assert "line 4, field 'model_type'" in message
    assert (tmp_path / "numbers.jsonl").read_bytes() == before


def test_a_generator_that_breaks_leaves_the_old_file(tmp_path):
    run(tmp_path, returning([row(1)]))

    def breaks(_):
        yield row(2)
        raise RuntimeError("the database went away")

    result = run(tmp_path, returning(lambda c: dg.Output(breaks(c))), raise_on_error=False)

    assert "the database went away" in failure(result)
    assert read_rows(tmp_path / "numbers.jsonl") == [row(1)]
    assert [p.name for p in tmp_path.iterdir()] == ["numbers.jsonl"]


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


def test_error_rows_are_no_responses(tmp_path):
    error = {"request_id": "x", "error": {"type": "ValueError", "message": "no"}}
    numbers = returning([error])

    result = run(tmp_path, numbers, taking(list[NumberResponse], []), raise_on_error=False)

    assert "1 of 1 rows are no NumberResponse" in failure(result)
    assert "load such files as list[dict]" in failure(result)


def test_an_annotation_that_no_view_serves_is_refused(tmp_path):
    numbers = returning([row(1)])

    result = run(tmp_path, numbers, taking(set, []), raise_on_error=False)

    assert "rows can't be loaded as" in failure(result)


def test_metadata_tell_rows_place_and_preview(tmp_path):
    numbers = returning([row(i) for i in range(9)])

    result = run(tmp_path, numbers, model_type="number")

    (event,) = result.asset_materializations_for_node("numbers")
    metadata = {k: v.value for k, v in event.metadata.items()}
    assert metadata["dagster/row_count"] == 9
    assert metadata["dagster/uri"] == metadata["path"] == str(tmp_path / "numbers.jsonl")
    assert metadata["output_bytes"] == (tmp_path / "numbers.jsonl").stat().st_size
    assert metadata["validation"] == "all 9 rows are valid number requests"
    assert metadata["preview"].count("**value**") == 5


@pytest.mark.parametrize("line", [b'{"request_id": "a", "error": {}}', b"[1]", b"{"])
def test_a_row_of_any_type_that_names_none_is_named(line, tmp_path):
    numbers = returning([row(1)])
    run(tmp_path, numbers)
    (tmp_path / "numbers.jsonl").write_bytes(line + b"\n")

    result = run(
        tmp_path,
        numbers.to_source_asset(),
        taking(list[sd.BaseResponse], []),
        raise_on_error=False,
    )

    assert "numbers.jsonl, line 1: is no" in failure(result)


def test_redaction_leaves_rows_out_of_the_preview_and_of_errors(tmp_path):
    good = run(tmp_path, returning([row(1, note="Ada")]), model_type="number", redact_rows=True)
    bad = run(
        tmp_path,
        returning([row("Ada")]),
        model_type="number",
        redact_rows=True,
        raise_on_error=False,
    )

    (event,) = good.asset_materializations_for_node("numbers")
    assert "preview" not in event.metadata
    assert "line 1, field 'value'" in failure(bad)
    assert "Ada" not in failure(bad)


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
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
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
