"""Materialisations that reuse answers: of the last output, or of the previous partition's."""

from __future__ import annotations

import json

import dagster as dg
import pytest

import sheaf_dagster as sd
from sheaf_dagster.definitions.places import Places
from sheaf_dagster.definitions.previous_partitions import previous_partition
from tests.definitions.project import DAYS, Project
from tests.toys import shaped

KEYS = DAYS.get_partition_keys()[:2]

REGIONS = dg.StaticPartitionsDefinition(["north", "south"])


def answers(project, key):
    lines = (project.root / "out" / f"{key}.jsonl").read_bytes().splitlines()
    return [json.loads(line)["value"] for line in lines]


def test_a_changed_partition_says_how_many_rows_changed(tmp_path):
    project = Project(tmp_path, DAYS, model=shaped("call"), reuse="previous")
    project.write(KEYS[0], [1, 2, 3, 4])
    assert project.run(KEYS[0], KEYS[0]).success
    first = project.records()[-1].asset_materialization.metadata
    project.write(KEYS[0], [4, 3, 9, 1, 2])

    again = project.run(KEYS[0], KEYS[0])

    assert again.success and answers(project, KEYS[0]) == [8, 6, 18, 2, 4]
    metadata = project.records()[-1].asset_materialization.metadata
    assert (metadata["reused_rows"].value, metadata["changed_rows"].value) == (4, 1)
    assert (first["reused_rows"].value, first["changed_rows"].value) == (0, 4)


def test_a_partition_reuses_the_answers_of_the_one_before(tmp_path):
    project = Project(
        tmp_path, DAYS, model=shaped("call"), reuse_from="{root}/out/{partition_key}.jsonl"
    )
    project.write(KEYS[0], [1, 2, 3])
    project.write(KEYS[1], [3, 2, 7])
    assert project.run(KEYS[0], KEYS[0]).success

    assert project.run(KEYS[1], KEYS[1]).success

    assert answers(project, KEYS[1]) == [6, 4, 14]
    assert project.records()[-1].asset_materialization.metadata["reused_rows"].value == 2


@pytest.mark.parametrize(
    ("partitions", "key", "before"),
    [
        (DAYS, "2026-01-03", "2026-01-02"),
        (DAYS, "2026-01-01", None),
        (dg.WeeklyPartitionsDefinition("2026-01-04"), "2026-01-18", "2026-01-11"),
        (REGIONS, "south", "north"),
        (REGIONS, "north", None),
        (dg.DynamicPartitionsDefinition(name="files"), "b", "a"),
        (
            dg.MultiPartitionsDefinition({"day": DAYS, "region": REGIONS}),
            dg.MultiPartitionKey({"day": "2026-01-03", "region": "south"}),
            dg.MultiPartitionKey({"day": "2026-01-02", "region": "south"}),
        ),
    ],
)
def test_which_partition_is_the_one_before(partitions, key, before):
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("files", ["a", "b"])

        assert previous_partition(key, partitions, instance) == before


BOTH = dg.MultiPartitionsDefinition({"day": DAYS, "region": REGIONS})


@pytest.mark.parametrize(
    ("partitions", "template", "said"),
    [
        (
            DAYS,
            "{root}/{day}.jsonl",
            r"unknown placeholder {day}; known here: {root}, {partition_k",
        ),
        (None, "{root}/{partition_key}.jsonl", r"unknown placeholder {partition_key}; known here"),
        (BOTH, "{root}/{days}.jsonl", r"unknown placeholder {days}; known .*{day}, {region}"),
        (DAYS, "{root}/{0}.jsonl", r"unknown placeholder {0}"),
        (DAYS, "{root}/{day.jsonl", "not a valid template"),
        (BOTH, "{root}/{day}/{region}.jsonl", None),
        (DAYS, "{root}/the one before all.jsonl", None),
        (None, "s3://bucket/earlier.jsonl", None),
    ],
)
def test_a_template_that_cannot_be_filled_in_is_refused_when_definitions_load(
    partitions, template, said
):
    key = "x" if partitions is None else "{partition_key}"

    def build():
        return sd.build_batch_inference_asset(
            "answers",
            source=f"{{root}}/in/{key}",
            sink=f"{{root}}/out/{key}",
            partitions_def=partitions,
            batch=sd.BatchOptions(reuse_from=template),
        )

    if said is None:
        build()
        return
    with pytest.raises(sd.SpecError, match=f"reuse_from .*{said}"):
        build()


def test_a_template_of_the_run_config_is_refused_by_the_run():
    places = Places("{root}/in/{partition_key}", "{root}/out/{partition_key}", DAYS)
    options = sd.BatchOptions(reuse_from="{root}/{day}.jsonl")

    with (
        dg.DagsterInstance.ephemeral() as instance,
        pytest.raises(sd.SpecError, match="reuse_from"),
    ):
        places.spec_of(KEYS[1], options, root="r", storage_options={}, instance=instance)
