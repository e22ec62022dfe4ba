"""Small inline plots for the materialisation page, as hand-written SVG: no plotting library."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import Any

__all__ = ["forecast_fan", "line_chart"]

_W, _H, _PAD = 320, 120, 8
_HISTORY_SHOWN = 60


def forecast_fan(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]], shown: int = 4) -> str:
    """Markdown with histories and forecasts of the first series, quantile band included."""
    pictures: list[str] = []
    for request, response in pairs:
        history = request.get("history")
        mean = response.get("mean")
        if not history or not mean or len(pictures) == shown:
            continue
        if isinstance(history[0], list):
            history = [step[request.get("target_index", 0)] for step in history]
        bands = list((response.get("quantiles") or {}).values())
        svg = _fan(history[-_HISTORY_SHOWN:], mean, bands, str(request.get("model_name", "")))
        pictures.append(_image(svg, "history and forecast"))
    return "\n".join(pictures)


def line_chart(series: dict[str, Sequence[float]], title: str) -> str:
    """Markdown with one line a series over a common axis."""
    colours = ("#4f43dd", "#d97706", "#059669", "#dc2626")
    values = [v for line in series.values() for v in line if math.isfinite(v)]
    longest = max((len(line) for line in series.values()), default=0)
    if not values or longest < 2:
        return ""
    low, high = min(values), max(values)
    body = []
    for i, (name, line) in enumerate(series.items()):
        colour = colours[i % len(colours)]
        points = _points(line, 0, longest, low, high)
        body.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        body.append(
            f'<text x="{_PAD}" y="{22 + 12 * i}" font-size="10" fill="{colour}">{_text(name)}</text>'
        )
    return _image(_svg(body, f"{title}: {low:.3g} to {high:.3g}"), title)


def _fan(history: list[Any], mean: list[Any], bands: list[list[Any]], title: str) -> str:
    past = [float("nan") if v is None else float(v) for v in history]
    numbers = [v for v in (*past, *mean, *(x for b in bands for x in b)) if _finite(v)]
    if not numbers:
        return _svg([], title)
    low, high = min(numbers), max(numbers)
    total = len(past) + len(mean)
    body = []
    if len(bands) >= 2:
        lower = [min(b[t] for b in bands if _finite(b[t])) for t in range(len(mean))]
        upper = [max(b[t] for b in bands if _finite(b[t])) for t in range(len(mean))]
        outline = _points(upper, len(past), total, low, high).split()
        outline += reversed(_points(lower, len(past), total, low, high).split())
        body.append(f'<polygon points="{" ".join(outline)}" fill="#4f43dd" fill-opacity="0.2"/>')
    body.append(
        f'<polyline points="{_points(past, 0, total, low, high)}" fill="none" stroke="#6b7280"/>'
    )
    body.append(
        f'<polyline points="{_points(mean, len(past), total, low, high)}" fill="none" '
        'stroke="#4f43dd" stroke-width="2"/>'
    )
    return _svg(body, f"{title} {low:.4g} to {high:.4g}")


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _points(line: Sequence[Any], start: int, total: int, low: float, high: float) -> str:
    span = (high - low) or 1.0
    width = (_W - 2 * _PAD) / max(total - 1, 1)
    return " ".join(
        f"{_PAD + (start + i) * width:.1f},{_H - _PAD - (v - low) / span * (_H - 28):.1f}"
        for i, v in enumerate(line)
        if _finite(v)
    )


def _text(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")[:60]


def _svg(body: list[str], title: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_W}" height="{_H}" '
        f'font-family="sans-serif"><rect width="{_W}" height="{_H}" fill="#ffffff"/>'
        f'<text x="{_PAD}" y="10" font-size="9" fill="#6b7280">{_text(title)}</text>'
        + "".join(body)
        + "</svg>"
    )


def _image(svg: str, alt: str) -> str:
    return f"![{alt}](data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()})"
