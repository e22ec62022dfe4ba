"""Packages that offer backends and can't be imported: the others are listed, and it is said why."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from sheaf_dagster import SpecError, UnknownBackendError
from sheaf_dagster.backends import known_backends, resolve_backend
from tests.conftest import ROOT

FAILURES = {
    "an import": ("import no_such_library", "ModuleNotFoundError: No module named 'no_such"),
    "a fault": ("raise RuntimeError('built for another ABI')", "RuntimeError: built for another"),
    "a syntax error": ("def (:", "SyntaxError: "),
}


def offer(site, package: str, code: str, entry_points: str = "") -> None:
    """An installed package, as pip leaves it."""
    (site / f"{package}-0.dist-info").mkdir()
    (site / f"{package}-0.dist-info" / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {package.replace('_', '-')}\nVersion: 0\n"
    )
    (site / f"{package}-0.dist-info" / "entry_points.txt").write_text(entry_points)
    module = site / package.removesuffix("_serve")
    module.mkdir()
    (module / "__init__.py").write_text(code)


@pytest.mark.parametrize("failure", FAILURES)
def test_a_broken_package_is_listed_and_says_what_is_wrong_where_it_is_named(
    failure, tmp_path, monkeypatch
):
    code, said = FAILURES[failure]
    package = f"offers_{failure.replace(' ', '_')}"
    offered = f"[sheaf_dagster.backends]\nbroken = {package}:Backend\n"
    offer(tmp_path, package, code, offered)
    monkeypatch.syspath_prepend(str(tmp_path))

    assert {"broken", "chronos2"} <= set(known_backends())
    with pytest.raises(UnknownBackendError) as by_name:
        resolve_backend("broken")
    with pytest.raises(UnknownBackendError) as by_path:
        resolve_backend(f"{package}:Backend")

    assert f"'broken' is offered by {package.replace('_', '-')}" in str(by_name.value)
    assert all(said in str(e.value) for e in (by_name, by_path))
    assert "repair or remove that package" in str(by_name.value)


def test_an_error_of_ours_at_import_is_told_as_it_is(tmp_path, monkeypatch):
    code = "from sheaf_dagster import SpecError\nraise SpecError('set SHOP_HOME')"
    offer(tmp_path, "shop", code, "[sheaf_dagster.backends]\nshop = shop:Backend\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    for name in ("shop", "shop:Backend"):
        with pytest.raises(SpecError, match=r"^set SHOP_HOME$"):
            resolve_backend(name)


LISTED = """
import json, logging, sheaf_dagster as sd
from sheaf_dagster.backends import resolve_backend
from sheaf_dagster.contracts import known_model_types

logging.basicConfig(format="%(levelname)s %(message)s")
errors = []
for name in ("sheaf:flux", "nonsense"):
    try:
        resolve_backend(name)
    except sd.SheafError as e:
        errors.append([type(e).__name__, str(e)])
types = known_model_types()
print(json.dumps([sd.known_backends(), sd.known_backends(), types, known_model_types(), errors]))
"""


@pytest.mark.parametrize("failure", ["an import", "a fault"])
def test_a_broken_sheaf_serve_hides_no_other_backend_and_is_reported_once(failure, tmp_path):
    code, said = FAILURES[failure]
    offer(tmp_path, "sheaf_serve", code)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))}

    done = subprocess.run(
        [sys.executable, "-c", LISTED], env=env, capture_output=True, text=True, check=True
    )
    names, again, types, types_again, errors = json.loads(done.stdout)

    assert names == again and {"chronos2", "sklearn"} <= set(names)
    assert not [name for name in names if name.startswith("sheaf:")]
    assert types == types_again and {"tabular", "time_series"} <= set(types)
    (flux, flux_text), (nonsense, nonsense_text) = errors
    assert flux == "MissingDependencyError" and nonsense == "UnknownBackendError"
    assert said in flux_text and "pip install --force-reinstall sheaf-serve" in flux_text
    assert "chronos2" in nonsense_text
    assert done.stderr.count("some backends are left out: sheaf-serve is installed but") == 1
    assert done.stderr.count("some model types are left out: sheaf-serve is installed but") == 1
