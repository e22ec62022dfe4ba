"""Backends of sheaf-serve's kind, in a module that SHEAF_EXTRA_BACKENDS names."""

from __future__ import annotations

import sys

import pytest

import sheaf_dagster as sd
from sheaf_dagster.backends import known_backends, resolve_backend, sheaf_serve
from sheaf_dagster.contracts import contract_for
from tests.backends.sheaf_rows import (
    diffusion,
    theirs,
)

EXTRA = """
import asyncio
from sheaf.api.audio import TTSRequest
from sheaf.api.base import ModelType
from sheaf.api.diffusion import DiffusionRequest, DiffusionResponse
from sheaf.backends.base import ModelBackend
from sheaf.registry import register_backend


def answer(request, text):
    return DiffusionResponse(
        request_id=request.request_id, model_name=request.model_name, image_b64="aGk=",
        height=request.height, width=request.width, seed=request.seed or 0,
        metadata={"text": text},
    )


@register_backend("extra-async")
class Native(ModelBackend):
    model_type = ModelType.DIFFUSION

    def load(self): pass

    def predict(self, request): raise AssertionError("it is an asynchronous one")

    async def async_predict(self, request):
        await asyncio.sleep(0)
        return answer(request, request.prompt)


@register_backend("extra-lora")
class WithAdapters(ModelBackend):
    model_type = ModelType.DIFFUSION

    def load(self): self.active = None

    def supports_lora(self): return True

    def load_adapters(self, adapters): self.known = sorted(adapters)

    def set_active_adapters(self, names, weights): self.active = dict(zip(names, weights))

    def predict(self, request): raise AssertionError("batches only")

    def batch_predict(self, requests):
        return [answer(r, f"{self.active} {len(requests)} of {self.known}") for r in requests]
"""


@pytest.fixture
def extra(tmp_path, monkeypatch):
    (tmp_path / "extra_sheaf_backends.py").write_text(EXTRA)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("SHEAF_EXTRA_BACKENDS", "extra_sheaf_backends")
    yield
    for name in ("extra-async", "extra-lora"):
        theirs().pop(name, None)
        sheaf_serve._ADAPTERS.pop(f"sheaf:{name}", None)
    sys.modules.pop("extra_sheaf_backends", None)


def test_an_extra_module_that_is_broken_hides_no_built_in_backend(tmp_path, monkeypatch):
    (tmp_path / "extra_that_breaks.py").write_text("raise OSError('no licence')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("SHEAF_EXTRA_BACKENDS", "extra_that_breaks")

    assert {"sheaf:flux", "chronos2"} <= set(known_backends())
    assert resolve_backend("sheaf:flux").model_type == "diffusion"
    with pytest.raises(sd.SpecError, match=r"'sheaf:mine'.*'extra_that_breaks'.*OSError: no lic"):
        resolve_backend("sheaf:mine")


def test_backends_that_are_asynchronous_are_awaited(extra):
    backend = resolve_backend("sheaf:extra-async")()
    backend.load()

    answers = backend.batch_predict([diffusion(i, prompt=f"cat {i}") for i in range(3)])
    backend.close()

    assert [a.metadata["text"] for a in answers] == ["cat 0", "cat 1", "cat 2"]


def test_lora_adapters_are_chosen_row_by_row(extra):
    lora = {"adapters": {"ink": {"source": "a"}, "oil": {"source": "b", "weight": 0.5}}}
    backend = resolve_backend("sheaf:extra-lora")(lora=lora)
    backend.load()

    answers = backend.batch_predict(
        [diffusion(0, adapters=["ink"]), diffusion(1), diffusion(2, adapters=["ink"])]
        + [diffusion(3, adapters=["ink", "oil"])]
    )

    assert [a.request_id.int for a in answers] == [0, 1, 2, 3]
    assert [a.metadata["text"] for a in answers] == [
        "{'ink': 1.0} 2 of ['ink', 'oil']",
        "{} 1 of ['ink', 'oil']",
        "{'ink': 1.0} 2 of ['ink', 'oil']",
        "{'ink': 1.0, 'oil': 0.5} 1 of ['ink', 'oil']",
    ]


def test_adapters_and_feature_references_need_what_resolves_them(extra):
    backend = resolve_backend("sheaf:extra-lora")()
    backend.load()
    with pytest.raises(ValueError, match=r"backend_kwargs\['lora'\]"):
        backend.batch_predict([diffusion(0, adapters=["ink"])])

    forecaster = resolve_backend("sheaf:chronos2")()
    ref = {"feature_view": "a", "feature_name": "b", "entity_key": "c", "entity_value": "d"}
    row = {"model_name": "m", "horizon": 2, "frequency": "1d", "feature_ref": ref}
    request = contract_for("time_series").request.model_validate(row)
    with pytest.raises(ValueError, match="feast_repo_path"):
        forecaster.batch_predict([request])
