"""Small plots of a file's answers, chosen by what they hold: SVG without a plotting library."""

from __future__ import annotations

from collections.abc import Sequence

from sheaf_dagster.plots import svg
from sheaf_dagster.plots.counts import distributions_of, histogram, predictions_of
from sheaf_dagster.plots.embeddings import embedding_map
from sheaf_dagster.plots.fans import ActualsOf, ForecastAxes, StartOf
from sheaf_dagster.plots.forecasts import forecast_fans
from sheaf_dagster.plots.plot import MAX_INLINE_CHARS, MAX_PLOT_CHARS, Pair, Plot, Sample

__all__ = [
    "MAX_INLINE_CHARS",
    "MAX_PLOT_CHARS",
    "ActualsOf",
    "ForecastAxes",
    "Plot",
    "StartOf",
    "line_chart",
    "plot_of",
]


def plot_of(sample: Sample, axes: ForecastAxes | None = None) -> Plot | None:
    """The plot that suits the answers; None where there is nothing to draw.

    Forecasts are drawn behind their histories, embeddings as a map, classes and numbers as
    histograms, and so is the first field of other answers that holds few words or a number; where
    there is none, it is the distribution of their sizes.

    Args:
        sample: The first rows.
        axes: Of forecasts: what happened, their dates, and the unit of their values.
    """
    pairs = [(q, a) for q, a in sample.pairs if not a.get("error")]
    return (
        forecast_fans(pairs, axes)
        or embedding_map(pairs)
        or _counted(pairs)
        or histogram(sample.sizes, "bytes of an answer")
    )


def _counted(pairs: Sequence[Pair]) -> Plot | None:
    found = predictions_of(pairs) or next(distributions_of(pairs), None)
    return found.plot() if found else None


def line_chart(
    series: dict[str, Sequence[float]], title: str, over: Sequence[str] | None = None
) -> str:
    """Markdown with one line a series over a common axis, from zero where that costs little.

    Args:
        series: Values by name.
        title: What the values are, with their unit.
        over: What each place of the axis is called, such as its date.
    """
    values = [v for line in series.values() for v in line if svg.finite(v)]
    longest = max((len(line) for line in series.values()), default=0)
    if not values or longest < 2:
        return ""
    low, high = min(values), max(values)
    low = 0.0 if 0 < low < high / 2 else low
    box = (40, 40, 432, 110)
    frame = svg.Frame(box, (0, longest - 1), (low, high))
    colours = dict(zip(series, svg.COLOURS, strict=False))
    body = [svg.label(8, 12, title), *svg.legend(colours.items(), y=26)]
    body += svg.value_axis(frame, box, (low, high))
    if over:
        body.append(svg.label(40, 166, over[0]))
        body.append(svg.label(472, 166, over[-1], end=True))
    body += [svg.line(frame, 0, series[name], colour, width=2) for name, colour in colours.items()]
    return svg.markdown_image(svg.picture(480, 174, body), title)
