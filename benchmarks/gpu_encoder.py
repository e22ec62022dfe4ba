"""A BERT-sized encoder (random weights) through the worker loop, against a loop over tensors.

    python -m benchmarks.gpu_encoder                      # on the GPU, if there is one
    python -m benchmarks.gpu_encoder --ray                # through a pool of one actor
    python -m benchmarks.gpu_encoder --size small --rows 2000 --device cpu

The loop by hand holds its rows in memory as lists of numbers and keeps its answers as lists of
numbers: it neither reads, validates nor writes. Ours reads JSONL, checks every row, and writes
JSONL. Both run the same module on the same device, batch for batch, in turn; the ratio is ours over
the loop's rows per second, the median of three rounds. (``--ray`` without a GPU says nothing: a Ray
actor has other threads than this process.)
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, Literal

from sheaf_dagster import (
    BaseRequest,
    BaseResponse,
    BatchRunner,
    BatchSpec,
    ModelBackend,
    ModelSpec,
    ResourceConfig,
    register_contract,
)

RESULT = Path(__file__).parent / "results" / "gpu_encoder.json"

TOKENS = 128
VOCABULARY = 30_522

# (layers, width, heads): "base" is BERT's and ViT's, 86 million weights without embeddings.
SIZES = {"tiny": (2, 128, 2), "small": (4, 256, 4), "base": (12, 768, 12)}


class TokensRequest(BaseRequest):
    """A text as its token ids."""

    model_type: Literal["tokens"] = "tokens"
    ids: list[int]


class TokensResponse(BaseResponse):
    """The mean of the last layer over the tokens."""

    model_type: Literal["tokens"] = "tokens"
    embedding: list[float]


if __name__ != "__main__":
    register_contract("tokens", TokensRequest, TokensResponse)


def encoder(size: str, device: str, dtype: str) -> Any:
    """The module, its weights drawn from a fixed seed."""
    import torch

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers, width, heads = SIZES[size]
            self.tokens = torch.nn.Embedding(VOCABULARY, width)
            self.places = torch.nn.Parameter(torch.randn(TOKENS, width) * 0.02)
            layer = torch.nn.TransformerEncoderLayer(
                width, heads, 4 * width, activation="gelu", batch_first=True, dropout=0.0
            )
            self.layers = torch.nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

        def forward(self, ids: Any) -> Any:
            return self.layers(self.tokens(ids) + self.places[: ids.shape[1]]).mean(dim=1)

    torch.manual_seed(0)
    return Encoder().to(device=device, dtype=getattr(torch, dtype)).eval()


def run_batch(module: Any, device: str, rows: list[list[int]]) -> list[list[float]]:
    """What both contenders do with a batch."""
    import torch

    with torch.inference_mode():
        ids = torch.tensor(rows, dtype=torch.int64)
        if device != "cpu":
            ids = ids.pin_memory().to(device, non_blocking=True)
        return module(ids).float().cpu().tolist()  # type: ignore[no-any-return]


class EncoderBackend(ModelBackend):
    """The encoder as a backend."""

    model_type = "tokens"

    def __init__(self, size: str, device: str, dtype: str) -> None:
        self._arguments = (size, device, dtype)

    def load(self) -> None:
        """Builds the module on its device."""
        self._module = encoder(*self._arguments)

    def warmup_requests(self) -> Sequence[TokensRequest]:
        """One short batch: the device's kernels are loaded before the clock runs."""
        return [TokensRequest(model_name="encoder", ids=[1] * TOKENS)] * 4

    def batch_predict(self, requests: Sequence[Any]) -> list[Any]:
        """A batch."""
        found = run_batch(self._module, self._arguments[1], [r.ids for r in requests])
        return [
            TokensResponse(request_id=r.request_id, model_name=r.model_name, embedding=e)
            for r, e in zip(requests, found, strict=True)
        ]


