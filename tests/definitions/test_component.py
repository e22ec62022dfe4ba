"""The component: from a defs.yaml to an asset, in process and through the real ``dg``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from dagster.components.testing import create_defs_folder_sandbox
from dagster_shared.yaml_utils.sample_yaml import generate_sample_yaml

import sheaf_dagster as sd
import tests.toys  # noqa: F401  (registers the contract)
from tests.conftest import ROOT, read_rows

TYPE = "sheaf_dagster.BatchInferenceComponent"
MODEL = {"name": "doubler", "model_type": "number", "backend": "tests.toys:Doubler"}


def attributes(**changes) -> dict[str, Any]:
    return {
        "asset": {"key": "doubled", "deps": ["numbers"]},
        "source": "{root}/in.jsonl",
        "sink": "{root}/out.jsonl",
        "compute": "local",
        **changes,
    }


@pytest.fixture
def load():
    """Builds the definitions of a defs.yaml."""
    with create_defs_folder_sandbox() as sandbox:

        def build(attrs: dict[str, Any], resources: dict[str, Any] | None = None) -> dg.Definitions:
            path = sandbox.scaffold_component(
                sd.BatchInferenceComponent, defs_yaml_contents={"type": TYPE, "attributes": attrs}
            )
            with sandbox.load_component_and_build_defs(path) as (_, defs):
                return dg.Definitions.merge(defs, dg.Definitions(resources=resources or {}))

        yield build


def spec_of(defs: dg.Definitions, key: str = "doubled") -> dg.AssetSpec:
    return defs.resolve_asset_graph().get(dg.AssetKey(key)).to_asset_spec()


def run(defs: dg.Definitions, **kwargs) -> dg.ExecuteInProcessResult:
    return defs.resolve_implicit_global_asset_job_def().execute_in_process(**kwargs)


def test_a_dozen_lines_run_a_job(load, write_rows, tmp_path, monkeypatch):
    write_rows([1, 2])
    monkeypatch.setenv("COMPONENT_ROOT", str(tmp_path))

    defs = load(
        attributes(
            model=MODEL, ray_cluster={"gpu_limit": 2}, storage={"root": "{{ env.COMPONENT_ROOT }}"}
        )
    )
    result = run(defs)

    assert result.success
    assert [r["value"] for r in read_rows(tmp_path / "out.jsonl")] == [2, 4]


def test_tables_are_read_and_written_by_suffix(load, tmp_path):
    (tmp_path / "in").mkdir()
    for day in (1, 2):
        table = pa.table({"amount": [float(day)], "shop": ["a"]})
        pq.write_table(table, tmp_path / "in" / f"{day}.parquet")

    defs = load(
        attributes(
            model=MODEL,
            ray_cluster={},
            storage={"root": str(tmp_path)},
            source="{root}/in/",
            sink="{root}/out.parquet",
            columns={"value": "amount"},
            fields={"model_name": "m"},
            keep=["shop"],
            float_type="float32",
        )
    )
    result = run(defs)

    assert result.success
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.select(["value", "shop"]).to_pylist() == [
        {"value": 2.0, "shop": "a"},
        {"value": 4.0, "shop": "a"},
    ]
    (made,) = result.asset_materializations_for_node("doubled")
    columns = {c.name: c.type for c in made.metadata["dagster/column_schema"].value.columns}
    assert (columns["value"], columns["shop"]) == ("float", "string")


def test_a_number_or_choice_may_come_from_the_environment(load, monkeypatch):
    monkeypatch.setenv("GPU_LIMIT", "2.5")
    monkeypatch.setenv("ENGINE", "ray_core")

    defs = load(
        attributes(
            model=MODEL,
            ray_cluster={"gpu_limit": "{{ env.GPU_LIMIT }}", "engine": "{{ env.ENGINE }}"},
            storage={"root": "data"},
        )
    )

    config = defs.resources["doubled__ray_cluster"].to_config()
    assert (config.gpu_limit, config.engine) == (2.5, "ray_core")


def test_components_may_share_the_projects_resources(load, write_rows, tmp_path):
    write_rows([1, 2])

    defs = load(
        attributes(model="tiny"),
        {
            "tiny": sd.ModelResource(**MODEL),
            "ray_cluster": sd.RayClusterResource(),
            "storage": sd.StorageResource(root=str(tmp_path)),
        },
    )

    assert run(defs).success


def test_inline_resources_of_two_components_do_not_meet(load):
    both = [
        load(
            attributes(
                asset={"key": key}, model={**MODEL, "name": key}, ray_cluster={},
                storage={"root": key},
            )
        )
        for key in ("a", "b")
    ]  # fmt: skip

    defs = dg.Definitions.merge(*both)

    assert {r.root for k, r in defs.resources.items() if k.endswith("storage")} == {"a", "b"}


def test_the_asset_is_as_the_file_says(load):
    defs = load(
        attributes(
            asset={
                "key": "doubled",
                "deps": ["numbers"],
                "group_name": "toys",
                "owners": ["team:toys"],
                "tags": {"tier": "prod"},
                "kinds": ["python"],
                "automation_condition": "{{ automation_condition.eager() }}",
                "partitions_def": {"type": "static", "partition_keys": ["x", "y"]},
            },
            source="{root}/{partition_key}.jsonl",
            sink="{root}/out/{partition_key}.jsonl",
            op={
                "pool": "gpu",
                "backfill_policy": {"type": "multi_run", "max_partitions_per_run": 3},
            },
            arrivals={"files_per_run": 3, "running": True},
            model=MODEL,
            ray_cluster={},
            storage={"root": "data"},
        )
    )

    spec = spec_of(defs)
    (sensor,) = defs.sensors
    (asset,) = [a for a in defs.assets if isinstance(a, dg.AssetsDefinition)]
    assert [d.asset_key.to_user_string() for d in spec.deps] == ["numbers"]
    assert (spec.group_name, list(spec.owners)) == ("toys", ["team:toys"])
    assert spec.tags["tier"] == "prod"
    assert spec.kinds == {"python", "ray"}
    assert spec.automation_condition is not None
    assert spec.partitions_def.get_partition_keys() == ["x", "y"]
    assert asset.op.pool == "gpu"
    assert asset.backfill_policy == dg.BackfillPolicy.multi_run(3)
    assert sensor.default_status == dg.DefaultSensorStatus.RUNNING
    assert asset.check_keys


def test_the_step_is_as_the_file_says(load):
    defs = load(
        attributes(
            asset={
                "key": "doubled",
                "partitions_def": {"type": "daily", "start_date": "2026-01-01"},
            },
            source="{root}/{partition_key}.jsonl",
            sink="{root}/out/{partition_key}.jsonl",
            source_partitions={"type": "hourly", "start_date": "2026-01-01-00:00"},
            batch_size="auto",
            model_asset="doubler",
            retry_policy={"max_retries": 3, "delay": 30, "backoff": "exponential"},
            check_severities={"no_row_failed": "ERROR"},
            op={"tags": {"dagster-k8s/config": {"job_spec_config": {}}}},
            model=MODEL,
            ray_cluster={},
            storage={"root": "data"},
        )
    )

    assets = {a.key.to_user_string(): a for a in defs.assets}
    step = assets["doubled"].op
    metadata = spec_of(defs).metadata
    assert set(assets) == {"doubled", "doubler"}
    assert assets["doubler"].is_observable
    assert dg.AssetKey("doubler") in assets["doubled"].asset_deps[dg.AssetKey("doubled")]
    assert "Hourly" in metadata["sheaf_dagster/source_partitions"]
    assert step.retry_policy == dg.RetryPolicy(3, 30, dg.Backoff.EXPONENTIAL)
    assert "job_spec_config" in step.tags["dagster-k8s/config"]


def test_a_model_asset_of_the_project_is_not_made_twice(load):
    resources = {"tiny": sd.ModelResource(**MODEL)}

    defs = load(
        attributes(model="tiny", model_asset="doubler", ray_cluster={}, storage={"root": "data"}),
        resources,
    )

    assert [a.key.to_user_string() for a in defs.assets] == ["doubled"]
    assert dg.AssetKey("doubler") in [d.asset_key for d in spec_of(defs).deps]


def test_a_check_of_the_file_may_hold_back_what_follows(load, write_rows, tmp_path):
    write_rows([1, 2])

    defs = load(
        attributes(
            on_error="record",
            check_severities={"no_row_failed": "ERROR"},
            model={**MODEL, "backend_kwargs": {"fail_on": 2}},
            ray_cluster={},
            storage={"root": str(tmp_path)},
        )
    )
    result = run(defs, raise_on_error=False)

    failed = [e.severity for e in result.get_asset_check_evaluations() if not e.passed]
    assert not result.success
    assert failed == [dg.AssetCheckSeverity.ERROR]


def causes_of(error: BaseException | None) -> str:
    """What an error and all that led to it say."""
    said = []
    while error is not None:
        said.append(str(error))
        error = error.__cause__ or error.__context__
    return "\n".join(said)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"check_severities": {"no_such": "ERROR"}}, "there is no check 'no_such'"),
        ({"op": {"name": "x"}}, "op takes pool, tags and backfill_policy"),
        ({"sink": "{root}/{day}.jsonl"}, "unknown placeholder {day}"),
        ({"compute": "actors"}, "compute='actors' needs num_actors"),
        ({"batch_size": 0}, "batch_size: Input should be greater than 0"),
        ({"ray_cluster": {"address": "ray://head:10001"}}, "is a Ray Client address"),
        ({"ray_cluster": {"gpu_limit": "all"}}, "unable to parse string as a number"),
        ({"ray_cluster": {"gpu_limit": -1}}, "greater than or equal to 0"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_loaded(change, message, load):
    with pytest.raises(Exception) as error:
        load(attributes(**change))

    assert message in causes_of(error.value)


@pytest.mark.parametrize("index", [0, 1])
def test_the_files_of_the_docs_load(index, load):
    page = (ROOT / "docs" / "defs-yaml.md").read_text()
    shown = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)[index])

    defs = load(shown["attributes"], {"ray_cluster": sd.RayClusterResource()} if index else None)

    assert shown["type"] == TYPE
    assert shown["attributes"]["asset"]["key"] in {a.key.to_user_string() for a in defs.assets}


def test_every_attribute_is_described_in_the_schema():
    schema = sd.BatchInferenceComponent.get_model_cls().model_json_schema()

    said = {n: f.get("description") for n, f in schema["properties"].items()}
    assert [n for n, text in said.items() if not text] == []
    assert schema["$defs"]["Model"]["properties"]["backend"]["description"]
    assert "model" in said
    assert "model_resource" not in said


def test_the_example_on_the_components_page_loads_as_it_stands(load):
    schema = sd.BatchInferenceComponent.get_model_cls().model_json_schema()
    shown = yaml.safe_load(generate_sample_yaml(TYPE, schema))

    defs = load(shown["attributes"])

    assert "..." not in str(shown)
    assert set(shown["attributes"]) == set(schema["properties"])
    assert [s.name for s in defs.sensors]
    assert spec_of(defs, "forecasts").partitions_def == dg.DailyPartitionsDefinition("2026-01-01")


def test_arrivals_need_a_source_with_the_partitions_of_the_asset(load):
    hourly = {"type": "hourly", "start_date": "2026-01-01-00:00"}
    daily = {"type": "daily", "start_date": "2026-01-01"}
    fields = attributes(
        asset={"key": "doubled", "partitions_def": daily},
        source="{root}/in/{partition_key}.jsonl",
        sink="{root}/out/{partition_key}.jsonl",
        arrivals={},
        model=MODEL,
        ray_cluster={},
        storage={"root": "data"},
    )

    same = load({**fields, "source_partitions": daily})
    with pytest.raises(Exception) as error:
        load({**fields, "source_partitions": hourly})

    assert same.sensors
    assert "reads several files for a partition" in causes_of(error.value)


def write_project(root: Path) -> Path:
    """An empty ``dg`` project by hand; its package."""
    package = root / "shop"
    (package / "defs").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "defs" / "__init__.py").touch()
    (package / "definitions.py").write_text(
        "from pathlib import Path\n\nimport dagster as dg\n\n"
        "defs = dg.load_from_defs_folder(path_within_project=Path(__file__).parent)\n"
    )
    (root / "pyproject.toml").write_text(
        '[project]\nname = "shop"\nversion = "0"\n'
        '[tool.dg]\ndirectory_type = "project"\n[tool.dg.project]\nroot_module = "shop"\n'
    )
    return package


def create_project(root: Path) -> Path:
    """The project of a new user, as Dagster's own ``create-dagster`` makes it; its package."""
    pytest.importorskip("create_dagster")
    subprocess.run(
        [_program("create-dagster"), "project", str(root), "--no-uv-sync"],
        env={**os.environ, "DAGSTER_DG_UPDATE_CHECK_ENABLED": "0"},
        check=True,
    )
    return root / "src" / "shop"


