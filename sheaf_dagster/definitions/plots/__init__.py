"""Small plots for the materialisation page, chosen by what the answers hold."""

from __future__ import annotations

from collections.abc import Sequence

from sheaf_dagster.batch.rows.sample import OutputSample
from sheaf_dagster.definitions.plots import svg
from sheaf_dagster.definitions.plots.counts import field_counts, histogram, prediction_counts
from sheaf_dagster.definitions.plots.embeddings import embedding_map
from sheaf_dagster.definitions.plots.forecasts import Actuals, ActualsOf, forecast_fans
from sheaf_dagster.definitions.plots.plot import MAX_INLINE_CHARS, MAX_PLOT_CHARS, Plot

__all__ = [
    "MAX_INLINE_CHARS",
    "MAX_PLOT_CHARS",
    "Actuals",
    "ActualsOf",
    "Plot",
    "line_chart",
    "plot_of",
]


def plot_of(sample: OutputSample, actuals: Actuals | None = None) -> Plot | None:
    """The plot that suits the answers; None where there is nothing to draw.

    Forecasts are drawn behind their histories, embeddings as a map, classes and numbers as
    histograms, and so is the first field of other answers that holds few words or a number; where
    there is none, it is the distribution of their sizes.

    Args:
        sample: The first rows.
        actuals: Gives what happened, for forecasts.
    """
    pairs = [(q, a) for q, a in sample.pairs if not a.get("error")]
    return (
        forecast_fans(pairs, actuals)
        or embedding_map(pairs)
        or prediction_counts(pairs)
        or field_counts(pairs)
        or histogram(sample.sizes, "bytes of an answer")
    )


def line_chart(series: dict[str, Sequence[float]], title: str) -> str:
    """Markdown with one line a series over a common axis."""
    values = [v for line in series.values() for v in line if svg.finite(v)]
    longest = max((len(line) for line in series.values()), default=0)
    if not values or longest < 2:
        return ""
    low, high = min(values), max(values)
    frame = svg.Frame((8, 40, 304, 100), (0, longest - 1), (low, high))
    body = [svg.label(8, 12, f"{title}: {low:.3g} to {high:.3g}")]
    at = 8
    for (name, drawn), colour in zip(series.items(), svg.COLOURS, strict=False):
        body.append(svg.line(frame, 0, drawn, colour, width=2))
        body.append(svg.label(at, 28, name, colour=colour))
        at += 8 + 6 * len(name)
    return svg.markdown_image(svg.picture(320, 150, body), title)
