"""Tables as Dagster's own IO managers leave them, and ours as these take them."""

from __future__ import annotations

from decimal import Decimal

import dagster as dg
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from upath import UPath

import sheaf_dagster as sd
from sheaf_dagster.contracts import TimeSeriesResponse

DAYS = dg.DailyPartitionsDefinition("2026-01-01", end_date="2026-01-03")
FIRST, LAST = DAYS.get_partition_keys()

SALES = {
    "sku": ["shoe", "table", "lamp"],
    "sold": [[float(i + j) for i in range(28)] for j in range(3)],
    "price": [Decimal("1.10"), Decimal("2.20"), None],
    "shop": ["a", "b", "a"],
}


class ParquetIOManager(dg.UPathIOManager):
    """As Dagster's documentation has it."""

    extension = ".parquet"

    def dump_to_path(self, context: dg.OutputContext, obj: pd.DataFrame, path: UPath) -> None:
        with path.open("wb") as file:
            obj.to_parquet(file)

    def load_from_path(self, context: dg.InputContext, path: UPath) -> pd.DataFrame:
        with path.open("rb") as file:
            return pd.read_parquet(file)


class Repeater(sd.ModelBackend):
    """Forecasts that next week is as last week."""

    model_type = "time_series"

    def load(self):
        pass

    def predict(self, request):
        return TimeSeriesResponse(
            request_id=request.request_id,
            model_name=request.model_name,
            horizon=request.horizon,
            frequency=request.frequency,
            mean=request.history[-request.horizon :],
        )


def forecasts(source: str, **fields) -> dg.AssetsDefinition:
    return sd.build_batch_inference_asset(
        key="forecasts",
        deps=["sales"],
        source=source,
        sink="{root}/forecasts/{partition_key}.parquet",
        partitions_def=DAYS,
        report="html",
        batch=sd.BatchOptions(
            compute="local",
            columns={"model_name": "sku", "history": "sold"},
            fields={"horizon": 3, "frequency": "1d"},
            receipt=True,
            **fields,
        ),
    )


@dg.asset(partitions_def=DAYS)
def sales(context) -> pd.DataFrame:
    frame = pd.DataFrame(SALES).astype({"shop": "category"})
    return frame.set_index("sku", drop=False).rename_axis("item")


def run(tmp_path, *assets):
    storage = sd.StorageResource(root=str(tmp_path))
    resources = {
        "io_manager": ParquetIOManager(UPath(tmp_path)),
        "storage": storage,
        "ray_cluster": sd.RayClusterResource(),
        "model": sd.ModelResource(
            name="again", model_type="time_series", backend=f"{__name__}:Repeater"
        ),
    }
    return dg.materialize(list(assets), partition_key=FIRST, resources=resources)


def test_what_a_parquet_io_manager_wrote_is_taken_and_it_takes_the_answers(tmp_path):
    seen: list[pd.DataFrame] = []

    @dg.asset(partitions_def=DAYS)
    def shown(forecasts: pd.DataFrame) -> None:
        seen.append(forecasts)

    made = forecasts("{root}/sales/{partition_key}.parquet", keep=["price", "shop"])

    result = run(tmp_path, sales, made, shown)

    (frame,) = seen
    assert frame["model_name"].tolist() == SALES["sku"]
    assert [list(mean) for mean in frame["mean"]] == [row[-3:] for row in SALES["sold"]]
    assert frame["price"].tolist() == SALES["price"]
    assert frame["shop"].tolist() == SALES["shop"]
    (event,) = result.asset_materializations_for_node("forecasts")
    md = event.metadata
    assert md["dagster/partition_row_count"].value == 3
    columns = {c.name: c.type for c in md["dagster/column_schema"].value.columns}
    assert columns["mean"] == "list<element: double>"
    assert columns["price"].startswith("decimal128")
    assert "| request | response |" in md["preview"].value
    assert md["plot"].value.startswith("![")
    checks = result.get_asset_check_evaluations()
    assert {c.check_name for c in checks if c.passed} >= {"order_is_kept", "input_rows_are_valid"}
    sink = tmp_path / "forecasts" / f"{FIRST}.parquet"
    assert md["receipt"].value == f"{sink}.receipt.json"
    page = (sink.parent / f"{sink.name}.report.html").read_text("utf-8")
    assert f"<title>forecasts, {FIRST}" in page and "shoe" in page


def test_a_folder_that_is_partitioned_is_taken(tmp_path):
    @dg.asset(partitions_def=DAYS, name="sales")
    def folders(context) -> dg.MaterializeResult:
        table = pa.table({**SALES, "day": [context.partition_key] * 3})
        pq.write_to_dataset(table, tmp_path / "sales", partition_cols=["day", "shop"])
        return dg.MaterializeResult()

    made = forecasts("{root}/sales/day={partition_key}", keep=["shop"])

    run(tmp_path, folders, made)

    table = pq.read_table(tmp_path / "forecasts" / f"{FIRST}.parquet")
    assert table.column("model_name").to_pylist() == ["shoe", "lamp", "table"]
    assert table.column("shop").to_pylist() == ["a", "a", "b"]


def test_a_row_that_is_wrong_is_named_by_its_column(tmp_path):
    @dg.asset(partitions_def=DAYS, name="sales")
    def wrong() -> pd.DataFrame:
        return pd.DataFrame({**SALES, "sku": ["shoe", None, "lamp"]})

    with pytest.raises(dg.Failure, match=r"row 2, column 'sku'"):
        run(tmp_path, wrong, forecasts("{root}/sales/{partition_key}.parquet"))
    assert not (tmp_path / "forecasts" / f"{FIRST}.parquet").exists()
