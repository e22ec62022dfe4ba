"""Plots that answer to the mouse, drawn by Bokeh; what they draw is what ``plots`` finds."""

from __future__ import annotations

import importlib.util
from calendar import timegm
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import date
from typing import Any, NamedTuple

from sheaf_dagster.errors import MissingDependencyError
from sheaf_dagster.plots import ForecastAxes
from sheaf_dagster.plots.counts import Distribution, distributions_of, predictions_of
from sheaf_dagster.plots.embeddings import EmbeddingMap, embeddings_of
from sheaf_dagster.plots.fans import Fan, Forecasts, forecasts_of
from sheaf_dagster.plots.plot import Pair, Sample
from sheaf_dagster.plots.svg import BLUE, COLOURS, GREY, RED, finite
from sheaf_dagster.report.brief import brief

__all__ = ["Figure", "figures_of", "require_bokeh"]

_HISTORY = 400
_BINS = 40
_CLASSES = 30
_DISTRIBUTIONS = 6
_NAME = 60
_TOOLS = "pan,wheel_zoom,box_zoom,reset,save"


class Figure(NamedTuple):
    """One plot with what stands above it.

    Attributes:
        heading: What it shows.
        note: How it is read; may be empty.
        model: Bokeh's own object.
    """

    heading: str
    note: str
    model: Any


def require_bokeh(what: str) -> None:
    """Raises MissingDependencyError where the library of these plots isn't installed.

    Args:
        what: The option that needs it.
    """
    if importlib.util.find_spec("bokeh") is None:
        raise MissingDependencyError(f"{what} needs bokeh; pip install 'sheaf_dagster[html]'")


def figures_of(sample: Sample, axes: ForecastAxes | None = None) -> Iterator[Figure]:
    """The plots that suit some answers; error rows are left out.

    Args:
        sample: The first rows.
        axes: Of forecasts: what happened, their dates, and the unit of their values.
    """
    pairs = [(q, a) for q, a in sample.pairs if not a.get("error")]
    if forecasts := forecasts_of(pairs, axes, _HISTORY):
        yield _forecasts(forecasts, axes.unit if axes else "")
    if cloud := embeddings_of(pairs):
        yield _embeddings(cloud)
    for found in _distributions(pairs, sample.sizes):
        yield _words(found) if found.counts else _numbers(found)


def _distributions(pairs: Sequence[Pair], sizes: Sequence[int]) -> Iterator[Distribution]:
    if found := predictions_of(pairs):
        yield found
    else:
        yield from [*distributions_of(pairs)][:_DISTRIBUTIONS]
    if sizes:
        yield Distribution("bytes of an answer", Counter(), [float(n) for n in sizes])


def _plain(text: Any, most: int = _NAME) -> str:
    """A name as Bokeh shows it: not as a formula, and short."""
    return brief(str(text), most).replace("$$", "$ $").replace("\\", "∖")


def _figure(height: int, tools: str = _TOOLS, **options: Any) -> Any:
    from bokeh.plotting import figure

    drawn = figure(
        height=height, sizing_mode="stretch_width", tools=tools, toolbar_location="right", **options
    )
    drawn.toolbar.logo = None
    drawn.toolbar.autohide = True
    drawn.grid.grid_line_alpha = 0.4
    return drawn


def _forecasts(forecasts: Forecasts, unit: str) -> Figure:
    from bokeh.layouts import gridplot

    drawn = [_fan(fan, forecasts.band, unit) for fan in forecasts.fans]
    grid = gridplot(
        drawn,
        ncols=1 if len(drawn) == 1 else 2,
        sizing_mode="stretch_width",
        toolbar_options={"logo": None},
    )
    return Figure("Forecasts", "Click a word of a legend to hide its line.", grid)


def _fan(fan: Fan, band: str, unit: str) -> Any:
    from bokeh.models import HoverTool

    now = len(fan.past)
    places = range(-now, len(fan.mean))
    dates = [fan.date_at(i) for i in places]
    dated = None not in dates
    x: list[Any] = [_milliseconds(at) for at in dates if at] if dated else [*places]
    words = [fan.time_at(i) for i in places]
    drawn = _figure(
        280, title=_plain(fan.title, 110) or None, x_axis_type="datetime" if dated else "auto"
    )
    drawn.yaxis.axis_label = _plain(unit) or None
    drawn.xaxis.axis_label = None if dated else "steps after the history"

    def line(start: int, values: Sequence[Any], name: str, colour: str, **style: Any) -> Any:
        ys = [v if finite(v) else float("nan") for v in values]
        data = {"x": x[start : start + len(ys)], "y": ys, "when": words[start : start + len(ys)]}
        return drawn.line("x", "y", source=_source(data), color=colour, legend_label=name, **style)

    if fan.lower:
        there = [
            i for i, v in enumerate(zip(fan.lower, fan.upper, strict=True)) if all(map(finite, v))
        ]
        data = {
            "x": [x[now + i] for i in there],
            "lower": [fan.lower[i] for i in there],
            "upper": [fan.upper[i] for i in there],
        }
        drawn.varea(
            "x", "lower", "upper", source=_source(data), color=BLUE, alpha=0.25, legend_label=band
        )
    shown = [
        line(0, fan.past, "history", GREY),
        line(now - 1, [fan.past[-1], *fan.mean], "forecast", BLUE, line_width=2),
    ]
    happened = [(now + i, v) for i, v in enumerate(fan.actual) if finite(v)]
    if happened:
        data = {
            "x": [x[i] for i, _ in happened],
            "y": [v for _, v in happened],
            "when": [words[i] for i, _ in happened],
        }
        shown.append(
            drawn.scatter(
                "x", "y", source=_source(data), color=RED, size=6, legend_label="what happened"
            )
        )
    drawn.add_tools(
        HoverTool(renderers=shown, tooltips=[("at", "@when"), ("value", "@y{0,0.####}")])
    )
    drawn.legend.click_policy = "hide"
    drawn.legend.orientation = "horizontal"
    drawn.legend.border_line_color = None
    drawn.legend.label_text_font_size = "10px"
    drawn.add_layout(drawn.legend[0], "below")
    return drawn