def by_hand(module: Any, device: str, rows: list[list[int]], batch: int) -> float:
    """Seconds of the plain loop."""
    started = time.perf_counter()
    answers = []
    for i in range(0, len(rows), batch):
        answers += run_batch(module, device, rows[i : i + batch])
    assert len(answers) == len(rows)
    return time.perf_counter() - started


def compare(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Figures of both, and of the machine."""
    import torch

    rng = random.Random(1)
    rows = [[rng.randrange(VOCABULARY) for _ in range(TOKENS)] for _ in range(arguments.rows)]
    source = folder / "rows.jsonl"
    with source.open("w") as f:
        for ids in rows:
            f.write(
                json.dumps({"model_type": "tokens", "model_name": "encoder", "ids": ids}) + "\n"
            )
    device, on_gpu = arguments.device, arguments.device != "cpu"
    model = ModelSpec(
        name="encoder",
        model_type="tokens",
        backend="benchmarks.gpu_encoder:EncoderBackend",
        backend_kwargs={"size": arguments.size, "device": device, "dtype": arguments.dtype},
        resources=ResourceConfig(num_cpus=1, num_gpus=1 if on_gpu and arguments.ray else 0),
    )
    spec = BatchSpec(
        source=str(source),
        sink=str(folder / "answers.jsonl"),
        batch_size=arguments.batch,
        compute="actors" if arguments.ray else "local",
        num_actors=1 if arguments.ray else None,
        resume=False,
    )
    runner = BatchRunner(model, on_progress=None)
    module = encoder(arguments.size, device, arguments.dtype)
    by_hand(module, device, rows[: 4 * arguments.batch], arguments.batch)  # warm
    if not arguments.ray:
        runner.run(spec.model_copy(update={"row_limit": 4 * arguments.batch}))  # loads the model
    rounds = []
    for _ in range(arguments.rounds):
        loop = arguments.rows / by_hand(module, device, rows, arguments.batch)
        result = runner.run(spec)
        ours = result.rows / result.inference_seconds  # from the first chunk on, loading left out
        rounds.append((ours / loop, ours, loop, result.device_busy_fraction))
        print(f"ours {ours:,.0f} rows/s, loop {loop:,.0f} rows/s: {ours / loop:.3f}", flush=True)
    ratio = median(r[0] for r in rounds)
    _, ours, loop, busy = min(rounds, key=lambda r: abs(r[0] - ratio))
    return {
        "ratio of rows per second, ours over the loop": round(ratio, 3),
        "ratio, each round": [round(r[0], 3) for r in rounds],
        "ours, rows per second": round(ours, 1),
        "loop, rows per second": round(loop, 1),
        "device_busy_fraction": busy and round(busy, 4),
        "device": torch.cuda.get_device_name() if on_gpu else f"CPU ({platform.machine()})",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "through": "a Ray actor" if arguments.ray else "this process",
        **{k: getattr(arguments, k) for k in ("size", "dtype", "rows", "batch")},
    }


def main() -> None:
    """Measures, prints, and keeps the figures in ``results/gpu_encoder.json``."""
    import torch

    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if gpu else "cpu")
    parser.add_argument("--size", choices=SIZES, default="base" if gpu else "small")
    parser.add_argument("--dtype", default="float16" if gpu else "float32")
    parser.add_argument("--rows", type=int, default=50_000 if gpu else 2_000)
    parser.add_argument("--batch", type=int, default=256 if gpu else 32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ray", action="store_true", help="a pool of one actor")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sheaf-bench-") as folder:
        figures = compare(arguments, Path(folder))
    print(json.dumps(figures, indent=1))
    kept = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    name = f"{figures['device']}, {arguments.size}, through {figures['through']}"
    RESULT.write_text(json.dumps({**kept, name: figures}, indent=1) + "\n")


if __name__ == "__main__":
    # Under its own name, which is the one by which workers know the backend.
    from benchmarks import gpu_encoder

    gpu_encoder.main()
