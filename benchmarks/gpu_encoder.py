"""A text encoder of BERT's size in stages, against a loop by hand that also tokenises ahead.

    python -m benchmarks.gpu_encoder              # a GPU where there is one: five minutes
    python -m benchmarks.gpu_encoder --ray        # through a pool of one actor
    python -m benchmarks.gpu_encoder --smoke      # small enough for any CPU: does it run?

Both read the same JSONL, tokenise ahead in threads, run the same module on the same batches, copy from
pinned memory, and write the same JSONL. The loop neither validates nor can be resumed. They run in
turn; a ratio is ours over the loop's rows per second, the median of the rounds. With ``--budget`` ours
makes its batches by size, which the loop doesn't.

Weights are random and the vocabulary is made here, so a machine without a network needs only torch,
tokenizers and what sheaf_dagster itself imports: numpy, pydantic, fsspec, pyarrow, msgspec, orjson,
zstandard, rich, typing_extensions (and ray for ``--ray``, nvidia-ml-py for the GPU's own figures).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any, Literal

import orjson

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
from sheaf_dagster.backends import from_device

RESULT = Path(__file__).parent / "results" / "gpu_encoder.json"

TOKENS = 256
WORDS = 20_000
AHEAD = 8
"""Batches that the loop has tokenised ahead."""

# (layers, width, heads): "base" is BERT's, 86 million weights without embeddings.
SIZES = {"tiny": (2, 128, 2), "small": (4, 256, 4), "base": (12, 768, 12)}


class TextRequest(BaseRequest):
    """A text."""

    model_type: Literal["encoder_text"] = "encoder_text"
    text: str


class VectorResponse(BaseResponse):
    """The mean of the last layer over the tokens, projected to 128 numbers."""

    model_type: Literal["encoder_text"] = "encoder_text"
    vector: list[float]


if __name__ != "__main__":
    register_contract("encoder_text", TextRequest, VectorResponse)


def tokenizer() -> Any:
    """WordPiece over made-up words."""
    import tokenizers

    rng = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = ["[PAD]", "[UNK]", *letters, *(f"##{c}" for c in letters)]
    known = dict.fromkeys(pieces)
    while len(known) < WORDS:
        known["".join(rng.choices(letters, k=rng.randint(2, 9)))] = None
    made = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({word: i for i, word in enumerate(known)}, unk_token="[UNK]")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.enable_truncation(TOKENS)
    return made


def encoder(size: str, device: str, dtype: str) -> Any:
    """The module, its weights drawn from a fixed seed."""
    import torch

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers, width, heads = SIZES[size]
            self.words = torch.nn.Embedding(WORDS, width)
            self.places = torch.nn.Parameter(torch.randn(TOKENS, width) * 0.02)
            layer = torch.nn.TransformerEncoderLayer(
                width, heads, 4 * width, activation="gelu", batch_first=True, dropout=0.0
            )
            self.layers = torch.nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
            self.head = torch.nn.Linear(width, 128)

        def forward(self, ids: Any) -> Any:
            padding = ids == 0
            found = self.layers(
                self.words(ids) + self.places[: ids.shape[1]], src_key_padding_mask=padding
            )
            own = (~padding).unsqueeze(2).to(found.dtype)
            return self.head((found * own).sum(1) / own.sum(1))

    torch.manual_seed(0)
    return Encoder().to(device=device, dtype=getattr(torch, dtype)).eval()


def vectors_of(module: Any, device: str, rows: Sequence[Any]) -> Any:
    """What both contenders do with a batch of tokens (returns: a tensor on the device, rows × 128)."""
    import numpy as np
    import torch

    padded = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for place, row in zip(padded, rows, strict=True):
        place[: len(row)] = row
    with torch.inference_mode():
        ids = torch.from_numpy(padded)
        if device != "cpu":
            ids = ids.pin_memory().to(device, non_blocking=True)
        return module(ids).float()


class EncoderBackend(ModelBackend):
    """The encoder as a backend in stages."""

    model_type = "encoder_text"

    def __init__(self, size: str, device: str, dtype: str) -> None:
        self._arguments = (size, device, dtype)

    def load(self) -> None:
        """Builds the module on its device."""
        self._module = encoder(*self._arguments)
        self._tokenizer = tokenizer()

    def warmup_requests(self) -> Sequence[TextRequest]:
        """One short batch: the device's kernels are loaded before the clock runs."""
        return [TextRequest(model_name="encoder", text="a word")] * 4

    def prepare(self, request: TextRequest) -> Any:
        """Its tokens."""
        import numpy as np

        return np.array(self._tokenizer.encode_batch_fast([request.text])[0].ids)

    def size(self, prepared: Any) -> int:
        """How many they are."""
        return len(prepared)

    def infer(self, prepared: Sequence[Any]) -> Any:
        """A batch."""
        return from_device(vectors_of(self._module, self._arguments[1], prepared))

    def respond(self, requests: Sequence[TextRequest], outputs: Any) -> list[Any]:
        """The vectors."""
        return [
            VectorResponse(request_id=r.request_id, model_name=r.model_name, vector=o.tolist())
            for r, o in zip(requests, outputs, strict=True)
        ]


def by_hand(module: Any, words: Any, device: str, source: Path, sink: Path, batch: int) -> None:
    """The loop."""
    import numpy as np

    lines = source.read_bytes().splitlines()
    batches = [lines[i : i + batch] for i in range(0, len(lines), batch)]
    room = threading.Semaphore(AHEAD)

    def tokenise(some: list[bytes]) -> list[Any]:
        room.acquire()
        texts = [orjson.loads(line)["text"] for line in some]
        return [np.array(found.ids) for found in words.encode_batch_fast(texts)]

    with ThreadPoolExecutor(2) as pool, sink.open("wb") as f:
        for rows in pool.map(tokenise, batches):
            for vector in vectors_of(module, device, rows).cpu().numpy():
                f.write(orjson.dumps({"vector": vector.tolist()}) + b"\n")
            room.release()


