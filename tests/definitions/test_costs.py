"""What answers cost: told by a materialisation, and known before the next one."""

from __future__ import annotations

import json

import dagster as dg
import pytest
import yaml
from click.testing import CliRunner

import sheaf_dagster as sd
from sheaf_dagster.cli import main
from tests.api_server import ApiServer

pytest.importorskip("openai")
pytest.importorskip("aiolimiter")

PRICES = {"prompt": 2.0, "completion": 8.0}


def test_a_materialisation_tells_its_cost_and_an_estimate_goes_by_it(tmp_path, monkeypatch):
    def write(name: str, rows: int, text: str) -> str:
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": 50}
        line = {"method": "POST", "url": "/v1/chat/completions", "body": body}
        lines = (json.dumps({**line, "custom_id": str(i)}) + "\n" for i in range(rows))
        (tmp_path / name).write_text("".join(lines))
        return str(tmp_path / name)

    (tmp_path / "home").mkdir()
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    server = ApiServer()
    model = {"name": "m", "model_type": "openai_batch", "backend": "openai_endpoint",
             "backend_kwargs": {"base_url": server.url}}  # fmt: skip
    answers = sd.build_batch_inference_asset(
        "answers",
        source=write("chats.jsonl", 5, "abcdefgh"),
        sink=str(tmp_path / "answers.jsonl"),
        compute="local",
        batch=sd.BatchOptions(price_per_million=PRICES, max_cost=1.0),
    )
    resources = {
        "model": sd.ModelResource(**model),
        "ray_cluster": sd.RayClusterResource(),
        "storage": sd.StorageResource(root=str(tmp_path)),
    }
    with dg.DagsterInstance.get() as instance:
        done = dg.materialize([answers], resources=resources, instance=instance)
        logs = [r.user_message for r in instance.all_logs(done.run_id)]
    server.stop()
    (made,) = done.asset_materializations_for_node("answers")
    (tmp_path / "job.yaml").write_text(
        yaml.safe_dump(
            {
                "model": model,
                "batch": {
                    "source": write("more.jsonl", 100, "a" * 40),
                    "sink": str(tmp_path / "more_answers.jsonl"),
                    "price_per_million": PRICES,
                },
            }
        )
    )
    command = ["estimate", str(tmp_path / "job.yaml"), "--asset", "answers"]
    found = json.loads(CliRunner().invoke(main, [*command, "--json"]).stdout)
    told = CliRunner().invoke(main, command)

    cost = made.metadata["cost"].value
    assert cost == made.metadata["run_cost"].value == pytest.approx(5 * 8 * (2.0 + 8.0) / 1e6)
    assert any("40 prompt tokens" in line and "at a cost of 0.0004" in line for line in logs)
    assert (found["rows"], found["prompt_tokens"], found["completion_tokens"]) == (100, 1000, 800)
    assert found["cost"] == pytest.approx((1000 * 2.0 + 800 * 8.0) / 1e6)
    assert found["seconds"] > 0
    assert told.exit_code == 0
    assert "800" in told.stdout
    assert "1 materialisations of answers" in told.stdout
    assert not (tmp_path / "more_answers.jsonl").exists()


def test_an_estimate_without_an_asset_says_what_it_would_take_to_know(tmp_path, monkeypatch):
    (tmp_path / "in.jsonl").write_text('{"model_name": "m", "text": "abcdefgh"}\n')
    (tmp_path / "job.yaml").write_text(
        yaml.safe_dump(
            {
                "model": {"name": "m", "model_type": "text", "backend": "vllm"},
                "batch": {"source": str(tmp_path / "in.jsonl"), "sink": "out.jsonl"},
            }
        )
    )
    monkeypatch.delenv("DAGSTER_HOME", raising=False)

    told = CliRunner().invoke(main, ["estimate", str(tmp_path / "job.yaml")])
    lost = CliRunner().invoke(main, ["estimate", str(tmp_path / "job.yaml"), "--asset", "answers"])

    assert told.exit_code == 0
    assert "name an asset with --asset" in told.stdout
    assert "price_per_million" in told.stdout
    assert lost.exit_code == 2
    assert "there is no Dagster instance" in lost.stderr
