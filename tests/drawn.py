"""Answers to draw, and what is seen in their pictures."""

from __future__ import annotations

import base64
import json
import math
import random
import re
from xml.etree import ElementTree

from sheaf_dagster.batch.rows.sample import OutputSample

chance = random.Random(9)


def sample(pairs) -> OutputSample:
    """What is looked at of a file that holds these requests and their answers."""
    sizes = [len(json.dumps(answer, default=str)) for _, answer in pairs]
    return OutputSample(pairs, in_order=True, compared=len(pairs), sizes=sizes)


def svg_of(markdown: str) -> ElementTree.Element:
    """The drawing of a picture in Markdown."""
    found = re.fullmatch(r"!\[[\w ]+\]\(data:image/svg\+xml;base64,(.*)\)", markdown)
    assert found, markdown[:100]
    return ElementTree.fromstring(base64.b64decode(found[1]))


def words(markdown: str) -> str:
    """All that is written in a picture."""
    return " ".join(svg_of(markdown).itertext())


def forecast(history: int, horizon: int, **answer):
    """A request for a forecast, and the answer."""
    request = {
        "model_name": "EWR <&> ATL",
        "history": [math.sin(t / 3) for t in range(history)],
        "horizon": horizon,
    }
    mean = [math.sin(t / 3) for t in range(horizon)]
    bands = {"0.1": [v - 1 for v in mean], "0.5": mean, "0.9": [v + 1 for v in mean]}
    return request, {"mean": mean, "quantiles": bands, **answer}


def embedding(texts: list[str], dim: int):
    """Texts, and a random vector of each."""
    vectors = [[chance.gauss(0, 1) for _ in range(dim)] for _ in texts]
    return {"texts": texts}, {"embeddings": vectors, "dim": dim}
