"""The page about a file: what it shows, that it needs nothing else, and that rows can't act in it."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser

import pytest

from sheaf_dagster.report import CheckLine, Page, render_page
from sheaf_dagster.report.figures import figures_of
from tests.drawn import sample

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> $$x$$ {{ 191*7 }} '\"`&"


class Seen(HTMLParser):
    """What a browser would find in a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._in = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._in = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._in = ""

    def handle_data(self, data):
        if self._in == "script":
            self.scripts[-1] += data
        elif self._in != "style":
            self.text += data


def page(pairs=None, rows=None, **fields) -> Page:
    shown = None if pairs is None else sample(pairs)
    count = len(pairs or ()) if rows is None else rows
    facts = {"backend": "a backend"}
    return Page("a title", "a model", count, facts, {"whole file": 1.5}, sample=shown, **fields)


def forecast(name: str, horizon: int = 3, **answer):
    request = {"model_name": name, "history": [1.0, 2.0, 3.0], "horizon": horizon}
    mean = [2.0] * horizon
    return request, {"mean": mean, "quantiles": {"0.1": mean, "0.9": mean}, **answer}


KINDS = {
    "forecasts": ([forecast(f"series {i}") for i in range(9)], ["Forecasts"]),
    "unknown forecasts": ([forecast("a", mean=[None] * 3, quantiles=None)], ["Forecasts"]),
    "embeddings": (
        [
            ({"texts": [f"{i}"], "kind": "ab"[i % 2]}, {"embeddings": [[i, i * i % 5, 1.0]]})
            for i in range(9)
        ],
        ["Embeddings"],
    ),
    "classes": (
        [({}, {"predictions": [HOSTILE[: i % 40]], "task": "classification"}) for i in range(99)],
        ["Distribution of classes"],
    ),
    "numbers": (
        [({}, {"predictions": [v], "task": "regression"}) for v in (1.0, -1.7e308, 1.7e308, None)],
        ["Distribution of prediction"],
    ),
    "own fields": (
        [({}, {"score": i, "verdict": "good" if i else "bad"}) for i in range(9)],
        ["Distribution of score", "Distribution of verdict"],
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_answer_has_plots_and_its_sizes(kind):
    pairs, headings = KINDS[kind]

    found = [*figures_of(sample(pairs))]

    assert [f.heading for f in found] == [*headings, "Distribution of bytes of an answer"]
    assert all(f.heading in render_page(page(pairs)) for f in found)


def test_a_page_loads_nothing_and_runs_its_own_scripts_alone():
    pairs, _ = KINDS["embeddings"]

    seen = Seen(render_page(page(pairs)))

    assert not {"link", "iframe", "object", "base"} & {tag for tag, _ in seen.tags}
    assert not [a for _, attrs in seen.tags for a in attrs if a in ("src", "href", "srcset")]
    said = [attrs.get("content") or "" for tag, attrs in seen.tags if tag == "meta"]
    policy = next(text for text in said if "default-src" in text)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert len(seen.scripts) == 3 == len(re.findall("sha256-", policy))


@pytest.mark.parametrize(
    "pairs",
    [
        [({"prompt": HOSTILE, HOSTILE: 1}, {"text": HOSTILE, HOSTILE: [HOSTILE]})] * 3,
        [forecast(HOSTILE) for _ in range(3)],
        [({"texts": [HOSTILE], "kind": HOSTILE + str(i % 2)}, {"embeddings": [[1.0, i]]}) for i in range(9)],
        [({}, {"label": HOSTILE + str(i)}) for i in range(3)],
        [({}, {"error": {"type": HOSTILE, "message": HOSTILE}})] * 2,
    ],
    ids=["words", "forecasts", "embeddings", "labels", "errors"],
)  # fmt: skip
def test_what_rows_say_is_text_and_nothing_else(pairs):
    seen = Seen(render_page(page(pairs)))

    assert len(seen.scripts) in (2, 3)
    assert "img" not in {tag for tag, _ in seen.tags}
    assert not [a for _, attrs in seen.tags for a in attrs if a.startswith("on")]
    assert not any("<script" in s.lower() and "alert(" in s for s in seen.scripts)
    assert "alert(1)" in seen.text
    assert "1337" not in seen.text


def test_a_page_shows_facts_checks_timings_and_rows_beside_answers():
    pairs = [
        ({"request_id": "r1", "prompt": "what?"}, {"prompt": "what?", "text": "that"}),
        ({"prompt": "who?"}, {"text": "cut", "metadata": {"deviations": ["truncated"]}}),
        ({"prompt": "why?"}, {"error": {"type": "ValueError", "message": "because"}}),
    ]
    checks = [CheckLine("no_row_failed", passed=False, what="1 of 3 rows failed")]

    text = render_page(page(pairs, checks=checks))

    seen = Seen(text).text
    for said in ("a title", "a backend", "1.50 s", "no_row_failed", "1 of 3 rows failed",
                 "what?", "that", "truncated", "because", "All rows."):  # fmt: skip
        assert said in seen
    assert text.count('class="failed marked"') == 1
    assert text.count('class=" marked"') == 1


def test_where_values_must_not_be_shown_the_page_has_numbers_alone():
    seen = Seen(render_page(page(None, rows=7)))

    assert "7 rows" in seen.text
    assert "shows no values of rows" in seen.text
    assert not [a for tag, a in seen.tags if tag == "input"]
    assert len(seen.scripts) == 1


def test_a_page_is_of_bounded_size_and_says_what_it_leaves_out():
    pairs = [({"prompt": "é" * 100_000}, {"text": ["w" * 50_000] * 9})] * 200

    text = render_page(page(pairs, rows=10**6))

    assert len(text.encode()) < 6_000_000
    assert "of 1,000,000 rows" in Seen(text).text


@pytest.mark.parametrize("value", [math.nan, 10**400, "\ud800", {"a": {"b": [None] * 9}}, b"x"])
def test_any_value_can_be_shown(value):
    assert "whole row" in render_page(page([({"v": value}, {"v": [value]})]))


def test_plots_that_cannot_be_drawn_cost_no_page(monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("no")

    monkeypatch.setattr("sheaf_dagster.report.page.figures_of", broken)

    text = render_page(page([({"prompt": "what?"}, {"text": "that"})]))

    assert "The plots could not be drawn: ZeroDivisionError: no" in Seen(text).text
    assert "what?" in Seen(text).text


def test_without_bokeh_a_page_says_how_to_get_plots(monkeypatch):
    monkeypatch.setattr("sheaf_dagster.report.page.importlib.util.find_spec", lambda name: None)

    assert "sheaf_dagster[html]" in render_page(page([({}, {"text": "that"})]))
