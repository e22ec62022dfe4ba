"""Imports go one way, and importing costs little."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "sheaf_dagster"
MAY_IMPORT = {
    "version": set(),
    "masking": set(),
    "errors": {"masking"},
    "environment": {"errors"},
    "protocols": {"errors"},
    "contracts": {"errors"},
    "backends": {"errors", "masking", "environment", "protocols", "contracts"},
    "storage": {"errors", "masking", "protocols"},
    "plots": set(),
    "report": {"errors", "contracts", "plots", "version"},
    "batch": {
        "errors",
        "masking",
        "environment",
        "protocols",
        "contracts",
        "backends",
        "storage",
        "version",
        "plots",
        "report",
    },
    "testing": {"backends", "batch", "contracts", "storage"},
    "pipes": {"batch"},
    "definitions": {
        "errors",
        "environment",
        "contracts",
        "plots",
        "report",
        "batch",
        "storage",
        "pipes",
        "version",
    },
    "cli": {"errors", "contracts", "backends", "report", "batch", "definitions", "version"},
}


def imported(path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names.update(a.name for a in node.names)
    return names


@pytest.mark.parametrize("layer", MAY_IMPORT)
def test_imports_point_downwards(layer):
    files = list((PACKAGE / layer).rglob("*.py")) or [PACKAGE / f"{layer}.py"]
    for path in files:
        if path.name == "errors.py":
            continue  # names a report type for type checkers alone
        for name in imported(path):
            if name.startswith("sheaf_dagster."):
                target = name.split(".")[1]
                assert target == layer or target in MAY_IMPORT[layer], f"{path.name} imports {name}"
            if layer in ("contracts", "storage", "backends", "plots", "report"):
                assert name.split(".")[0] not in ("ray", "dagster"), f"{path.name} imports {name}"
            if layer in ("batch", "cli"):
                assert name.split(".")[0] != "dagster", f"{path.name} imports {name}"


def imported_with(path, modules: frozenset[str]) -> set[str]:
    """Modules of ours that a module imports where it begins, for type checkers alone or not."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    waiting, found = [ast.parse(path.read_text())], set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.ImportFrom) and node.module:
            # ``from package import x`` is of the module x where there is one.
            found |= {f"{node.module}.{a.name}" for a in node.names} & modules or {node.module}
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        waiting += [n for n in ast.iter_child_nodes(node) if not isinstance(n, functions)]
    return found & modules


def test_no_imports_go_round_in_a_circle():
    paths = {
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
        for p in PACKAGE.rglob("*.py")
    }
    graph = {name: imported_with(path, frozenset(paths)) for name, path in paths.items()}

    TopologicalSorter(graph).prepare()  # a CycleError names the modules


@pytest.mark.parametrize(
    "statement",
    [
        "import sheaf_dagster",
        "from sheaf_dagster import BatchRunner, ModelSpec",
        "import example_project.definitions",
        "import sheaf_dagster.cli",
    ],
)
def test_importing_loads_neither_ray_nor_torch(statement):
    code = f"{statement}\nimport sys\nprint([m for m in ('ray', 'torch', 'pandas', 'transformers') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_jobs_coordinator_is_up_without_pydantic_and_fsspec():
    code = "import sheaf_dagster.batch.ray.coordinator, sys\nprint([m for m in ('pydantic', 'fsspec') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_worker_makes_the_types_of_its_rows_and_the_store_of_its_files_alone():
    code = (
        "import sys, sheaf_dagster.batch.ray.worker, sheaf_dagster.contracts.tabular\n"
        "print(sorted(m.rpartition('.')[2] for m in sys.modules if m.startswith(("
        "'sheaf_dagster.contracts.t', 'sheaf_dagster.contracts.o', 'sheaf_dagster.storage.stores.'))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "['base', 'tabular', 'tokens']"


def test_every_public_name_resolves():
    import sheaf_dagster as sd

    assert all(getattr(sd, name) is not None for name in sd.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        sd.nonsense  # noqa: B018


def test_a_module_of_the_engine_room_holds_one_noun():
    lengths = {p: len(p.read_text().splitlines()) for p in (PACKAGE / "batch").rglob("*.py")}

    too_long = {str(p.relative_to(ROOT)): n for p, n in lengths.items() if n > 350}
    assert not too_long, f"look for a second noun in {too_long}"


def test_what_test_modules_share_is_in_none_of_them():
    for path in (ROOT / "tests").rglob("*.py"):
        for name in imported(path):
            last = name.split(".")[-1]
            assert not (name.startswith("tests.") and last.startswith("test_")), (
                f"{path.name} imports {name}; move what both need into a module beside them"
            )
