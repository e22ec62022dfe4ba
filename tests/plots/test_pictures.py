"""Every kind of answer has a picture, which shows what there is to see."""

from __future__ import annotations

import math
import random
import re
from datetime import date, datetime
from xml.etree import ElementTree

import pytest

from sheaf_dagster.plots import (
    MAX_INLINE_CHARS,
    MAX_PLOT_CHARS,
    ForecastAxes,
    line_chart,
    plot_of,
)
from sheaf_dagster.plots.svg import COLOURS, GREY, ticks
from tests.drawn import embedding, forecast, sample, svg_of, words

chance = random.Random(9)


def points_of(path: ElementTree.Element) -> list[tuple[float, float]]:
    """Where a path's pen stops."""
    points: list[tuple[float, float]] = []
    for command, arguments in re.findall(r"([MmlhVZ])([^A-Za-z]*)", path.get("d", "")):
        numbers = [float(n) for n in re.findall(r"-?[\d.]+", arguments)]
        if command in "Mml":
            x, y = points[-1] if command != "M" and points else (0.0, 0.0)
            points.append((round(x + numbers[0], 1), round(y + numbers[1], 1)))
    return points


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
