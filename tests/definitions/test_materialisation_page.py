"""What the page of a materialisation shows: pictures, previews, links, checks."""

from __future__ import annotations

import base64
import json
import math
import random
import re
from datetime import date, datetime
from xml.etree import ElementTree

import dagster as dg
import pytest

import sheaf_dagster as sd
from sheaf_dagster.batch.rows.sample import OutputSample
from sheaf_dagster.definitions.links import file_metadata
from sheaf_dagster.definitions.metadata import _shown
from sheaf_dagster.definitions.preview import MAX_PREVIEW_CHARS, preview_inline, preview_table
from sheaf_dagster.plots import (
    MAX_INLINE_CHARS,
    MAX_PLOT_CHARS,
    ForecastAxes,
    line_chart,
    plot_of,
)
from sheaf_dagster.plots.svg import COLOURS, GREY, ticks
from tests.definitions.project import DAYS, KEY, Project

chance = random.Random(9)


def sample(pairs) -> OutputSample:
    sizes = [len(json.dumps(answer)) for _, answer in pairs]
    return OutputSample(pairs, in_order=True, compared=len(pairs), sizes=sizes)


def svg_of(markdown: str) -> ElementTree.Element:
    found = re.fullmatch(r"!\[[\w ]+\]\(data:image/svg\+xml;base64,(.*)\)", markdown)
    assert found, markdown[:100]
    return ElementTree.fromstring(base64.b64decode(found[1]))


def points_of(path: ElementTree.Element) -> list[tuple[float, float]]:
    """Where a path's pen stops."""
    points: list[tuple[float, float]] = []
    for command, arguments in re.findall(r"([MmlhVZ])([^A-Za-z]*)", path.get("d", "")):
        numbers = [float(n) for n in re.findall(r"-?[\d.]+", arguments)]
        if command in "Mml":
            x, y = points[-1] if command != "M" and points else (0.0, 0.0)
            points.append((round(x + numbers[0], 1), round(y + numbers[1], 1)))
    return points


def words(markdown: str) -> str:
    return " ".join(svg_of(markdown).itertext())


def forecast(history: int, horizon: int, **answer):
    request = {
        "model_name": "EWR <&> ATL",
        "history": [math.sin(t / 3) for t in range(history)],
        "horizon": horizon,
    }
    mean = [math.sin(t / 3) for t in range(horizon)]
    bands = {"0.1": [v - 1 for v in mean], "0.5": mean, "0.9": [v + 1 for v in mean]}
    return request, {"mean": mean, "quantiles": bands, **answer}


def embedding(texts: list[str], dim: int):
    vectors = [[chance.gauss(0, 1) for _ in range(dim)] for _ in texts]
    return {"texts": texts}, {"embeddings": vectors, "dim": dim}