def _milliseconds(at: date) -> float:
    """A date or datetime as an axis of time counts, whatever zone a reader is in."""
    return timegm(at.timetuple()) * 1000.0


def _embeddings(cloud: EmbeddingMap) -> Figure:
    from bokeh.models import HoverTool

    drawn = _figure(420, match_aspect=True)
    values = cloud.values if cloud.field else [""] * len(cloud.points)
    ranked = sorted(set(values), key=lambda v: (-values.count(v), v))
    for value, colour in zip(ranked, COLOURS, strict=False):
        mine = [i for i, v in enumerate(values) if v == value]
        data = {
            "x": [cloud.points[i][0] for i in mine],
            "y": [cloud.points[i][1] for i in mine],
            "name": [brief(cloud.found[i].name, _NAME) for i in mine],
            "value": [brief(value, _NAME)] * len(mine),
        }
        label = {"legend_label": _plain(value)} if cloud.field else {}
        drawn.scatter("x", "y", source=_source(data), color=colour, size=7, alpha=0.8, **label)
    tips = [("row", "@name"), *([(_plain(cloud.field), "@value")] if cloud.field else [])]
    drawn.add_tools(HoverTool(tooltips=tips))
    if cloud.field:
        drawn.legend.click_policy = "hide"
        drawn.add_layout(drawn.legend[0], "left")
    by = f", coloured by {brief(cloud.field, _NAME)}" if cloud.field else ""
    return Figure(
        "Embeddings",
        f"{len(cloud.points):,} vectors of length {len(cloud.found[0].vector):,} by their two "
        f"principal components, which keep {cloud.share:.0%} of the variance{by}.",
        drawn,
    )


def _words(found: Distribution) -> Figure:
    from bokeh.models import HoverTool

    shown = found.counts.most_common(_CLASSES)
    names = [_plain(word) for word, _ in shown]
    # Long words may be cut to the same; an axis needs each once.
    names = [n if names.index(n) == i else f"{n} ({i + 1})" for i, n in enumerate(names)]
    total = sum(found.counts.values())
    data = {
        "name": names,
        "count": [n for _, n in shown],
        "share": [f"{n / total:.1%}" for _, n in shown],
    }
    drawn = _figure(80 + 22 * len(names), tools="reset,save", y_range=names[::-1])
    drawn.hbar("name", right="count", height=0.8, source=_source(data), color=BLUE)
    drawn.x_range.start = 0
    drawn.add_tools(HoverTool(tooltips=[("", "@name"), ("answers", "@count"), ("share", "@share")]))
    more = len(found.counts) - len(shown)
    return Figure(
        f"Distribution of {brief(found.what, _NAME)}", f"And {more:,} more." if more else "", drawn
    )


def _numbers(found: Distribution) -> Figure:
    import numpy as np
    from bokeh.models import HoverTool

    values = np.asarray(found.numbers, dtype=np.float64)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(high - low):  # farther apart than a float can say
        values, low, high = values / 4, low / 4, high / 4
    heights, edges = np.histogram(values, bins=_BINS if high > low else 1)
    data = {
        "left": edges[:-1].tolist(),
        "right": edges[1:].tolist(),
        "count": heights.tolist(),
    }
    drawn = _figure(220)
    drawn.quad(
        left="left", right="right", top="count", bottom=0, source=_source(data), color=BLUE,
        line_color="white",
    )  # fmt: skip
    drawn.y_range.start = 0
    drawn.add_tools(
        HoverTool(
            tooltips=[
                ("from", "@left{0,0.####}"),
                ("to", "@right{0,0.####}"),
                ("answers", "@count"),
            ]
        )
    )
    middle = float(np.median(np.asarray(found.numbers, dtype=np.float64)))
    return Figure(
        f"Distribution of {brief(found.what, _NAME)}",
        f"{len(values):,} values, median {middle:,.4g}.",
        drawn,
    )


def _source(data: dict[str, Any]) -> Any:
    from bokeh.models import ColumnDataSource

    return ColumnDataSource(data)
