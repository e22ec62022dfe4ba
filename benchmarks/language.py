"""Chats through vLLM: ours against its own batch run, and the endpoint against a plain loop.

``make bench-language``, in the environment of ``make test-vllm``. Each comparison is of the same file,
in turn, and counts from when the model is loaded; answers must be equal.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from tests.ports import free_ports
from tests.vllm_server import ENVIRONMENT, served, words_of

RESULTS = Path(__file__).parent / "results" / "language.json"
WORDS = (Path(__file__).parents[1] / "docs" / "index.md").read_text().split()
NAME = "small"
OPTIONS = {"enforce_eager": True, "max_model_len": 1024}
IN_FLIGHT = 64
"""Of the endpoint and of the loop that it is compared with."""

_SAID = "seconds after load: "

MEMORY = {"VLLM_CPU_KVCACHE_SPACE": "2"}


def write_chats(path: Path, rows: int) -> Path:
    """Chats of 5 to 60 words, each answered with 8 to 256 tokens."""
    rng = random.Random(1)
    with path.open("w") as f:
        for i in range(rows):
            said = " ".join(rng.choices(WORDS, k=rng.randint(5, 60)))
            body = {
                "model": NAME,
                "messages": [{"role": "user", "content": said}],
                "temperature": 0,
                "max_tokens": rng.randint(8, 256),
                "ignore_eos": True,
            }
            line = {"method": "POST", "url": "/v1/chat/completions", "body": body}
            f.write(json.dumps({"custom_id": f"row-{i}", **line}) + "\n")
    return path


def ours(model: str, source: str, sink: str, compute: str) -> float:
    """Seconds of our job after the model was loaded."""
    from sheaf_dagster import BatchRunner, BatchSpec, ModelSpec

    kwargs = {"model_id": model, "dtype": "float32", "max_in_flight": 1024,
              "engine_args": OPTIONS}  # fmt: skip
    spec = ModelSpec(name=NAME, model_type="openai_batch", backend="vllm", backend_kwargs=kwargs)
    job = BatchSpec(
        source=source, sink=sink, compute=compute, num_actors=1 if compute == "actors" else None
    )  # type: ignore[arg-type]
    result = BatchRunner(spec, on_progress=None).run(job)
    return result.validation.seconds + result.inference_seconds


def theirs(model: str, source: str, sink: str, _: str) -> float:
    """Seconds that ``vllm run-batch`` takes once its engine is up."""
    from vllm.entrypoints.launchers import run_batch as module

    seconds = 0.0
    run = module.run_batch

    async def timed(*args: Any) -> None:
        nonlocal seconds
        started = time.perf_counter()
        await run(*args)
        seconds = time.perf_counter() - started

    module.run_batch = timed
    sys.argv = ["run-batch", "-i", source, "-o", sink, "--model", model, "--served-model-name",
                NAME, "--dtype", "float32", *words_of(OPTIONS)]  # fmt: skip
    asyncio.run(module.main(module.parse_args()))
    return seconds


def through_endpoint(url: str, source: str, sink: str, _: str) -> float:
    """Seconds of our job against a server, the start of the process left out."""
    from sheaf_dagster import BatchRunner, BatchSpec, ModelSpec

    spec = ModelSpec(
        name=NAME,
        model_type="openai_batch",
        backend="openai_endpoint",
        backend_kwargs={"base_url": url, "max_in_flight": IN_FLIGHT},
    )
    result = BatchRunner(spec, on_progress=None).run(
        BatchSpec(source=source, sink=sink, compute="local")
    )
    return result.validation.seconds + result.inference_seconds


def by_a_loop(url: str, source: str, sink: str, _: str) -> float:
    """Seconds of a loop over the official client, with as many requests under way."""
    from openai import AsyncOpenAI

    async def run() -> float:
        client = AsyncOpenAI(base_url=url, api_key="none", timeout=600)
        room = asyncio.Semaphore(IN_FLIGHT)
        started = time.perf_counter()
        lines = [json.loads(line) for line in Path(source).read_text().splitlines()]

        async def one(line: dict[str, Any]) -> str:
            async with room:
                body = line["body"]
                answer = await client.post("/chat/completions", body=body, cast_to=object)
            response = {"status_code": 200, "body": answer}
            return json.dumps({"custom_id": line["custom_id"], "response": response})

        answers = await asyncio.gather(*map(one, lines))
        Path(sink).write_text("\n".join(answers) + "\n")
        return time.perf_counter() - started

    return asyncio.run(run())


CASES = {f.__name__: f for f in (ours, theirs, through_endpoint, by_a_loop)}


def in_process(case: str, *arguments: str) -> float:
    """What a case measures, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.language", "--case", case, *arguments],
        env={**os.environ, **ENVIRONMENT, **MEMORY},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return next(
        float(line.removeprefix(_SAID))
        for line in done.stdout.splitlines()
        if line.startswith(_SAID)
    )


