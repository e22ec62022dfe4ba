"""Requests → forecasts → accuracy, a partition a day; a plot of each month; and an inbox."""

import json
from datetime import date
from pathlib import Path

import dagster as dg

import sheaf_dagster as sd
from example_project.accuracy import read_responses, score
from example_project.digits import DIGIT_ASSETS, DIGIT_CHECKS, DIGIT_RESOURCES
from example_project.inbox import build_inbox
from example_project.pages import PAGE_ASSETS, PAGE_CHECKS, PAGE_RESOURCES
from example_project.root import ROOT
from example_project.series import HORIZON, load_series

GROUP = "flights"
# From the first day with a full history to the last one with a week of actuals after it.
days = dg.DailyPartitionsDefinition("2013-03-01", end_date="2013-12-26")
months = dg.MonthlyPartitionsDefinition("2013-03-01", end_date="2013-12-01")
one_run = dg.BackfillPolicy.single_run()


@dg.asset(partitions_def=days, backfill_policy=one_run, group_name=GROUP, kinds={"jsonl"})
def forecast_requests(context: dg.AssetExecutionContext) -> None:
    """One request a route: the last eight weeks of its daily minutes in the air."""
    series = load_series()
    folder = ROOT / "requests"
    folder.mkdir(parents=True, exist_ok=True)
    for key in context.partition_keys:
        lines = [json.dumps(request) for request in series.requests(date.fromisoformat(key))]
        temporary = folder / f".{key}.tmp"
        temporary.write_text("\n".join(lines) + "\n")
        temporary.replace(folder / f"{key}.jsonl")
        context.add_asset_metadata(
            {"dagster/partition_row_count": len(lines)},
            asset_key=context.asset_key,
            partition_key=key,
        )


def what_happened(partition: str | None, request: dict) -> list[float | None]:
    """The minutes in the air of a request's route in the week that was forecast, for the plot."""
    series = load_series()
    ahead = series.ahead(date.fromisoformat(str(partition)), HORIZON)
    return ahead[series.routes.index(request["model_name"])]


forecasts = sd.build_batch_inference_asset(
    dg.AssetSpec(
        "forecasts",
        group_name=GROUP,
        description="Minutes in the air on each route for the next seven days, with an 80 % interval.",
    ),
    deps=[forecast_requests],
    source="{root}/requests/{partition_key}.jsonl",
    sink="{root}/forecasts/{partition_key}.jsonl",
    partitions_def=days,
    batch_size=64,
    report=sd.ReportOptions(
        actuals=what_happened,
        forecast_start=lambda partition, _: date.fromisoformat(str(partition)),
        unit="minutes",
    ),
)


@dg.asset(
    deps=[forecasts, "weekly_naive"],
    partitions_def=days,
    backfill_policy=one_run,
    group_name=GROUP,
    kinds={"json"},
)
def forecast_accuracy(context: dg.AssetExecutionContext) -> None:
    """Both assets' errors against what happened."""
    series = load_series()
    folder = ROOT / "accuracy"
    folder.mkdir(parents=True, exist_ok=True)
    for key in context.partition_keys:
        actuals = series.ahead(date.fromisoformat(key), HORIZON)
        found: dict[str, float] = {}
        for prefix, asset in (("", "forecasts"), ("naive_", "weekly_naive")):
            responses = read_responses(ROOT / asset / f"{key}.jsonl")
            found |= score(responses, actuals).to_dict(prefix)
        (folder / f"{key}.json").write_text(json.dumps(found))
        context.add_asset_metadata(
            {name: round(value, 4) for name, value in found.items()},
            asset_key=context.asset_key,
            partition_key=key,
        )


@dg.asset(
    deps=[forecast_accuracy],
    partitions_def=months,
    backfill_policy=one_run,
    group_name=GROUP,
    kinds={"svg"},
)
def monthly_accuracy(context: dg.AssetExecutionContext) -> None:
    """The daily errors of a month as a plot."""
    from sheaf_dagster.plots import line_chart

    for month in context.partition_keys:
        files = sorted((ROOT / "accuracy").glob(f"{month[:7]}-*.json"))
        scores = [json.loads(f.read_text()) for f in files]
        if not scores:
            raise dg.Failure(f"{month}: no day of it is scored yet; materialise forecast_accuracy")
        lines = {
            "AR(1)": [100 * s["wape"] for s in scores],
            "last week again": [100 * s["naive_wape"] for s in scores],
        }
        means = {name: sum(s[name] for s in scores) / len(scores) for name in scores[0]}
        context.add_asset_metadata(
            {
                "days": len(scores),
                **{name: round(mean, 4) for name, mean in means.items()},
                "plot": dg.MetadataValue.md(
                    line_chart(lines, f"WAPE (%) by day, {month[:7]}", over=[f.stem for f in files])
                ),
            },
            asset_key=context.asset_key,
            partition_key=month,
        )


inbox_forecasts, inbox_sensor, inbox_storage = build_inbox(ROOT)

# Those of defs.yaml files, such as weekly_naive, join those of this module.
defs = dg.Definitions.merge(
    dg.load_from_defs_folder(path_within_project=Path(__file__).parent),
    dg.Definitions(
        assets=[
            forecast_requests,
            forecasts,
            forecast_accuracy,
            monthly_accuracy,
            *DIGIT_ASSETS,
            *PAGE_ASSETS,
            inbox_forecasts,
        ],
        sensors=[inbox_sensor],
        asset_checks=[*DIGIT_CHECKS, *PAGE_CHECKS],
        resources={
            "model": sd.ModelResource(
                name="air-times-ar1",  # chosen by choose_model.py
                model_type="time_series",
                backend="statsforecast",
                backend_kwargs={"model": "ARIMA", "model_kwargs": {"order": [1, 0, 0]}},
            ),
            **DIGIT_RESOURCES,
            **PAGE_RESOURCES,
            "ray_cluster": sd.RayClusterResource(),
            "storage": sd.StorageResource(root=str(ROOT)),
            "inbox": inbox_storage,
        },
    ),
)
