"""The docs: their code runs, their commands exist, and nothing public is left out."""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import dagster as dg
import pytest
import yaml

import sheaf_dagster as sd
from tests.conftest import ROOT

PACKAGE_FILES = sorted((ROOT / "sheaf_dagster").rglob("*.py"))

DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [ROOT / "README.md", *DOCS]


def blocks(page: Path, language: str) -> list[str]:
    found = re.findall(
        rf"^```{language}[^\n]*\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE
    )
    return [block.strip() for block in found]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.model
@pytest.mark.parametrize("page", [p for p in DOCS if blocks(p, "python")], ids=name)
def test_the_code_of_a_page_runs_from_top_to_bottom(page, tmp_path):
    (tmp_path / "page.py").write_text("\n\n".join(blocks(page, "python")) + "\n")

    done = subprocess.run(
        [sys.executable, "page.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_rows_shown_are_json_and_requests_match_their_contract(page):
    from sheaf_dagster.contracts import contract_for

    for block in blocks(page, "json"):
        for line in block.splitlines():
            row = json.loads(line)
            if "model_type" in row:
                contract_for(row["model_type"]).request.model_validate(row)
            elif "custom_id" in row:
                contract_for("openai_batch").request.model_validate(row)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_run_config_shown_is_accepted(page):
    asset = sd.build_batch_inference_asset(
        "forecasts", source="{root}/a.jsonl", sink="{root}/b.jsonl"
    )
    model = sd.ModelSpec(name="m", model_type="time_series", backend="statsforecast")
    resources = {
        "model": sd.ModelResource.from_spec(model),
        "ray_cluster": sd.RayClusterResource(),
        "storage": sd.StorageResource(root="/data"),
    }
    job = dg.Definitions([asset], resources=resources).resolve_implicit_global_asset_job_def()
    for block in blocks(page, "ya?ml"):
        parsed = yaml.safe_load(block)
        assert isinstance(parsed, (dict, list))
        if "ops" in parsed:
            assert dg.validate_run_config(job, parsed)


def backends_in_python(code: str) -> list[tuple[str, list[str]]]:
    """Each backend that a call names, with the names of its arguments."""
    found = []
    for call in (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)):
        given = {k.arg: k.value for k in call.keywords}
        if isinstance(given.get("backend"), ast.Constant):
            arguments = given.get("backend_kwargs")
            keys = arguments.keys if isinstance(arguments, ast.Dict) else []
            found.append((given["backend"].value, [ast.literal_eval(key) for key in keys]))
    return found


def backends_in_yaml(value: object) -> list[tuple[str, list[str]]]:
    if isinstance(value, list):
        return [found for one in value for found in backends_in_yaml(one)]
    if not isinstance(value, dict):
        return []
    found = [pair for one in value.values() for pair in backends_in_yaml(one)]
    if isinstance(value.get("backend"), str):
        found.append((value["backend"], list(value.get("backend_kwargs") or {})))
    return found


def test_backends_shown_take_the_arguments_that_they_are_shown_with():
    from sheaf_dagster.backends.registry import known_backends, resolve_backend

    example = ROOT / "example_project"
    code = [*example.rglob("*.py")]
    python = [b for p in PAGES for b in blocks(p, "python")] + [p.read_text() for p in code]
    settings = [b for p in PAGES for b in blocks(p, "ya?ml")]
    settings += [p.read_text() for p in example.rglob("*.yaml")]
    shown = [pair for block in python for pair in backends_in_python(block)]
    shown += [p for s in settings for one in yaml.safe_load_all(s) for p in backends_in_yaml(one)]

    # A page's own backends, such as "word_list", are made by its code, which runs above.
    known = {*known_backends(), *(b for b, _ in shown if b.startswith("example_project."))}
    checked = [(backend, arguments) for backend, arguments in shown if backend in known]
    for backend, arguments in checked:
        inspect.signature(resolve_backend(backend)).bind(**dict.fromkeys(arguments))
    assert {"vllm", "openai_endpoint", "image_embedder"} <= {backend for backend, _ in checked}
    assert any(backend.startswith("example_project.") for backend, _ in checked)


def test_the_table_of_deviations_names_each_backend_with_what_it_counts():
    from sheaf_dagster.backends.registry import _BUILTIN
    from sheaf_dagster.contracts.base import DEVIATIONS

    page = (ROOT / "docs" / "reliability.md").read_text()
    _, _, table = page.partition("| backend | makes an error row of | counts as |")
    told: dict[str, set[str]] = {}
    for row in table.partition("\n\n")[0].splitlines()[2:]:
        names, _, counts = row.strip("|").split(" | ")
        told |= dict.fromkeys(re.findall(r"`(\w+)`", names), {d for d in DEVIATIONS if d in counts})

    def noted(module: str, seen: set[str]) -> set[str]:
        """What a backend's module, and those that it uses, note of answers."""
        seen.add(module)
        text = (ROOT / f"{module.replace('.', '/')}.py").read_text()
        used = re.findall(
            r"^from (sheaf_dagster\.backends\.(?!base)\S+) import", text, re.MULTILINE
        )
        found = {d for d in DEVIATIONS if re.search(rf'(deviates\(|append\(|\[)"{d}"[)\]]', text)}
        return found.union(*(noted(other, seen) for other in used if other not in seen))

    assert told.keys() == _BUILTIN.keys()
    for backend, place in _BUILTIN.items():
        if backend != "sentence_transformers":  # it shares a module with what generates
            assert noted(place.partition(":")[0], set()) == told[backend], backend


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_shown_exist(page):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    lines = [line for block in blocks(page, "(?:shell|bash|sh)") for line in block.splitlines()]
    for line in filter(None, (line.split("#")[0].strip() for line in lines)):
        words = [w for w in line.split() if "=" not in w or w.startswith("-")]
        program = words[0]
        if program == "make":
            assert words[1] in targets, line
        for group in re.findall(r"sheaf_dagster\[([\w,-]+)\]", line):
            assert set(group.split(",")) <= set(extras), line
        known = program in project.get("scripts", {})
        assert known or _is_program(program), line


def _is_program(program: str) -> bool:
    import shutil

    beside = Path(sys.executable).parent / program
    return beside.exists() or shutil.which(program) is not None or program.startswith("kube")


def test_every_error_has_an_entry_in_troubleshooting():
    entries = set(
        re.findall(r"^### (\w+)$", (ROOT / "docs/troubleshooting.md").read_text(), re.MULTILINE)
    )
    from sheaf_dagster import errors

    assert entries == set(errors.__all__) - {"SheafError"}


def test_every_public_name_is_in_the_reference():
    pages = "\n".join(p.read_text() for p in (ROOT / "docs/reference").glob("*.md"))
    shown = {path.rsplit(".", 1)[-1] for path in re.findall(r"^::: ([\w.]+)$", pages, re.MULTILINE)}
    from sheaf_dagster import errors

    missing = set(sd.__all__) - shown - set(errors.__all__) - {"__version__"}
    assert not missing, f"add them to docs/reference: {sorted(missing)}"


def test_the_walks_through_the_code_name_what_is_there():
    page = (ROOT / "docs/architecture.md").read_text()
    pictures = "\n".join(re.findall(r"^```\n(.*?)^```", page, re.MULTILINE | re.DOTALL))
    modules = {str(p.relative_to(ROOT / "sheaf_dagster")): p for p in PACKAGE_FILES}
    defined = {
        name
        for path in PACKAGE_FILES
        for name in re.findall(r"^ *(?:class|(?:async )?def) (\w+)", path.read_text(), re.MULTILINE)
    }

    files = set(re.findall(r"[\w/]+\.py\b", page))
    pictures = re.sub(r"[\w/]+\.py\b", "", pictures)
    names = set(re.findall(r"\b(?:[A-Z]+[a-z]+[A-Z]\w*|\w+_\w+)\b", pictures))
    names |= {
        part for dotted in re.findall(r"\b[A-Z]\w+\.\w+", pictures) for part in dotted.split(".")
    }

    assert len(files) > 20
    assert [f for f in files if not any(m == f or m.endswith(f"/{f}") for m in modules)] == []
    assert sorted(names - defined - {"AssetMaterialization", "ray_job"}) == []


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    reference = (tmp_path / "site/reference/assets/index.html").read_text()
    assert "build_batch_inference_asset" in reference
    assert "progress_every_s" in reference
