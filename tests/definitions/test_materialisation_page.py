"""What the page of a materialisation shows: picture, preview, links and numbers."""

from __future__ import annotations

import dagster as dg
import pytest

import sheaf_dagster as sd
from sheaf_dagster.definitions.links import file_metadata
from sheaf_dagster.definitions.metadata import _shown
from tests.definitions.project import DAYS, Project, evaluations
from tests.drawn import words


@pytest.mark.parametrize(
    ("uri", "options", "link"),
    [
        ("/data/in.jsonl", {}, dg.MetadataValue.path("/data/in.jsonl")),
        ("https://a.example/in", {}, dg.MetadataValue.url("https://a.example/in")),
        (
            "s3://bucket/a b/in.jsonl",
            {},
            dg.MetadataValue.url(
                "https://console.aws.amazon.com/s3/object/bucket?prefix=a%20b/in.jsonl"
            ),
        ),
        (
            "s3://bucket/in.jsonl",
            {"endpoint_url": "http://minio:9000"},
            dg.MetadataValue.path("s3://bucket/in.jsonl"),
        ),
    ],
)
def test_the_source_is_a_link_where_its_store_has_a_page(uri, options, link):
    assert file_metadata(uri, options) == link


def test_a_materialisation_shows_picture_preview_links_and_numbers(tmp_path):
    project = Project(tmp_path, DAYS, deps=["requests"])
    key = DAYS.get_first_partition_key()
    project.write(key, [1, 2, 3])

    assert project.run(key=key).success

    md = project.records()[-1].asset_materialization.metadata
    assert list(md)[:2] == ["dagster/partition_row_count", "plot"]
    assert "value: median 4, 3 in all" in words(md["plot"].value)
    assert "plot_large" not in md, "it would be shown in place, too"
    assert "**value** 2" in md["preview"].value
    assert "**value** 4" in md["preview"].value
    assert md["source_asset"].value == dg.AssetKey("requests")
    assert md["source"].value.endswith(f"/in/{key}.jsonl")
    assert md["source_digest"].value.startswith("sha256:")
    assert md["validation"].value.startswith("all 3 rows valid, checked in ")
    numbers = {k for k, v in md.items() if isinstance(v.value, (int, float))}
    assert {"dagster/partition_row_count", "rows_per_second", "seconds"} <= numbers
    assert {"non_finite", "error_rows", "resumed_rows"} <= numbers
    # A wider word widens the table beyond its place, and the preview is cut off at the right.
    texts = {k: v.value for k, v in md.items() if isinstance(v, dg.TextMetadataValue)}
    assert {"model_digest", "model_version", "source_digest", "sheaf/fingerprint"} <= set(texts)
    del texts["dagster/uri"]  # has a place of its own
    longest = {name: max(map(len, text.split())) for name, text in texts.items()}
    assert max(longest.values()) <= 40, longest


def test_digests_are_shown_by_their_beginning():
    shown = _shown(f"sha256:{'a' * 20}{'b' * 44} and {'/folder' * 20}/weights.pt")

    assert max(map(len, shown.split())) == 40
    assert shown.startswith("sha256:aaa")
    assert shown.endswith("r/folder/weights.pt")


def test_rows_that_are_answered_otherwise_than_asked_are_marked_and_named(tmp_path):
    project = Project(tmp_path)
    project.defs.resources["model"] = sd.ModelResource(
        name="m", model_type="number", backend="tests.toys:Deviant"
    )
    values = [*range(3), -4, *range(5, 30), -200, *range(6)]
    project.write("all", values)

    result = project.run()

    assert result.success
    found = evaluations(result)
    fell_back, otherwise = found["no_row_fell_back"], found["every_row_is_answered_as_asked"]
    assert fell_back.description == "2 of 36 rows fell back (rows 4, 30)"
    assert otherwise.description == "1 of 36 rows truncated (row 30)"
    assert {fell_back.severity, otherwise.severity} == {dg.AssetCheckSeverity.WARN}
    md = project.records()[-1].asset_materialization.metadata
    assert (md["fell_back_rows"].value, md["truncated_rows"].value) == (2, 1)
    assert "| ⚠ row 4: fell back. **value** -8," in md["preview"].value
    *first, later = md["preview_rows"].value.splitlines()
    assert [i for i, line in enumerate(first) if "⚠" in line] == [5], "the fourth below the head"
    assert "⚠ row 30: fell back, truncated. **value** -400," in later


def test_the_event_log_says_how_many_partitions_are_done(tmp_path):
    project = Project(tmp_path, DAYS, progress_every_s=0)
    keys = DAYS.get_partition_keys()[:3]
    for key in keys:
        project.write(key, [1, 2])

    result = project.run(keys[0], keys[-1])

    log = [r.user_message for r in project.instance.all_logs(result.run_id)]
    assert any("4 of 4 rows known so far" in m and "2 of 3 partitions done" in m for m in log)


def test_a_picture_that_cannot_be_drawn_costs_no_materialisation(tmp_path, monkeypatch):
    def broken(*_):
        raise KeyError("no such route")

    monkeypatch.setattr("sheaf_dagster.definitions.metadata.plot_of", broken)
    project = Project(tmp_path)
    project.write("all", [1])

    assert project.run().success

    shown = project.records()[-1].asset_materialization.metadata["plot"].value
    assert shown == "could not be drawn: KeyError: 'no such route'"
