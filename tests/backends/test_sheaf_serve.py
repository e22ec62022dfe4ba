"""sheaf-serve's backends through the one adapter: listed, made, and their rows validated."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys

import pytest
from pydantic import ValidationError

import sheaf_dagster as sd
from sheaf_dagster.backends import known_backends, resolve_backend, sheaf_serve
from sheaf_dagster.batch.rows.requests import RowContract
from sheaf_dagster.batch.worker.loading import ModelContext
from sheaf_dagster.contracts import contract_for, known_model_types
from sheaf_dagster.contracts.sheaf_serve import sheaf_serve_types
from tests.backends.sheaf_rows import (
    ARGUMENTS,
    ROWS,
    THEIRS,
    line,
    theirs,
)
from tests.conftest import ROOT


def test_every_backend_that_it_registers_is_listed_and_can_be_made():
    names = [f"sheaf:{name}" for name in theirs()]
    assert len(names) >= 29
    assert set(names) <= set(known_backends())

    for name in names:
        kwargs = ARGUMENTS.get(name.removeprefix("sheaf:"), {})
        spec = sd.ModelSpec(
            name="m",
            model_type=resolve_backend(name).model_type,
            backend=name,
            backend_kwargs=kwargs,
        )
        context = ModelContext.of(spec)
        made = context.backend_cls(**kwargs)
        assert type(made._backend) is theirs()[name.removeprefix("sheaf:")]
        assert made._backend.model_type == spec.model_type
        assert pickle.loads(pickle.dumps(context.backend_cls)) is context.backend_cls


@pytest.mark.parametrize("model_type", sorted(sheaf_serve_types()))
def test_every_request_type_of_its_union_validates_as_there(model_type):
    assert model_type in known_model_types()
    rows = RowContract.of(contract_for(model_type))
    good = json.loads(line(model_type))
    broken = [{k: v for k, v in good.items() if k != gone} for gone in ROWS[model_type]]
    broken += [{**good, name: {"no": ["such"]}} for name in ROWS[model_type]]

    for row in [good, *broken]:
        text = json.dumps(row).encode()
        found = rows.validate(text + b"\n", 1)
        try:
            expected = THEIRS.validate_json(text)
        except ValidationError:
            assert found.invalid_rows == 1, row
        else:
            assert found.invalid_rows == 0, found.violations
            (parsed,) = rows.parse([(1, text)], 0)
            ours = parsed.request.model_dump(exclude={"request_id", "image_uris"})
            assert ours == expected.model_dump(exclude={"request_id"})


def test_the_rows_of_this_test_are_of_all_types():
    assert set(ROWS) == set(sheaf_serve_types())


def test_a_row_of_another_type_is_refused_with_its_line():
    rows = RowContract.of(contract_for("depth"))
    found = rows.validate(line("depth") + b"\n" + line("pose") + b"\n", 1)
    assert [str(v) for v in found.violations] == [
        "line 2, field 'model_type': is 'pose', but the model serves 'depth'"
    ]


def test_listing_and_resolving_load_no_heavy_library():
    code = (
        "import sys, sheaf_dagster as sd\n"
        "from sheaf_dagster.contracts import contract_for\n"
        "from sheaf_dagster.backends import resolve_backend\n"
        "assert 'sheaf' not in sys.modules\n"
        "contract_for('time_series'), resolve_backend('chronos2')\n"
        "assert 'sheaf' not in sys.modules\n"
        "sd.known_backends(), contract_for('audio'), resolve_backend('sheaf:flux')\n"
        "print([m for m in ('ray', 'torch', 'pandas', 'transformers') if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(sd.UnknownBackendError, match=r"'sheaf:nope'.*sheaf:bark.*sheaf:whisper"):
        resolve_backend("sheaf:nope")


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(sheaf_serve, "has_sheaf_serve", lambda: False)
    monkeypatch.setattr(sheaf_serve, "_ADAPTERS", {})
    with pytest.raises(sd.MissingDependencyError, match=r"pip install 'sheaf_dagster\[sheaf\]'"):
        resolve_backend("sheaf:flux")
    assert not [name for name in known_backends() if name.startswith("sheaf:")]


def test_a_model_whose_own_package_is_missing_says_which():
    backend = resolve_backend("sheaf:kokoro")()
    with pytest.raises(sd.MissingDependencyError, match=r"'sheaf:kokoro'.*pip install 'sheaf-"):
        backend.load()
