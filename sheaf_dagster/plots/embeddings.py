"""A map of embeddings: near points stand for near vectors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sheaf_dagster.plots import svg
from sheaf_dagster.plots.plot import (
    MAX_INLINE_CHARS,
    MAX_PLOT_CHARS,
    Pair,
    Plot,
    Row,
    first_fit,
)
from sheaf_dagster.plots.svg import BLUE, COLOURS, Frame

__all__ = ["EmbeddingMap", "EmbeddingPoint", "embedding_map", "embeddings_of"]

_POINTS = 300
_SHOWN_NEIGHBOURS = 4
_OF_EVERY_ROW = ("request_id", "model_type", "model_version")

Box = tuple[float, float, float, float]


class EmbeddingPoint(NamedTuple):
    """One embedded input: its vector, what it is called, and its request."""

    vector: list[float]
    name: str
    row: Row


class EmbeddingMap(NamedTuple):
    """Embeddings in the plane.

    Attributes:
        found: The embedded inputs.
        points: Where each is drawn: its first two principal components.
        field: The field of the rows that colours them; empty where none has few values.
        values: Each row's value of it.
        share: The share of the variance that the plane keeps.
    """

    found: list[EmbeddingPoint]
    points: list[tuple[float, float]]
    field: str
    values: list[str]
    share: float


def embeddings_of(pairs: Sequence[Pair]) -> EmbeddingMap | None:
    """The map of the vectors of one length; None where there are fewer than three."""
    found: list[EmbeddingPoint] = []
    for request, answer in pairs:
        vectors = answer.get("embeddings")
        if not isinstance(vectors, list):
            continue
        for i, vector in enumerate(vectors[: _POINTS - len(found)]):
            same = not found or (isinstance(vector, list) and len(vector) == len(found[0].vector))
            if isinstance(vector, list) and same and all(map(svg.finite, vector)):
                found.append(EmbeddingPoint(vector, _name(request, i, len(vectors)), request))
    if len(found) < 3 or not found[0].vector:
        return None
    points, share = _principal_components([p.vector for p in found])
    return EmbeddingMap(found, points, *_few_values([p.row for p in found]), share)


def embedding_map(pairs: Sequence[Pair]) -> Plot | None:
    """The first two principal components of the vectors of one length.

    Points are coloured by the first field of the rows that holds few different values, be it in
    their ``metadata``. In large, each value is written at its points' middle, and a few rows are
    listed with the two that are nearest to them by cosine, over all the vectors' dimensions.
    """
    cloud = embeddings_of(pairs)
    if cloud is None:
        return None
    found, points, field, values, share = cloud
    small = first_fit(
        (
            svg.picture(
                240, 80, _cloud(points[:shown], values[:shown], (4, 4, 232, 72), 0, 3), words=False
            )
            for shown in (len(points), 60, 40, 20)
        ),
        "map of the embeddings",
        MAX_INLINE_CHARS,
    )
    large = first_fit(
        (
            _large(found[:n], points[:n], field, values[:n], share, neighbours)
            for n, neighbours in ((len(points), _SHOWN_NEIGHBOURS), (100, 2), (50, 0))
        ),
        "map of the embeddings",
        MAX_PLOT_CHARS,
    )
    return Plot(small, large)


def _large(
    found: Sequence[EmbeddingPoint],
    points: Sequence[tuple[float, float]],
    field: str,
    values: Sequence[str],
    share: float,
    neighbours: int,
) -> str:
    box = (16.0, 32.0, 608.0, 300.0)
    by = f", coloured by {field}" if field else ""
    body = [
        svg.label(8, 16, f"{len(points)} embeddings of length {len(found[0].vector)}{by}"),
        svg.label(632, 16, f"two principal components: {share:.0%} of the variance", end=True),
        *_cloud(points, values, box, 1, 5),
    ]
    frame = _cloud_frame(points, box, 1)
    if field:
        body += _value_names(frame, points, values)
    else:
        for i in _far_apart(points, 10) if len({p.name for p in found}) > 1 else ():
            x, y = frame.at(*points[i])
            body.append(
                svg.label(x + (-6 if x > 420 else 6), y + 3, _short(found[i].name, 32), end=x > 420)
            )
    lines = list(_nearest(found, values, neighbours))
    for n, text in enumerate(lines):
        body.append(svg.label(8, 356 + 14 * n, text))
    return svg.picture(640, 348 + 14 * len(lines), body)


def _name(request: Row, i: int, of: int) -> str:
    """What tells an input from the others: its text, the end of its URI, or its row's name."""
    texts, uris = request.get("texts") or [], request.get("image_uris") or []
    if i < len(texts):
        return str(texts[i])
    if i < len(uris):
        return str(uris[i]).rstrip("/").rpartition("/")[2]
    return f"{request.get('model_name', '')}{f' {i}' if of > 1 else ''}"


