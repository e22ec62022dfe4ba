"""The image embedder against a torch ``DataLoader`` over the same model: JPEG files in, a file out.

Both read the same list of JPEGs, use the model's own image processor, and write the same vectors as
JSON lines, in the same order. The DataLoader has as many processes as there are CPUs, which are up
before the clock runs. The weights are random.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import in_turn

IMAGES = 256
BATCH = 32
ROUNDS = 7
SIZE = (640, 480)


def images(
    folder: Path, times: int = 1, device: str = "cpu", rounds: int = ROUNDS
) -> dict[str, Any]:
    """JPEGs through a ViT of the small size, against a DataLoader with workers."""
    from sheaf_dagster import BatchRunner, BatchSpec, ModelSpec

    weights, paths = _small_vit(folder), _jpegs(folder) * times
    source, sink = folder / "images.jsonl", folder / "images.out"
    rows = [{"model_name": "m", "image_uris": [p], "normalize": False} for p in paths]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = ModelSpec(
        name="vit",
        model_type="embedding",
        backend="image_embedder",
        backend_kwargs={"model_id": weights, "device": device},
    )
    job = BatchSpec(
        source=str(source), sink=str(sink), batch_size=BATCH, compute="local", resume=False
    )
    runner = BatchRunner(spec, on_progress=None)
    results = []
    by_loader = _by_loader(weights, paths, folder / "loader.out", device)
    figures = in_turn(
        "ours over the DataLoader",
        len(paths),
        {"DataLoader": by_loader, "ours": lambda: results.append(runner.run(job))},
        rounds,
    )
    _require_same(folder / "loader.out", sink)
    figures["busy"] = results[-1].device_busy_fraction
    return figures


def _by_loader(weights: str, paths: list[str], out: Path, device: str) -> Callable[[], None]:
    import torch
    from PIL import Image
    from transformers import AutoImageProcessor, AutoModel

    model = AutoModel.from_pretrained(weights).eval().to(device)
    processor = AutoImageProcessor.from_pretrained(weights, backend="pil")

    class Pictures(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, i: int) -> Any:
            with Image.open(paths[i]) as image:
                return processor(image.convert("RGB"), return_tensors="pt")["pixel_values"][0]

    loader = torch.utils.data.DataLoader(
        Pictures(),
        batch_size=BATCH,
        num_workers=os.cpu_count() or 1,
        persistent_workers=True,
        prefetch_factor=4,
        pin_memory=device != "cpu",
    )

    def run() -> None:
        with out.open("w") as f, torch.inference_mode():
            for pixels in loader:
                given = pixels.to(device, non_blocking=True)
                for vector in model(pixel_values=given).pooler_output.tolist():
                    f.write(json.dumps({"embeddings": [vector]}) + "\n")

    return run


def _require_same(theirs: Path, ours: Path) -> None:
    import numpy as np

    found = [
        np.array([json.loads(line)["embeddings"][0] for line in path.open()])
        for path in (theirs, ours)
    ]
    np.testing.assert_allclose(*found, atol=1e-4)


def _jpegs(folder: Path) -> list[str]:
    """Photographs of a kind: soft shapes with some noise, 100 KB each."""
    import numpy as np
    from PIL import Image

    (folder / "jpegs").mkdir()
    random = np.random.default_rng(0)
    paths = []
    for i in range(IMAGES):
        shapes = Image.fromarray(random.integers(0, 256, (60, 80, 3), dtype=np.uint8))
        path = folder / "jpegs" / f"{i:04}.jpg"
        shapes.resize(SIZE, Image.Resampling.BICUBIC).save(path, quality=90)
        paths.append(str(path))
    return paths


def _small_vit(folder: Path) -> str:
    import torch
    import transformers as t

    torch.manual_seed(0)
    path = folder / "vit"
    config = t.ViTConfig(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        intermediate_size=1536,
        image_size=224,
        patch_size=32,
    )
    t.ViTModel(config).save_pretrained(path)
    t.ViTImageProcessorPil().save_pretrained(path)
    return str(path)