KINDS = {
    "forecasts": [forecast(28, 7) for _ in range(200)],
    "long forecasts": [forecast(5000, 720) for _ in range(8)],
    "samples": [forecast(9, 3, quantiles=None, samples=[[1.0, 2.0, None]] * 5) for _ in range(2)],
    "forecasts without an end": [forecast(9, 3, mean=[None, None, None], quantiles=None)],
    "embeddings": [embedding([f"text number {i} " * 9], 768) for i in range(300)],
    "several inputs a row": [embedding(["a", "b", "c"], 4) for _ in range(5)],
    "equal embeddings": [({"texts": ["same"]}, {"embeddings": [[1.0, 2.0]]})] * 9,
    "classes": [({}, {"predictions": [i % 30], "task": "classification"}) for i in range(200)],
    "labels": [({}, {"label": "<a label>" * (1 + i % 2)}) for i in range(200)],
    "numbers": [({}, {"predictions": [i**2, None], "task": "regression"}) for i in range(200)],
    "texts": [({"prompt": "p"}, {"text": "t" * i}) for i in range(200)],
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_answer_has_a_picture_of_bounded_size(kind):
    plot = plot_of(sample(KINDS[kind]))

    assert plot is not None
    assert 0 < len(plot.small) <= MAX_INLINE_CHARS
    assert 0 < len(plot.large) <= MAX_PLOT_CHARS
    for picture in plot:
        assert svg_of(picture).tag.endswith("svg")


def test_a_forecast_is_drawn_from_where_its_history_ends_beside_what_happened():
    axes = ForecastAxes(actuals=lambda request: [0.5] * request["horizon"])

    plot = plot_of(sample([forecast(28, 7)]), axes)

    drawing = svg_of(plot.large)
    lines = [points_of(p) for p in drawing.iter() if p.get("stroke-width", "1") in "12"]
    history = next(line for line in lines if len(line) == 28)
    mean = next(line for line in lines if len(line) == 8)
    assert mean[0] == history[-1]
    happened = next(p for p in drawing.iter() if p.get("stroke-linecap") == "round")
    assert len(points_of(happened)) == 7
    assert len({y for _, y in points_of(happened)}) == 1
    for text in ("EWR <&> ATL", "history", "forecast", "quantiles 0.1 to 0.9", "what happened"):
        assert text in words(plot.large)


def test_what_did_not_happen_yet_is_not_drawn():
    asked = []

    plot = plot_of(
        sample([forecast(9, 3)]), ForecastAxes(actuals=lambda r: asked.append(r["horizon"]))
    )

    assert asked == [3]
    assert "what happened" not in words(plot.large)


def series(name: str, error: float, frequency: str = "1d"):
    request = {"model_name": name, "history": [10.0] * 28, "horizon": 7, "frequency": frequency}
    mean = [10.0 + error] * 7
    bands = {"0.1": [v - error for v in mean], "0.9": [v + error for v in mean]}
    return request, {"mean": mean, "quantiles": bands}


@pytest.mark.parametrize(
    ("axes", "by"),
    [(ForecastAxes(actuals=lambda _: [10.0] * 7), "error"), (ForecastAxes(), "widest band")],
)
def test_the_worst_and_the_median_series_are_shown_wherever_they_stand(axes, by):
    errors = {"a": 1, "b": 2, "worst one": 9, "c": 0.5, "median one": 3, "d": 4, "e": 5}
    plot = plot_of(sample([series(name, e) for name, e in errors.items()]), axes)

    factor = 1 if by == "error" else 2  # a band is twice as wide
    assert f"worst: worst one, {by} {0.9 * factor:.1%}" in words(plot.large)
    assert f"median: median one, {by} {0.3 * factor:.1%}" in words(plot.large)
    assert words(plot.small).startswith("worst: worst one")
    assert "best: c" in words(plot.large)


@pytest.mark.parametrize(
    ("frequency", "start", "shown"),
    [
        ("1d", date(2013, 7, 1), ("2013-06-03", "2013-07-01", "2013-07-07")),
        ("1h", date(2013, 7, 1), ("2013-06-29 20:00", "2013-07-01 00:00", "2013-07-01 06:00")),
        ("15min", datetime(2013, 7, 1, 12), ("2013-07-01 05:00", "2013-07-01 12:00")),
        ("1W", date(2013, 7, 1), ("2012-12-17", "2013-07-01", "2013-08-12")),
        ("1M", date(2013, 7, 1), ("2011-03", "2013-07", "2014-01")),
        ("1d", None, ("-28 days", "start of the forecast", "+6 days")),
        ("", date(2013, 7, 1), ("-28 steps", "+6 steps")),
    ],
)
def test_the_axis_of_time_shows_dates_where_they_are_known(frequency, start, shown):
    axes = ForecastAxes(start=lambda _: start, unit="minutes")

    said = list(svg_of(plot_of(sample([series("a", 1, frequency)]), axes).large).itertext())

    assert set(shown) <= set(said)
    assert "minutes" in said
    assert {"10", "11", "12"} & set(said), "round numbers on the other axis"


def test_ticks_are_round_numbers_within_the_range():
    for low, high in ((0, 1), (3.7, 211.4), (-0.02, 0.013), (9.99e5, 1.01e6), (1, 1)):
        found = ticks(low, high)
        assert 1 <= len(found) <= 3
        assert all(low - 1e-9 <= t <= high + 1e-9 for t in found)


def luminance(colour: str) -> float:
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


@pytest.mark.parametrize("colour", [*COLOURS, GREY])
@pytest.mark.parametrize("page", ["#ffffff", "#12161b"])
def test_colours_stand_out_on_a_white_and_on_a_dark_page(colour, page):
    lighter, darker = sorted((luminance(colour), luminance(page)), reverse=True)
    assert (lighter + 0.05) / (darker + 0.05) >= 3, "what WCAG asks of graphics"


def test_lines_are_told_apart_by_a_legend_over_dates():
    chart = line_chart({"AR(1)": [3.0, 4.0], "last week": [5.0, 6.0]}, "WAPE", ["May", "June"])
    assert {"AR(1)", "last week", "WAPE", "May", "June"} <= set(svg_of(chart).itertext())


@pytest.mark.parametrize("place", ["a field", "metadata"])
def test_the_map_of_embeddings_is_coloured_by_a_field_with_few_values(place):
    kinds = ["shoes", "lamps", "books"]
    rows = [({"image_uris": [f"s3://b/{i}.png"]}, kinds[i % 3], i) for i in range(30)]
    pairs = [
        (
            {**row, **({"kind": kind} if place == "a field" else {"metadata": {"kind": kind}})},
            {"embeddings": [[float(kind == k) + chance.gauss(0, 0.01) for k in kinds]]},
        )
        for row, kind, _ in rows
    ]

    plot = plot_of(sample(pairs))

    assert set(kinds) <= set(svg_of(plot.large).itertext())
    assert "30 embeddings of length 3, coloured by kind" in words(plot.large)
    clouds = [p for p in svg_of(plot.small).iter() if p.tag.endswith("path")]
    assert [len(points_of(cloud)) for cloud in clouds] == [10, 10, 10]
    assert len({cloud.get("stroke") for cloud in clouds}) == 3
    near = [line for line in svg_of(plot.large).itertext() if "›" in line]
    assert near
    for line in near:  # rows of a kind are three apart
        numbers = [int(n) for n in re.findall(r"(\d+)\.png", line)]
        assert len({n % 3 for n in numbers}) == 1, line


def test_the_map_of_embeddings_keeps_near_things_near_and_names_some():
    near = {"shoes": [1.0, 0.0, 0.0], "boots": [0.9, 0.1, 0.0], "lamps": [0.0, 0.0, 1.0]}
    pairs = [({"texts": [name]}, {"embeddings": [vector]}) for name, vector in near.items()]

    drawing = svg_of(plot_of(sample(pairs)).large)

    cloud = next(p for p in drawing.iter() if p.get("stroke-linecap") == "round")
    shoes, boots, lamps = points_of(cloud)
    assert math.dist(shoes, boots) < math.dist(shoes, lamps) / 4
    assert {"shoes", "boots", "lamps"} <= set(drawing.itertext())
    assert "3 embeddings of length 3" in drawing.itertext()


def test_classes_are_counted_the_most_frequent_first():
    pairs = [({}, {"predictions": [1, 1, 0], "task": "classification"})] * 5

    text = words(plot_of(sample(pairs)).small)

    assert text.split("  ")[0].startswith("1: 10 (67%)")
    assert "0: 5 (33%)" in text


def test_answers_of_your_own_kind_show_the_first_field_that_tells_them_apart():
    same = {"request_id": "r", "model_type": "meter", "model_name": "z", "unit": "kWh"}
    numbers = [({"site": i}, {**same, "site": i, "score": i / 10}) for i in range(30)]
    words_first = [(q, {**same, "verdict": "bad" if q["site"] else "ok", **a}) for q, a in numbers]

    assert "score: median 1.5, 30 in all" in words(plot_of(sample(numbers)).small)
    assert "bad: 29 (97%)" in words(plot_of(sample(words_first)).small)
    assert "bytes of an answer" in words(plot_of(sample([({}, same)] * 9)).small)


def test_error_rows_are_left_out_of_the_picture():
    pairs = [({}, {"error": {"type": "ValueError", "message": "no"}}), forecast(9, 3)]
    assert "EWR" in words(plot_of(sample(pairs)).small)
    assert plot_of(sample([])) is None


def test_the_preview_says_briefly_what_stands_in_long_rows():
    pairs = [
        ({"model_type": "embedding", "texts": [f"shoe {i}"], "images_b64": None}, answer)
        for i, (_, answer) in enumerate([embedding(["x"], 384)] * 30)
    ]
    pairs[0][1]["embeddings"][0][:4] = [0.123456, -1, 0.5, 2.0]

    inline, table = preview_inline(pairs), preview_table(pairs)

    assert len(inline) <= MAX_INLINE_CHARS
    assert len(table) <= MAX_PREVIEW_CHARS
    first = inline.splitlines()[2]
    assert first.startswith(r"| **texts** \[shoe 0\] | **embeddings** \[\[0.1235, -1, … 384\]\]")
    assert len(table.splitlines()) == 12
    assert "model" not in table


@pytest.mark.parametrize("size", [10, 10**5])
def test_rows_of_any_size_are_previewed_within_bounds_and_cannot_become_markup(size):
    hostile = "a | b\n| c | d |\n<img src=x onerror=alert(1)> [x](javascript:1) `code` **bold** "
    row = {f"field_{i}": hostile * (size // len(hostile) + 1) for i in range(9)}

    inline, table = preview_inline([(row, row)] * 20), preview_table([(row, row)] * 20)

    for text, bound in ((inline, MAX_INLINE_CHARS), (table, MAX_PREVIEW_CHARS)):
        assert 0 < len(text) <= bound
        assert all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in text.splitlines())
        assert not re.search(r"(?<!\\)[<`\[]", text)


def test_no_word_of_the_short_preview_is_too_wide_for_its_column():
    uri = "s3://a-bucket-of-pictures/2026/01/05/pictures/0001.png"
    row = {"image_uris": [uri], "a_field_with_a_name_of_many_letters": "x" * 500, "note": "a b"}

    shown, whole = preview_inline([(row, {"text": uri})]), preview_table([(row, {"text": uri})])

    words_shown = shown.replace("\\", "").replace("*", "").split()
    assert max(map(len, words_shown)) <= 22, "the words and the marks around them"
    assert "tures/0001.png" in shown
    assert f"**text** {uri}" in whole.replace("\\", "")


def test_fields_that_never_change_are_left_to_the_long_preview():
    pairs = [({"value": i, "horizon": 7}, {"mean": [i]}) for i in range(3)]
    assert "horizon" not in preview_inline(pairs)
    assert "horizon" in preview_table(pairs)
    assert "horizon" in preview_inline([({"horizon": 7}, {"mean": [1]})] * 3)


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


def evaluations(result) -> dict[str, dg.AssetCheckEvaluation]:
    return {
        e.event_specific_data.check_name: e.event_specific_data
        for e in result.all_events
        if e.event_type_value == "ASSET_CHECK_EVALUATION"
    }


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


def test_the_red_check_names_file_line_and_field_in_words_and_as_a_table(tmp_path):
    project = Project(tmp_path, DAYS)
    keys = DAYS.get_partition_keys()[:3]
    for key in keys:
        project.write(key, [1, "two", 3] if key == keys[1] else [1])

    result = project.run(keys[0], keys[-1])

    check = evaluations(result)["input_rows_are_valid"]
    assert not check.passed
    assert check.severity == dg.AssetCheckSeverity.ERROR
    assert check.description.startswith(f"{keys[1]}: ")
    assert "1 of 3 rows are invalid" in check.description
    assert "line 2, field 'value': Input should be a valid number" in check.description
    (record,) = check.metadata["violations"].value.records
    assert (record.data["partition"], record.data["line"]) == (keys[1], 2)
    assert record.data["field"] == "value"
    assert record.data["got"] == "'two'"
    assert check.metadata["files_checked"].value == 3
    assert evaluations(result)["order_is_kept"].description == "2 rows in 2 files"


def test_a_red_check_stands_at_its_day_where_one_asks_for_it(tmp_path):
    project = Project(tmp_path, DAYS, {"fail_on": 7}, on_error="record", checks_by_partition=True)
    keys = DAYS.get_partition_keys()[:4]
    for key, values in zip(keys, ([1], [1, "two"], [7], [1]), strict=True):
        project.write(key, values)

    def red(check: str) -> dict[str | None, bool]:
        known = project.instance.event_log_storage.get_asset_check_partition_info(
            [dg.AssetCheckKey(KEY, check)]
        )
        ended = [k for k in known if k.latest_execution_status.value != "PLANNED"]
        assert all(k.is_current for k in ended)
        return {k.partition_key: k.latest_execution_status.value == "FAILED" for k in ended}

    first = project.run(keys[0], keys[3], only=True)

    # The sum over the range stands at no day.
    assert evaluations(first)["input_rows_are_valid"].partition is None
    assert red("input_rows_are_valid") == {
        **dict.fromkeys((None, keys[1]), True),
        **dict.fromkeys((keys[0], keys[2], keys[3]), False),
    }
    assert red("no_row_failed") == {None: True, keys[0]: False, keys[2]: True, keys[3]: False}
    of_day = [e for e in first.get_asset_check_evaluations() if e.partition == keys[1]]
    (bad,) = of_day
    assert "line 2, field 'value': Input should be a valid number" in str(bad.description)

    project.write(keys[1], [1, 2])
    again = project.run(keys[0], keys[3], only=True, parent=first.run_id)

    assert project.logged(again.run_id) == [keys[1]]
    assert set(red("input_rows_are_valid").values()) == {False}
    assert red("no_row_failed") == {
        **dict.fromkeys((None, keys[2]), True),
        **dict.fromkeys((keys[0], keys[1], keys[3]), False),
    }

    project.write(keys[2], [2])
    project.run(key=keys[2], only=True)

    assert red("no_row_failed")[keys[2]] is False


def test_a_row_that_the_model_fails_on_is_named_by_its_check(tmp_path):
    project = Project(tmp_path, backend_kwargs={"fail_on": 2})
    project.write("all", [1, 2, 3])

    result = project.run()

    check = evaluations(result)["no_row_failed"]
    assert not check.passed
    assert "line 2" in check.description
    assert "cannot double 2" in check.description


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


@pytest.mark.parametrize(
    ("severity", "downstream_runs"),
    [(dg.AssetCheckSeverity.WARN, True), (dg.AssetCheckSeverity.ERROR, False)],
)
def test_severity_decides_whether_downstream_waits(tmp_path, severity, downstream_runs):
    project = Project(
        tmp_path,
        backend_kwargs={"fail_on": 2},
        on_error="record",
        check_severities={"no_row_failed": severity},
        retry_policy=dg.RetryPolicy(max_retries=1),
    )
    project.write("all", [1, 2, 3])

    result = project.run()

    assert evaluations(result)["no_row_failed"].severity == severity
    assert evaluations(result)["no_row_failed"].description == "1 of 3 rows failed"
    assert result.success == downstream_runs
    assert bool(project.downstream_ran) == downstream_runs
    assert len(project.records()) == 1, "the file is committed either way, and not run again"


def test_a_check_that_does_not_exist_has_no_severity(tmp_path):
    with pytest.raises(sd.SpecError, match="there is no check 'order'; known: input_rows_"):
        Project(tmp_path, check_severities={"order": dg.AssetCheckSeverity.WARN})


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
