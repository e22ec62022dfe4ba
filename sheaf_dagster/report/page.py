"""The page itself: what ran, checks, timings, plots, and the first rows beside their answers.

It is one file that loads nothing. Rows may hold anything, so all of their text is escaped, and the
page's own policy lets a browser run no script but those three that the page was made with.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from sheaf_dagster.contracts import deviations_of
from sheaf_dagster.plots import ForecastAxes
from sheaf_dagster.plots.plot import Pair, Row, Sample
from sheaf_dagster.report.brief import brief
from sheaf_dagster.report.figures import figures_of
from sheaf_dagster.version import __version__

__all__ = ["CheckLine", "Page", "render_page"]

_TABLE_CHARS = 1_500_000
"""What the table of rows may hold; a page is then a few megabytes, with Bokeh's own 1.3."""

_FIELDS = 20
_TEXT = 200
_NUMBERS = 6
_WHOLE_ROW = 4_000
_NOISE = ("model_type", "request_id")


@dataclass(frozen=True)
class CheckLine:
    """How a check of the file ended.

    Attributes:
        name: The check.
        passed: Whether it passed.
        what: What it found, or what it looks at.
    """

    name: str
    passed: bool
    what: str


@dataclass(frozen=True)
class Page:
    """What a page says.

    Attributes:
        title: The file's partition, or its sink.
        model: Name of the model.
        rows: Rows of the file.
        facts: What ran: names and values.
        seconds: Timings: names and seconds.
        checks: How the checks ended.
        sample: The first rows; None where their values must not be shown.
        axes: For the plots of forecasts.
    """

    title: str
    model: str
    rows: int
    facts: Mapping[str, str]
    seconds: Mapping[str, float]
    checks: Sequence[CheckLine] = ()
    sample: Sample | None = None
    axes: ForecastAxes | None = None


@dataclass
class _Figures:
    """The plots as HTML, with the scripts that draw them."""

    shown: list[dict[str, Any]] = field(default_factory=list)
    library: str = ""
    script: str = ""
    missing: str = ""


def render_page(page: Page) -> str:
    """The page as HTML.

    Where Bokeh is missing there are no plots, and the page says so.
    """
    figures = _figures(page)
    rows = _rows(page.sample.pairs) if page.sample else []
    search = _search_script()
    scripts = [s for s in (figures.library, figures.script, search) if s]
    # Autoescaping covers everything but the scripts, which hold nothing of a row unescaped.
    text: str = _template().render(
        page=page,
        figures=figures,
        rows=rows,
        fields_left_out=", ".join(_NOISE),
        policy=_policy(scripts),
        search=search,
        longest=max(page.seconds.values(), default=0.0),
        version=__version__,
    )
    return text


@cache
def _template() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    pages = PackageLoader("sheaf_dagster.report", "templates")
    return Environment(loader=pages, autoescape=True, undefined=StrictUndefined).get_template(
        "page.html"
    )


@cache
def _search_script() -> str:
    from importlib.resources import files

    return (files("sheaf_dagster.report") / "templates" / "search.js").read_text("utf-8")


def _policy(scripts: Sequence[str]) -> str:
    """A content security policy: these scripts, styles of the page's own, and nothing else."""
    digests = (base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts)
    allowed = " ".join(f"'sha256-{d}'" for d in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; font-src data:; form-action 'none'; base-uri 'none'"
    )


def _figures(page: Page) -> _Figures:
    if page.sample is None:
        return _Figures()
    if importlib.util.find_spec("bokeh") is None:
        return _Figures(missing="Plots need bokeh: pip install 'sheaf_dagster[html]'.")
    from bokeh.embed import components

    try:
        found = [*figures_of(page.sample, page.axes)]
        if not found:
            return _Figures()
        script, divs = components([f.model for f in found], wrap_script=False)
    except Exception as e:  # answers of anybody's own form; the page has more to say than plots
        return _Figures(missing=f"The plots could not be drawn: {type(e).__name__}: {e}")
    shown = [
        {"heading": f.heading, "note": f.note, "div": div}
        for f, div in zip(found, divs, strict=True)
    ]
    return _Figures(shown, _bokeh(), script)


@cache
def _bokeh() -> str:
    """Bokeh's own script, without the parts that these plots don't need."""
    from bokeh.resources import Resources

    (script,) = Resources(mode="inline", components=["bokeh"]).js_raw[:1]
    return str(script)


def _rows(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    left = _TABLE_CHARS
    for number, (request, response) in enumerate(pairs, 1):
        # What an answer only repeats of its request says nothing.
        own = {k: v for k, v in response.items() if k not in request or request[k] != v}
        row = {
            "number": number,
            "asked": _cell(request),
            "answered": _cell(own),
            "marks": [kind.replace("_", " ") for kind in deviations_of(response)],
            "failed": bool(response.get("error")),
            "whole": f"{_whole(request)}\n{_whole(response)}",
        }
        left -= len(str(row))
        if left < 0:
            break
        rows.append(row)
    return rows


def _cell(row: Row) -> list[tuple[str, str]]:
    shown = [(k, v) for k, v in row.items() if v is not None and k not in _NOISE]
    cells = [(brief(k, _TEXT), brief(v, _TEXT, _NUMBERS)) for k, v in shown[:_FIELDS]]
    return [*cells, ("…", f"{len(shown) - _FIELDS} more")] if len(shown) > _FIELDS else cells


def _whole(row: Row) -> str:
    text = json.dumps(row, indent=2, ensure_ascii=False, default=str)
    return text if len(text) <= _WHOLE_ROW else f"{text[:_WHOLE_ROW]}\n… {len(text):,} characters"