def _few_values(rows: Sequence[Row]) -> tuple[str, list[str]]:
    """The first field with few different values over the rows, and each row's value of it.

    Few: at least two, no more than there are colours, and each three times as a mean. Without such
    a field its name is empty.
    """
    flat = [dict(_scalars(row)) for row in rows]
    for field in dict.fromkeys(name for row in flat for name in row):
        values = [str(row.get(field, "none")) for row in flat]
        different = len(set(values))
        if 2 <= different <= min(len(COLOURS), len(rows) // 3):
            return field, values
    return "", [""] * len(rows)


def _scalars(row: Row) -> Iterator[tuple[str, Any]]:
    metadata = row.get("metadata")
    for name, value in (*row.items(), *(metadata.items() if isinstance(metadata, Mapping) else ())):
        if name not in _OF_EVERY_ROW and isinstance(value, (str, int, bool)):
            yield name, value


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


def _nearest(found: Sequence[EmbeddingPoint], values: Sequence[str], count: int) -> Iterator[str]:
    """Lines that name a few rows, spread over the file, and the two nearest to each."""
    names = [
        _short(p.name, 14) + (f" [{_short(value, 8)}]" if value else "")
        for p, value in zip(found, values, strict=True)
    ]
    import numpy as np

    if len({p.name for p in found}) < 3:
        return
    x = np.asarray([p.vector for p in found], dtype=np.float64)
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    x = x / np.where(lengths > 0, lengths, 1)
    for i in (len(found) * n // count for n in range(count)):
        near = x @ x[i]
        near[i] = -np.inf
        nearest = ", ".join(f"{names[j]} {near[j]:.2f}" for j in np.argsort(-near)[:2])
        yield f"{names[i]} › {nearest}"


def _cloud_frame(points: Sequence[tuple[float, float]], box: Box, places: int) -> Frame:
    """One scale for both axes, so that distances in the picture mean something."""
    _, _, width, height = box
    xs, ys = [x for x, _ in points], [y for _, y in points]
    across, up = (max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2
    pixel = max((max(xs) - min(xs)) / width, (max(ys) - min(ys)) / height) / 2
    x = (across - pixel * width, across + pixel * width)
    return Frame(box, x, (up - pixel * height, up + pixel * height), places)


def _colours(values: Sequence[str]) -> dict[str, str]:
    """The most frequent values take the colours that are easiest to tell apart."""
    ranked = [value for value, _ in Counter(values).most_common()]
    return dict(zip(ranked, COLOURS, strict=False))


def _cloud(
    points: Sequence[tuple[float, float]], values: Sequence[str], box: Box, places: int, size: float
) -> list[str]:
    """A path of dots a value."""
    frame = _cloud_frame(points, box, places)
    if len(set(values)) < 2:
        return [svg.dots(frame, points, BLUE, size=size)]
    paths = (
        (frame.path(_of_value(points, values, value), dots=True), colour)
        for value, colour in _colours(values).items()
    )
    return [
        f'<g stroke-width="{size:g}" stroke-linecap="round">',
        *(f'<path d="{path}" stroke="{colour}"/>' for path, colour in paths),
        "</g>",
    ]


def _value_names(
    frame: Frame, points: Sequence[tuple[float, float]], values: Sequence[str]
) -> Iterator[str]:
    """Each value at the median of its points: colour alone says nothing to some."""
    for value, colour in _colours(values).items():
        mine = _of_value(points, values, value)
        xs, ys = (sorted(axis) for axis in zip(*mine, strict=True))
        x, y = frame.at(xs[len(xs) // 2], ys[len(ys) // 2])
        yield svg.label(x, y + 4, _short(value, 20), size=16, colour=colour, middle=True)


def _of_value(
    points: Sequence[tuple[float, float]], values: Sequence[str], value: str
) -> list[tuple[float, float]]:
    return [p for p, v in zip(points, values, strict=True) if v == value]


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


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
