"""Assets whose files are Parquet: written with their types, read as what is asked for."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import dagster as dg
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import sheaf_dagster as sd
from sheaf_dagster.definitions.column_schema import answers_schema
from tests.definitions.rows import DAYS, failure, returning, row, run, taking
from tests.toys import NumberRequest

WHEN = dt.datetime(2026, 1, 5, 12)
TYPED = pa.table(
    {
        "at": pa.array([WHEN, None], pa.timestamp("us")),
        "price": pa.array([Decimal("1.10"), None], pa.decimal128(9, 2)),
        "narrow": pa.array([0.5, None], pa.float32()),
        "vector": pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32(), 2)),
        "kind": pa.array(["a", "b"]).dictionary_encode(),
    }
)


@pytest.mark.parametrize(
    "obj",
    [
        TYPED,
        TYPED.to_batches()[0],
        lambda _: dg.Output(iter([TYPED.slice(0, 1), TYPED.slice(1)])),
        pl.from_arrow(TYPED.drop_columns(["kind"])),
        pl.from_arrow(TYPED.drop_columns(["kind"])).lazy(),
        TYPED.to_pandas(types_mapper=pd.ArrowDtype),
    ],
    ids=["table", "batch", "tables", "polars", "polars query", "pandas"],
)
def test_a_table_keeps_its_types(obj, tmp_path):
    result = run(tmp_path, returning(obj), format="parquet")

    table = pq.read_table(tmp_path / "numbers.parquet")
    assert table.to_pylist() == TYPED.select(table.schema.names).to_pylist()
    for name in ("at", "price", "narrow"):
        assert table.schema.field(name).type == TYPED.schema.field(name).type
    (made,) = result.asset_materializations_for_node("numbers")
    schema = made.metadata["dagster/column_schema"].value
    assert [(c.name, c.type) for c in schema.columns] == [
        (f.name, str(f.type)) for f in table.schema
    ]
    assert made.metadata["dagster/row_count"].value == 2
    assert [p.name for p in tmp_path.iterdir()] == ["numbers.parquet"]


def test_rows_become_a_table_and_are_validated_on_the_way(tmp_path):
    rows = [NumberRequest(model_name="m", value=1.5), row(2, note="x")]
    run(tmp_path, returning(rows), format="parquet", model_type="number")
    table = pq.read_table(tmp_path / "numbers.parquet")
    assert table.column("value").to_pylist() == [1.5, 2.0]
    assert table.column("note").to_pylist() == [None, "x"]

    bad = pa.table({"model_name": ["m", "m"], "value": ["1", "x"]})
    said = failure(
        run(tmp_path, returning(bad), format="parquet", model_type="number", raise_on_error=False)
    )

    assert "1 of 2 rows are invalid" in said
    assert pq.read_table(tmp_path / "numbers.parquet").num_rows == 2


@pytest.mark.parametrize(
    "wanted",
    [pd.DataFrame, pl.DataFrame, pl.LazyFrame, pa.Table, list[dict], list[NumberRequest]],
    ids=str,
)
def test_days_of_tables_are_loaded_as_what_is_asked_for(tmp_path, wanted):
    seen: list = []
    days = DAYS.get_partition_keys()[:2]
    upstream = returning(
        lambda c: {
            day: pa.table({"model_name": ["m"], "value": [i + 0.5]}) for i, day in enumerate(days)
        },
        partitions_def=DAYS,
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    taker = taking(
        wanted, seen, partitions_def=DAYS, backfill_policy=dg.BackfillPolicy.single_run()
    )

    run(tmp_path, upstream, taker, keys=days, format="parquet")

    (loaded,) = seen
    if isinstance(loaded, list):
        values = [getattr(r, "value", None) or r["value"] for r in loaded]
    else:
        loaded = loaded.collect() if isinstance(loaded, pl.LazyFrame) else loaded
        column = loaded["value"]
        values = column.to_pylist() if isinstance(loaded, pa.Table) else column.to_list()
    assert values == [0.5, 1.5]


@pytest.mark.ray
def test_a_table_is_loaded_as_a_dataset_of_ray(tmp_path, ray_cluster):
    import ray.data

    seen: list = []
    table = pa.table({"value": [1.5, 2.5]})
    run(tmp_path, returning(table), taking(ray.data.Dataset, seen), format="parquet")
    assert [r["value"] for r in seen[0].take_all()] == [1.5, 2.5]


def test_a_model_asset_takes_a_table_and_leaves_one(tmp_path):
    seen: list = []
    rows = returning(
        pa.table({"model_name": ["m", "m"], "value": [1.0, 2.0]}),
        metadata={"sheaf_dagster/sink": "{root}/in.parquet"},
    )
    answers = sd.build_batch_inference_asset(
        key="answers",
        deps=[rows],
        source="{root}/in.parquet",
        sink="{root}/out.parquet",
        batch=sd.BatchOptions(compute="local", float_type="float32"),
    )

    @dg.asset
    def taker(answers: pd.DataFrame) -> None:
        seen.append(answers)

    result = run(tmp_path, rows, answers, taker)

    assert seen[0]["value"].tolist() == [2.0, 4.0]
    assert seen[0]["value"].dtype == "float32"
    (made,) = result.asset_materializations_for_node("answers")
    columns = {c.name: c.type for c in made.metadata["dagster/column_schema"].value.columns}
    assert columns["value"] == "float"
    assert "error_type" in columns
    assert "preview" in made.metadata
    checks = result.get_asset_check_evaluations()
    assert [c.check_name for c in checks if not c.passed] == []
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 2


@pytest.mark.parametrize(
    ("obj", "said"),
    [
        (
            pd.DataFrame({"a": [1, "x"]}),
            "the DataFrame can't be a Parquet file, which needs one type per column",
        ),
        ([{"a": 1}, {"a": "x"}], "field 'a' can't be a column of a Parquet file"),
        (pa.table([[1], [2]], names=["a", "a"]), "2 columns are named 'a'"),
    ],
    ids=["DataFrame", "rows", "two of one name"],
)
def test_what_cannot_be_a_table_says_why(obj, said, tmp_path):
    result = run(tmp_path, returning(obj), raise_on_error=False, format="parquet")
    assert said in failure(result)
    assert list(tmp_path.iterdir()) == []


def test_a_table_is_not_compressed_twice(tmp_path):
    with pytest.raises(dg.DagsterInvalidInvocationError, match="works only with format='jsonl'"):
        run(tmp_path, returning([]), format="parquet", compression="zst")


def test_lines_have_the_columns_of_their_contract_and_those_that_are_kept():
    spec = sd.BatchSpec(source="in.jsonl", sink="out.jsonl", keep=["sku"])
    columns = {c.name: c.type for c in answers_schema("number", spec).columns}
    assert (columns["value"], columns["sku"]) == ("double", "any")
    assert "error_type" not in columns


def test_numbers_of_four_bytes_need_a_table_when_the_definitions_load():
    with pytest.raises(sd.SpecError, match="float_type='float32' works only with a Parquet sink"):
        sd.build_batch_inference_asset(
            key="a",
            source="{root}/in.jsonl",
            sink="{root}/out.jsonl",
            batch=sd.BatchOptions(float_type="float32"),
        )
