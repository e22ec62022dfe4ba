"""A Chronos-Bolt of the published tiny size (random weights) against a loop over tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.common import in_turn, requests_file

ROWS = 4_800
BATCH = 64
ROUNDS = 9


def real_model(
    folder: Path, rows: int = ROWS, device: str = "cpu", rounds: int = ROUNDS
) -> dict[str, Any]:
    """Our engine in this process against a hand-written loop over the same model."""
    import torch
    from chronos import BaseChronosPipeline

    from sheaf_dagster import BatchRunner, BatchSpec, ModelSpec

    torch.set_num_threads(1)
    weights = _tiny_bolt(folder)
    source = requests_file(folder, rows)
    pipeline = BaseChronosPipeline.from_pretrained(weights, device_map=device)
    histories = [
        torch.tensor(json.loads(line)["history"], dtype=torch.float32)
        for line in source.read_bytes().splitlines()
    ]
    spec = ModelSpec(
        name="bolt",
        model_type="time_series",
        backend="chronos2",
        backend_kwargs={"model_id": weights, "device": device},
    )
    job = BatchSpec(
        source=str(source),
        sink=str(folder / "bolt.out"),
        batch_size=BATCH,
        compute="local",
        resume=False,
    )
    runner = BatchRunner(spec, on_progress=None)
    results = []

    def by_hand() -> None:
        for i in range(0, rows, BATCH):
            pipeline.predict(histories[i : i + BATCH], prediction_length=24).tolist()

    figures = in_turn(
        "ours over the loop",
        rows,
        {"by hand": by_hand, "ours, local": lambda: results.append(runner.run(job))},
        rounds,
    )
    figures["busy"] = results[-1].device_busy_fraction
    return figures


def _tiny_bolt(folder: Path) -> str:
    import torch
    from chronos.chronos_bolt import ChronosBoltModelForForecasting
    from transformers import T5Config

    torch.manual_seed(0)
    config = T5Config(
        d_model=256,
        d_kv=64,
        d_ff=1024,
        num_layers=4,
        num_decoder_layers=4,
        num_heads=4,
        vocab_size=2,
        decoder_start_token_id=0,
        pad_token_id=0,
        architectures=["ChronosBoltModelForForecasting"],
        feed_forward_proj="relu",
        chronos_config={
            "context_length": 2048,
            "prediction_length": 64,
            "input_patch_size": 16,
            "input_patch_stride": 16,
            "quantiles": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9],
            "use_reg_token": True,
        },
    )
    config.chronos_pipeline_class = "ChronosBoltPipeline"
    ChronosBoltModelForForecasting(config).save_pretrained(folder / "bolt")
    return str(folder / "bolt")