def answers_of(sink: Path) -> dict[str, Any]:
    """Of each row what was said, why it ended and how many tokens it took."""
    found = {}
    for line in sink.read_text().splitlines():
        row = json.loads(line)
        body = row["response"]["body"]
        choice, usage = body["choices"][0], body["usage"]
        tokens = usage["prompt_tokens"], usage["completion_tokens"]
        found[row["custom_id"]] = choice["message"]["content"], choice["finish_reason"], tokens
    return found


def compare(
    a: tuple[str, ...], b: tuple[str, ...], source: str, folder: Path, rounds: int
) -> dict[str, Any]:
    """Two cases in turn: seconds of each, and how many times as fast the first one is."""
    seconds: list[tuple[float, float]] = []
    equal = True
    for i in range(rounds):
        pair = []
        for case, where, *how in (a, b) if i % 2 == 0 else (b, a):
            sink = folder / f"{case}.jsonl"
            pair.append(in_process(case, where, source, str(sink), *(how or ["local"])))
        first, second = pair if i % 2 == 0 else pair[::-1]
        seconds.append((first, second))
        equal &= answers_of(folder / f"{a[0]}.jsonl") == answers_of(folder / f"{b[0]}.jsonl")
        print(f"  {first:.1f} s against {second:.1f} s: {second / first:.3f}", flush=True)
    return {
        "seconds": seconds,
        "ratio": median(second / first for first, second in seconds),
        "answers_equal": equal,
        "load_average": os.getloadavg()[0],
    }


def main(rows: int, rounds: int, parts: list[str]) -> None:
    """Runs the comparisons and writes the results."""
    from tests.backends.small_llama import save_small_llama

    figures = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory(prefix="sheaf-bench-") as d:
        folder = Path(d)
        (folder / "model").mkdir()
        model = save_small_llama(folder / "model")
        source = str(write_chats(folder / "chats.jsonl", rows))
        figures["rows"] = rows
        for mode in ("local", "actors"):
            if mode in parts:
                print(f"vllm, {mode}, over vllm run-batch", flush=True)
                figures[f"{mode} over run-batch"] = compare(
                    ("ours", model, mode), ("theirs", model), source, folder, rounds
                )
        if "endpoint" in parts:
            print("openai_endpoint over a loop", flush=True)
            with served(
                model, *free_ports(1), served_model_name=NAME, dtype="float32", **OPTIONS
            ) as up:
                url = f"{up.url}/v1"
                in_process("by_a_loop", url, source, str(folder / "warm.jsonl"), "local")
                figures["endpoint over a loop"] = compare(
                    ("through_endpoint", url), ("by_a_loop", url), source, folder, rounds
                )
    RESULTS.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", nargs=5, metavar=("CASE", "WHERE", "SOURCE", "SINK", "HOW"))
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("parts", nargs="*", default=["local", "actors", "endpoint"])
    given = parser.parse_args()
    if given.case:
        case, *arguments = given.case
        print(f"{_SAID}{CASES[case](*arguments)}", flush=True)
    else:
        main(given.rows, given.rounds, given.parts)