def _program(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


@pytest.fixture
def entry_points(tmp_path) -> Path:
    """A folder with the package's entry points as an installation has them."""
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    info = tmp_path / "site" / "sheaf_entry_points-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sheaf-entry-points\nVersion: 0\n")
    (info / "entry_points.txt").write_text(
        "".join(
            f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in entries.items())
            for group, entries in ours.items()
        )
    )
    return info.parent


@pytest.mark.daemon
@pytest.mark.parametrize(
    "make", [write_project, pytest.param(create_project, marks=pytest.mark.long)]
)
def test_dg_scaffolds_checks_and_names_the_line_of_a_mistake(tmp_path, entry_points, make):
    root = tmp_path / "shop"
    package = make(root)

    def dg_command(*args: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [_program("dg"), *args],
            cwd=root,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(map(str, (ROOT, package.parent, entry_points))),
                "VIRTUAL_ENV": str(Path(sys.executable).parent.parent),
            },
            capture_output=True,
            text=True,
            check=False,
        )

    made = dg_command("scaffold", "defs", TYPE, "forecasts", "--backend", "chronos2")
    file = package / "defs" / "forecasts" / "defs.yaml"
    text = file.read_text() if file.exists() else ""
    good = dg_command("check", "defs")  # which checks the YAML first
    file.write_text(text.replace("batch_size:", "bach_size:"))
    bad = dg_command("check", "yaml")

    assert made.returncode == 0, made.stderr
    assert yaml.safe_load(text)["attributes"]["model"]["backend"] == "chronos2"
    assert good.returncode == 0, good.stdout + good.stderr
    assert bad.returncode == 1
    line = text[: text.index("batch_size:")].count("\n") + 1
    assert f"defs.yaml:{line}" in bad.stdout
    assert "bach_size" in bad.stdout


def test_the_example_has_an_asset_from_a_file():
    from example_project.definitions import defs

    spec = spec_of(defs, "weekly_naive")

    assert spec.group_name == "flights"
    assert [d.asset_key.to_user_string() for d in spec.deps] == ["forecast_requests"]
