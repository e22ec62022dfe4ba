"""What the UI shows of an asset that has never run."""

from __future__ import annotations

import dagster as dg
import pytest
from dagster_shared.libraries import DagsterLibraryRegistry

import sheaf_dagster as sd


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (None, ("`in/{partition_key}.jsonl`", "`out/{partition_key}.jsonl`", "`forecaster`")),
        ("Nightly.", ("Nightly.",)),
    ],
)
def test_an_asset_says_what_it_is(given, shown):
    asset = sd.build_batch_inference_asset(
        dg.AssetSpec("forecast", description=given),
        source="in/{partition_key}.jsonl",
        sink="out/{partition_key}.jsonl",
        model="forecaster",
        partitions_def=dg.DailyPartitionsDefinition("2026-01-01"),
    )

    description = asset.descriptions_by_key[dg.AssetKey("forecast")]

    assert all(text in description for text in shown)
    assert given in (None, description)


def test_a_code_location_lists_the_library():
    assert DagsterLibraryRegistry.get()["sheaf_dagster"] == sd.__version__
