"""Figures in prose are those of the last benchmarks."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.conftest import ROOT

ORDINALS = {12: "twelfth", 13: "thirteenth", 14: "fourteenth", 15: "fifteenth", 16: "sixteenth"}


def results(part: str) -> dict:
    return json.loads((ROOT / "benchmarks/results" / f"{part}.json").read_text())


def ratios(*names: str) -> list[float]:
    found = results("throughput")["ratios"]
    return [found[name] for name in names]


def slowest_tick() -> str:
    seconds = max(
        value
        for scene in results("arrivals").values()
        for name, value in scene.items()
        if name.endswith("_seconds") and "cpu" not in name
    )
    return ORDINALS[round(60 / seconds)]


def ratio(part: str, name: str) -> float:
    return results(part)["ratios"][name]


def of_encoder(how: str = "this process") -> dict[str, Any]:
    return results("gpu_encoder")[f"NVIDIA H200, base, through {how}"]


def on_a_gpu(how: str = "this process") -> float:
    return of_encoder(how)["ratio of rows per second, ours over the loop"]


def of_gpu_backends() -> list[float]:
    found = [
        results("gpu_backends")[n]["ratios"] for n in ("text_embedder", "images", "real_model")
    ]
    return [ratio for ratios in found for ratio in ratios.values()]


def of_processes() -> tuple[float, float, float]:
    each = results("processes")["each round"]
    return ratio("processes", "processes over threads"), min(each), max(each)


def chats(part: str) -> tuple[float, float, float]:
    """The middle ratio, the least and the largest; only where the answers were the same."""
    figures = results("language")[part]
    assert figures["answers_equal"]
    each = [theirs / ours for ours, theirs in figures["seconds"]]
    return figures["ratio"], min(each), max(each)


def of_tables(name: str) -> tuple[float, float, float]:
    each = results("tables")["each round"][name]
    return ratio("tables", name), min(each), max(each)


def of_reuse(*names: str) -> list[float]:
    return [ratio("reuse", name) for name in names]


def percent(*names: str) -> list[float]:
    return [100 * value for value in of_reuse(*names)]


LOOPS = ("tasks over loop, 1M", "actors over loop, 1M")
PEER_LOOPS = ("tasks over sheaf-serve's loop, 1M", "actors over sheaf-serve's loop, 1M")


@pytest.mark.parametrize(
    ("page", "said"),
    [
        (
            "benchmarks/README.md",
            "tasks {:.1f} and actors {:.1f} times the peer at 100,000 rows".format(
                *ratios("tasks over peer, 100k", "actors over peer, 100k")
            ),
        ),
        (
            "benchmarks/README.md",
            "tasks {:.1f} times raw Ray Data".format(*ratios("tasks over raw Ray Data, 100k")),
        ),
        (
            "benchmarks/README.md",
            "{:.2f} and {:.2f} times a loop over sheaf-serve's contracts".format(
                *ratios(*PEER_LOOPS)
            ),
        ),
        ("benchmarks/README.md", "{:.2f} and {:.2f} times one over ours".format(*ratios(*LOOPS))),
        (
            "benchmarks/README.md",
            f"{ratio('real_model', 'ours over the loop'):.2f} times the loop",
        ),
        (
            "benchmarks/README.md",
            f"{ratio('images', 'ours over the DataLoader'):.2f} times the DataLoader",
        ),
        (
            "benchmarks/README.md",
            "{:.2f} times the rate of `vllm run-batch` ({:.2f} to {:.2f}, time after load)".format(
                *chats("local over run-batch")
            ),
        ),
        (
            "benchmarks/README.md",
            "{:.2f} times from an actor on Ray ({:.2f} to {:.2f};".format(
                *chats("actors over run-batch")
            ),
        ),
        (
            "benchmarks/README.md",
            "{:.2f} times the loop ({:.2f} to {:.2f})".format(*chats("endpoint over a loop")),
        ),
        (
            "benchmarks/README.md",
            "{:.2f} times the loop ({:.2f} to {:.2f}), and the GPU works for {:.2f} of the time".format(
                on_a_gpu(),
                min(of_encoder()["ratio, each round"]),
                max(of_encoder()["ratio, each round"]),
                of_encoder()["gpu_utilisation"],
            ),
        ),
        (
            "CHANGELOG.md",
            "from 0.80 to {:.2f} times, and the GPU works for {:.2f} of the time".format(
                on_a_gpu(), of_encoder()["gpu_utilisation"]
            ),
        ),
        (
            "benchmarks/README.md",
            "{:.2f} times the rate of threads ({:.2f} to {:.2f})".format(*of_processes()),
        ),
        ("benchmarks/README.md", f"an actor of Ray {on_a_gpu('a Ray actor'):.2f} times"),
        (
            "benchmarks/README.md",
            f"with a `batch_budget` {on_a_gpu('this process, with a budget'):.2f} times",
        ),
        (
            "benchmarks/README.md",
            "texts {:.2f} times `encode` with the default settings and {:.2f} with a `batch_budget`, "
            "images {:.2f} times a DataLoader of 16 processes, Chronos-Bolt tiny {:.2f} times".format(
                *of_gpu_backends()
            ),
        ),
        (
            "benchmarks/README.md",
            "{:.2f} times its rate with the default settings, {:.2f} with a `batch_budget`".format(
                *(
                    results("text_embedder")["ratios"][f"ours ({name}) over encode"]
                    for name in ("default", "batch_budget")
                )
            ),
        ),
        (
            "benchmarks/README.md",
            "runs for {:.3f} of the worker's time and {:.3f} of the whole job's".format(
                results("stages")["ours, local"]["busy"],
                results("stages")["ratios"]["time of the device stage over ours"],
            ),
        ),
        (
            "benchmarks/README.md",
            "{:.2f} times the CPU of one as JSON lines ({:.2f} to {:.2f})".format(
                *of_tables("CPU of a row, Parquet over JSON lines")
            ),
        ),
        (
            "CHANGELOG.md",
            "Parquet in and out takes {:.2f} times the CPU of JSON lines, and {:.2f} times with a model "
            "in columns (the aim was half). By tasks, such a model runs at {:.2f} times".format(
                ratio("tables", "CPU of a row, Parquet over JSON lines"),
                ratio("tables", "CPU of a row, Parquet in columns over JSON lines"),
                ratio("tables", "Parquet in columns by tasks over Ray Data"),
            ),
        ),
        (
            "benchmarks/README.md",
            "with a model in columns {:.2f} times ({:.2f} to {:.2f}), and".format(
                *of_tables("CPU of a row, Parquet in columns over JSON lines")
            ),
        ),
        (
            "benchmarks/README.md",
            "with a model in columns {:.2f} times ({:.2f} to {:.2f}). Ray".format(
                *of_tables("Parquet in columns by tasks over Ray Data")
            ),
        ),
        (
            "benchmarks/README.md",
            "{:.2f} times the bytes on disk".format(
                ratio("tables", "bytes of the output, Parquet over JSON lines")
            ),
        ),
        (
            "benchmarks/README.md",
            "By tasks, {:.2f} times the rate of Ray Data ({:.2f} to {:.2f})".format(
                *of_tables("Parquet by tasks over Ray Data")
            ),
        ),
        (
            "benchmarks/README.md",
            "1 % changed takes {:.1f} % of a full run, and nothing changed {:.1f} %".format(
                *percent("1 % changed over a full run", "nothing changed over a full run")
            ),
        ),
        (
            "benchmarks/README.md",
            "{:.2f} times a plain run where nothing changed, {:.2f} with 1 % changed, {:.2f} at the "
            "first run, {:.2f} where everything changed. Rows without ids take {:.2f} times.".format(
                *of_reuse(
                    "nothing changed over plain",
                    "1 % changed over plain",
                    "first run over plain",
                    "everything changed over plain",
                    "plain, rows without ids over plain",
                )
            ),
        ),
        (
            "benchmarks/README.md",
            "The index has {:.1f} % of the output's size, and the driver grows by {:.0f} MB".format(
                100 * ratio("reuse", "index over output"), ratio("reuse", "driver growth, MB")
            ),
        ),
        (
            "CHANGELOG.md",
            "takes {:.2f} times a plain run at its first run".format(
                *of_reuse("first run over plain")
            ),
        ),
        ("benchmarks/README.md", f"the slowest takes a {slowest_tick()} of them"),
        (
            "CHANGELOG.md",
            "{:.2f} to {:.2f} times the rate".format(*sorted(ratios(*LOOPS))),
        ),
        (
            "CHANGELOG.md",
            "{:.2f} to {:.2f} times that of one over".format(*sorted(ratios(*PEER_LOOPS))),
        ),
    ],
)
def test_prose_says_what_was_measured(page, said):
    text = " ".join((ROOT / page).read_text().split())

    assert said in text
