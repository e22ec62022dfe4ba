"""Which file each partition is, before anything runs."""

from __future__ import annotations

import dagster as dg

import sheaf_dagster as sd
from sheaf_dagster.batch.committed import CommittedSink
from sheaf_dagster.definitions.history import EarlierMaterialization
from sheaf_dagster.definitions.metadata import FINGERPRINT, OUTPUT_BYTES
from sheaf_dagster.definitions.step_plan import StepPlan


def spec_of(key: str | None) -> sd.BatchSpec:
    if key == "refused":
        raise sd.SpecError("no file")
    return sd.BatchSpec(source="in", sink=f"out/{(key or '').replace('-', '')}")


def made(**metadata) -> EarlierMaterialization:
    event = dg.AssetMaterialization("a", metadata=metadata)
    return EarlierMaterialization(event, in_this_run=False)


def test_each_partition_is_a_file_or_an_error():
    plan = StepPlan.of(["a", "refused", "b", "a-"], spec_of, {})

    assert [(f.partition, f.spec.sink) for f in plan.files.values()] == [
        ("a", "out/a"),
        ("b", "out/b"),
    ]
    assert [spec.sink for spec in plan.specs] == list(plan.files)
    assert str(plan.errors["refused"]) == "no file"
    assert "partitions a and a- have the same sink, out/a" in str(plan.errors["a-"])
    assert sorted(k or "" for k in plan.keys) == ["a", "a-", "b", "refused"]


def test_what_an_earlier_run_committed_goes_with_its_file():
    whole, partial = made(**{FINGERPRINT: "abc", OUTPUT_BYTES: 7}), made()

    plan = StepPlan.of(["a", "b", "c"], spec_of, {"a": whole, "b": partial})

    assert [file.earlier for file in plan.files.values()] == [whole, partial, None]
    assert plan.committed == {"out/a": CommittedSink("abc", 7)}


def test_an_asset_without_partitions_is_one_file():
    plan = StepPlan.of([None], spec_of, {"": made(**{FINGERPRINT: "abc", OUTPUT_BYTES: 7})})
    assert [file.partition for file in plan.files.values()] == [None]
    assert list(plan.committed) == ["out/"]