def texts_file(path: Path, rows: int, longest: int) -> None:
    """Texts of log-normal length: half of them have fewer than 40 words."""
    rng = random.Random(1)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(rng.choices(letters, k=rng.randint(2, 5))) for _ in range(2_000)]
    with path.open("w") as f:
        for _ in range(rows):
            length = min(longest, max(3, round(rng.lognormvariate(3.7, 0.7))))
            text = " ".join(rng.choices(words, k=length))
            f.write(
                json.dumps({"model_type": "encoder_text", "model_name": "encoder", "text": text})
                + "\n"
            )


def compare(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Figures of both, and of the machine."""
    import torch

    source, theirs, ours = (folder / n for n in ("rows.jsonl", "loop.jsonl", "answers.jsonl"))
    texts_file(source, arguments.rows, 120)
    device, on_gpu = arguments.device, arguments.device != "cpu"
    model = ModelSpec(
        name="encoder",
        model_type="encoder_text",
        backend="benchmarks.gpu_encoder:EncoderBackend",
        backend_kwargs={"size": arguments.size, "device": device, "dtype": arguments.dtype},
        resources=ResourceConfig(
            num_cpus=arguments.threads, num_gpus=1 if on_gpu and arguments.ray else 0
        ),
    )
    spec = BatchSpec(
        source=str(source),
        sink=str(ours),
        batch_size=arguments.batch,
        batch_budget=arguments.budget,
        compute="actors" if arguments.ray else "local",
        num_actors=1 if arguments.ray else None,
        resume=False,
    )
    runner = BatchRunner(model, on_progress=None)
    module, words = encoder(arguments.size, device, arguments.dtype), tokenizer()

    def loop() -> float:
        started = time.perf_counter()
        by_hand(module, words, device, source, theirs, arguments.batch)
        return arguments.rows / (time.perf_counter() - started)

    def job() -> tuple[float, Any]:
        result = runner.run(spec)
        # A Ray actor loads its model in each job: that is left out. Here the model stays loaded.
        seconds = result.inference_seconds if arguments.ray else result.seconds
        return result.rows / seconds, result

    loop(), job()
    _require_same(theirs, ours)
    rounds = []
    for i in range(arguments.rounds):
        rate, result, hand = 0.0, None, 0.0
        for turn in ("job", "loop") if i % 2 else ("loop", "job"):
            if turn == "job":
                rate, result = job()
            else:
                hand = loop()
        rounds.append((rate / hand, rate, hand, result))
        print(f"ours {rate:,.0f} rows/s, loop {hand:,.0f} rows/s: {rate / hand:.3f}", flush=True)
    ratio = median(r[0] for r in rounds)
    _, rate, hand, result = min(rounds, key=lambda r: abs(r[0] - ratio))
    return {
        "ratio of rows per second, ours over the loop": round(ratio, 3),
        "ratio, each round": [round(r[0], 3) for r in rounds],
        "ours, rows per second": round(rate, 1),
        "loop, rows per second": round(hand, 1),
        "device_busy_fraction": result.device_busy_fraction,
        "padding_fraction": result.padding_fraction,
        "gpu_utilisation": result.gpu_utilisation,
        "gpu_memory_bytes": result.gpu_memory_bytes,
        "device": torch.cuda.get_device_name() if on_gpu else f"CPU ({platform.machine()})",
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "through": "a Ray actor" if arguments.ray else "this process",
        **{k: getattr(arguments, k) for k in ("size", "dtype", "rows", "batch", "budget")},
    }


def _require_same(theirs: Path, ours: Path) -> None:
    import numpy as np

    found = [
        np.array([orjson.loads(line)["vector"] for line in path.read_bytes().splitlines()])
        for path in (theirs, ours)
    ]
    np.testing.assert_allclose(*found, rtol=0.05, atol=0.05)  # of half precision


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints, and keeps the figures in ``results/gpu_encoder.json``."""
    import torch

    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if gpu else "cpu")
    parser.add_argument("--size", choices=SIZES, default="base" if gpu else "small")
    parser.add_argument("--dtype", default="float16" if gpu else "float32")
    parser.add_argument("--rows", type=int, default=100_000 if gpu else 1_000)
    parser.add_argument("--batch", type=int, default=256 if gpu else 32)
    parser.add_argument("--budget", type=int, help="a batch_budget for ours, in tokens")
    parser.add_argument("--threads", type=int, default=2, help="that prepare, in ours")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ray", action="store_true", help="a pool of one actor")
    parser.add_argument("--smoke", action="store_true", help="see that it runs; keep no figures")
    arguments = parser.parse_args(argv)
    if arguments.smoke:
        vars(arguments).update(size="tiny", rows=96, batch=16, rounds=1)
    with tempfile.TemporaryDirectory(prefix="sheaf-bench-") as folder:
        figures = compare(arguments, Path(folder))
    print(json.dumps(figures, indent=1))
    if arguments.smoke:
        return
    kept = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    budget = ", with a budget" if arguments.budget else ""
    name = f"{figures['device']}, {arguments.size}, through {figures['through']}{budget}"
    RESULT.write_text(json.dumps({**kept, name: figures}, indent=1) + "\n")


if __name__ == "__main__":
    # Under its own name, which is the one by which workers know the backend.
    from benchmarks import gpu_encoder

    gpu_encoder.main()
