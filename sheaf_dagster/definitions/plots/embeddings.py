"""A map of embeddings: near points stand for near vectors."""

from __future__ import annotations

from collections.abc import Sequence

from sheaf_dagster.definitions.plots import svg
from sheaf_dagster.definitions.plots.plot import (
    MAX_INLINE_CHARS,
    MAX_PLOT_CHARS,
    Pair,
    Plot,
    first_fit,
)
from sheaf_dagster.definitions.plots.svg import BLUE, Frame

__all__ = ["embedding_map"]

_POINTS = 300


def embedding_map(pairs: Sequence[Pair]) -> Plot | None:
    """The first two principal components of the vectors of one length."""
    vectors: list[list[float]] = []
    names: list[str] = []
    for request, answer in pairs:
        found = answer.get("embeddings")
        if not isinstance(found, list) or len(vectors) >= _POINTS:
            continue
        texts = request.get("texts") or []
        for i, vector in enumerate(found[: _POINTS - len(vectors)]):
            same = not vectors or (isinstance(vector, list) and len(vector) == len(vectors[0]))
            if isinstance(vector, list) and same and all(map(svg.finite, vector)):
                vectors.append(vector)
                names.append(str(texts[i]) if i < len(texts) else "")
    if len(vectors) < 3 or not vectors[0]:
        return None
    points, share = _principal_components(vectors)
    small = first_fit(
        (
            svg.picture(240, 80, _cloud(points[:shown], (4, 4, 232, 72), 0, 3), words=False)
            for shown in (len(points), 60, 40, 20)
        ),
        "map of the embeddings",
        MAX_INLINE_CHARS,
    )
    body = [
        svg.label(8, 16, f"{len(points)} embeddings of length {len(vectors[0])}", colour="#111827"),
        svg.label(632, 16, f"two principal components: {share:.0%} of the variance", end=True),
        *_cloud(points, (16, 32, 608, 300), 1, 5),
    ]
    frame = _cloud_frame(points, (16, 32, 608, 300), 1)
    for i in _far_apart(points, 10) if any(names) else ():
        x, y = frame.at(*points[i])
        text = names[i] if len(names[i]) <= 32 else names[i][:31] + "…"
        body.append(svg.label(x + (-6 if x > 420 else 6), y + 3, text, end=x > 420))
    large = first_fit([svg.picture(640, 344, body)], "map of the embeddings", MAX_PLOT_CHARS)
    return Plot(small, large)


def _principal_components(vectors: list[list[float]]) -> tuple[list[tuple[float, float]], float]:
    """Points in the plane, and the share of the variance that they keep."""
    import numpy as np

    x = np.asarray(vectors, dtype=np.float64)
    x = x - x.mean(axis=0)
    # Over the rows, of which there are few, whatever the length of a vector.
    values, axes = np.linalg.eigh(x @ x.T)
    total = float(values.clip(min=0).sum())
    plane = axes[:, [-1, -2]] * np.sqrt(values[[-1, -2]].clip(min=0))
    # An axis may come out either way round; the same file should give the same picture.
    plane = plane * np.where(plane[np.abs(plane).argmax(axis=0), [0, 1]] < 0, -1, 1)
    share = float(values[[-1, -2]].clip(min=0).sum()) / total if total > 0 else 1.0
    return [(float(a), float(b)) for a, b in plane], share


def _cloud_frame(
    points: Sequence[tuple[float, float]], box: tuple[float, float, float, float], places: int
) -> Frame:
    """One scale for both axes, so that distances in the picture mean something."""
    _, _, width, height = box
    xs, ys = [x for x, _ in points], [y for _, y in points]
    across, up = (max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2
    pixel = max((max(xs) - min(xs)) / width, (max(ys) - min(ys)) / height) / 2
    x = (across - pixel * width, across + pixel * width)
    return Frame(box, x, (up - pixel * height, up + pixel * height), places)


def _cloud(
    points: Sequence[tuple[float, float]],
    box: tuple[float, float, float, float],
    places: int,
    size: float,
) -> list[str]:
    return [svg.dots(_cloud_frame(points, box, places), points, BLUE, size=size)]


def _far_apart(points: Sequence[tuple[float, float]], count: int) -> list[int]:
    """Indices of points that cover the map: each the farthest from those taken before."""
    chosen = [0]
    distance = [float("inf")] * len(points)
    while len(chosen) < min(count, len(points)):
        x, y = points[chosen[-1]]
        distance = [
            min(d, (a - x) ** 2 + (b - y) ** 2) for d, (a, b) in zip(distance, points, strict=True)
        ]
        chosen.append(max(range(len(points)), key=distance.__getitem__))
    return chosen
