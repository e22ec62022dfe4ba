"""Arguments of sheaf-serve's backends: which are refused, and which make it another model."""

from __future__ import annotations

import pytest

import sheaf_dagster as sd
from sheaf_dagster.backends import resolve_backend
from sheaf_dagster.backends.arguments import check_arguments
from tests.backends.sheaf_rows import theirs


@pytest.mark.parametrize(
    ("name", "given", "says"),
    [
        ("chronos2", {"num_samples": "20"}, "num_samples is '20'"),
        ("dinov2", {"pooling": "max"}, "pooling is 'max'"),
        ("videomae", {"task": "embed"}, "task is 'embed'"),
        ("timesfm", {"backend": "cuda"}, "backend is 'cuda'"),
        ("pointnet", {"label_names": "chair"}, "label_names is 'chair'"),
        ("flux", {"lora": ["ink"]}, r"lora is \['ink'\]"),
    ],
)
def test_an_argument_of_another_type_is_refused_by_name(name, given, says):
    with pytest.raises(sd.SpecError, match=rf"model 'm': backend_kwargs\.{says}"):
        check_arguments(resolve_backend(f"sheaf:{name}"), "m", given)


@pytest.mark.parametrize("name", sorted(theirs()))
def test_the_types_of_every_backend_can_be_checked(name):
    check_arguments(resolve_backend(f"sheaf:{name}"), "m", {"device": "cpu"})


@pytest.mark.parametrize(
    ("name", "given", "says"),
    [
        ("chronos2", {"torch_dtype": "fp16"}, "torch_dtype must be one of bfloat16, .*'fp16'"),
        ("flux", {"torch_dtype": "half"}, "torch_dtype must be one of"),
        ("sdxl", {"mode": "text2img"}, "mode must be one of"),
        ("raft", {"model_name": "raft"}, "model_name must be one of"),
        ("bark", {"model": "a"}, "unexpected keyword argument 'model'; its arguments are model_name"),
        ("graphcast", {}, "checkpoint_path"),
        ("flux", {"lora": {"adapters": {"ink": {}}}}, r"backend_kwargs\.lora\.adapters\.ink\.source: Field required"),
        ("flux", {"lora": {"default": "ink"}}, "not in adapters"),
        ("bark", {"lora": {"adapters": {}}}, "takes no LoRA adapters"),
        ("esmc", {"model_opt": {"mode": "fastest"}}, r"backend_kwargs\.model_opt"),
        ("esmc", {"model_opt": {"mode": "big"}}, r"requests model_opt mode 'big'"),
        ("bark", {"model_opt": {"mode": "off"}}, "no inference optimization kit"),
    ],
)  # fmt: skip
def test_arguments_that_cannot_work_are_refused_before_anything_is_loaded(name, given, says):
    with pytest.raises(sd.SpecError, match=says):
        resolve_backend(f"sheaf:{name}")(**given)


def test_another_adapter_is_another_model(tmp_path):
    ink, base = tmp_path / "ink.safetensors", tmp_path / "flux"
    ink.write_bytes(b"ink")
    base.mkdir()
    (base / "weights").write_bytes(b"flux")
    flux = resolve_backend("sheaf:flux")
    kwargs = {
        "model_id": str(base),
        "lora": {"adapters": {"ink": {"source": str(ink)}}},
    }

    first = flux.identify(**kwargs)
    ink.write_bytes(b"other ink")

    assert first.startswith("model_id=sha256:")
    assert "; lora ink=sha256:" in first
    assert first != flux.identify(**kwargs)


def test_a_folder_that_is_called_like_a_device_is_no_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cpu").mkdir()
    (tmp_path / "net.pt").write_bytes(b"1")

    found = resolve_backend("sheaf:pointnet").identify(checkpoint_path="net.pt", device="cpu")

    assert found.startswith("checkpoint_path=sha256:")
    assert "device" not in found
