"""The identity of weights: what it covers, and what it costs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sheaf_dagster.backends.common import digest
from sheaf_dagster.backends.common.digest import weights_digest
from sheaf_dagster.backends.registry import resolve_backend


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A cache of its own, for files whose times count as settled."""
    monkeypatch.setenv("SHEAF_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(digest, "_SETTLED_SECONDS", -60.0)
    monkeypatch.setattr(digest, "_KNOWN", {})
    return tmp_path / "cache" / "digests"


@pytest.fixture
def weights(tmp_path, cache) -> Path:
    folder = tmp_path / "weights"
    (folder / "sub").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(os.urandom(2**21))
    (folder / "config.json").write_text("{}")
    (folder / "sub" / "vocab.txt").write_text("a\nb\n")
    return folder


def test_a_copy_elsewhere_has_the_same_digest(weights, tmp_path):
    shutil.copytree(weights, tmp_path / "copy")

    assert weights_digest(str(tmp_path / "copy")) == weights_digest(str(weights))
    assert weights_digest(str(weights)).startswith("sha256:")


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        (lambda w: (w / "config.json").write_text("[]"), True),
        (lambda w: (w / "config.json").rename(w / "settings.json"), True),
        (lambda w: (w / "sub" / "vocab.txt").unlink(), True),
        (lambda w: (w / "added.py").write_text("x = 1"), True),
        (lambda w: (w / "README.md").write_text("read me"), False),
        (lambda w: (w / ".gitattributes").write_text("*"), False),
        (lambda w: (w / "above").symlink_to(w), False),
    ],
)
def test_what_the_model_is_made_of_counts(weights, change, counts):
    before = weights_digest(str(weights))

    change(weights)

    assert (weights_digest(str(weights)) != before) == counts


def test_a_file_is_read_once_until_it_changes(weights, cache, monkeypatch):
    model = weights / "model.safetensors"
    first = weights_digest(str(model))
    (note,) = cache.iterdir()
    known = json.loads(note.read_text())
    note.write_text(json.dumps({**known, "sha256": "from the note"}))

    monkeypatch.setattr(digest, "_KNOWN", {})  # as another process sees it
    second = weights_digest(str(model))
    stat = model.stat()
    data = model.read_bytes()
    model.write_bytes(bytes(reversed(data)))
    os.utime(model, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    third = weights_digest(str(model))

    assert second == "sha256:from the note"
    assert third not in (first, second), "the same size and modification time don't hide a change"


def test_a_file_that_has_just_changed_is_read_again(weights, cache, monkeypatch):
    monkeypatch.setattr(digest, "_SETTLED_SECONDS", 60.0)

    weights_digest(str(weights))

    assert not cache.exists()
    assert digest._KNOWN == {}


def test_a_broken_note_or_an_unwritable_cache_costs_only_a_second_reading(
    weights, cache, monkeypatch
):
    first = weights_digest(str(weights))
    next(cache.iterdir()).write_text("{")
    monkeypatch.setattr(digest, "_KNOWN", {})
    assert weights_digest(str(weights)) == first

    monkeypatch.setenv("SHEAF_CACHE_DIR", str(weights / "config.json"))
    monkeypatch.setattr(digest, "_KNOWN", {})
    assert weights_digest(str(weights)) == first


def test_a_hub_model_is_the_commit_in_the_local_cache_when_offline(tmp_path):
    pytest.importorskip("huggingface_hub")
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "hub" / "models--amazon--chronos-bolt-tiny"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    (repo / "snapshots" / commit).mkdir(parents=True)
    code = (
        "from sheaf_dagster.backends import weights_digest as d\n"
        "import sys\n"
        "print(d('amazon/chronos-bolt-tiny'))\n"
        "print(d('amazon/chronos-bolt-tiny', 'f' * 40))\n"
        "print(d('amazon/unknown'), d('/not/here'))\n"
        "print([m for m in ('torch', 'transformers', 'ray') if m in sys.modules])\n"
    )

    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )

    assert done.stdout.splitlines() == [
        f"hub:amazon/chronos-bolt-tiny@{commit}",
        f"hub:amazon/chronos-bolt-tiny@{'f' * 40}",
        "None None",
        "[]",
    ]


@pytest.mark.parametrize("name", ["model.onnx.data", "weights/part", f"{'long' * 40}.bin"])
def test_the_weights_beside_an_onnx_model_count(name, tmp_path, cache):
    onnx = pytest.importorskip("onnx")
    from onnx import helper, numpy_helper

    def save(value: float, folder: Path) -> Path:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        weights = numpy_helper.from_array(np.full((64, 64), value, np.float32), "w")
        shape = [64, 64]
        branch = helper.make_graph(
            [helper.make_node("Identity", ["w"], ["z"])],
            "branch",
            [],
            [helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, shape)],
            [weights],
        )
        graph = helper.make_graph(
            [helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)],
            "g",
            [helper.make_tensor_value_info("x", onnx.TensorProto.BOOL, [])],
            [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, shape)],
        )
        onnx.save(
            helper.make_model(graph),
            folder / "model.onnx",
            save_as_external_data=True,
            location=name,
            size_threshold=0,
        )
        return folder / "model.onnx"

    first = save(1.0, tmp_path / "a")
    before, structure = weights_digest(str(first)), first.read_bytes()
    copied = weights_digest(str(shutil.copytree(first.parent, tmp_path / "copy") / "model.onnx"))
    (first.parent / name).unlink()
    second = save(2.0, tmp_path / "a")

    assert second.read_bytes() == structure
    assert weights_digest(str(second)) != before == copied
    (second.parent / "notes.txt").write_text("beside")
    assert weights_digest(str(second)) == weights_digest(str(first))


COMMITS = ["0123456789abcdef0123456789abcdef01234567", "f" * 40]


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """The local cache of a hub that can't be reached."""
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def downloaded(hub: Path, model: str, commit: str, files: dict[str, dict] | None = None) -> str:
    repo = hub / f"models--{model.replace('/', '--')}"
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir(exist_ok=True)
    (repo / "refs" / "main").write_text(commit)
    for name, content in (files or {}).items():
        (snapshot / name).parent.mkdir(exist_ok=True)
        (snapshot / name).write_text(json.dumps(content))
    return f"hub:{model}@{commit}"


def adapter_of(base: str, folder: Path, **config) -> str:
    folder.mkdir(parents=True)
    config = {"base_model_name_or_path": base, **config}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return str(folder)


def test_the_model_under_an_adapter_counts(weights, tmp_path):
    adapter = adapter_of(str(weights), tmp_path / "adapter")
    inner = adapter_of(str(weights), tmp_path / "sentences" / "0_Transformer")
    before, before_inner = weights_digest(adapter), weights_digest(str(Path(inner).parent))

    (weights / "config.json").write_text("[]")

    assert weights_digest(adapter) != before
    assert weights_digest(adapter).endswith(f" on {weights_digest(str(weights))}")
    assert weights_digest(str(Path(inner).parent)) != before_inner


def test_the_hub_model_under_an_adapter_counts_at_the_revision_that_it_names(hub, tmp_path):
    main = downloaded(hub, "some/base", COMMITS[0])
    loose = adapter_of("some/base", tmp_path / "loose")
    pinned = adapter_of("some/base", tmp_path / "pinned", revision=COMMITS[1])
    unknown = adapter_of("some/unknown", tmp_path / "unknown")

    assert weights_digest(loose).endswith(f" on {main}")
    assert weights_digest(pinned).endswith(f" on hub:some/base@{COMMITS[1]}")
    assert weights_digest(unknown).endswith(" on some/unknown")
    moved = downloaded(hub, "some/base", COMMITS[1])
    assert weights_digest(loose).endswith(f" on {moved}")


def test_an_adapter_on_the_hub_and_code_of_another_model_count(hub):
    base = downloaded(hub, "some/base", COMMITS[0])
    code = downloaded(hub, "some/code", COMMITS[1])
    adapter = {"adapter_config.json": {"base_model_name_or_path": "some/base"}}
    config = {
        "config.json": {"auto_map": {"AutoModel": "some/code--model.Net", "AutoConfig": "c.C"}}
    }
    lora = downloaded(hub, "some/lora", COMMITS[0], adapter)
    model = downloaded(hub, "some/model", COMMITS[0], config)

    assert weights_digest("some/lora") == f"{lora} on {base}"
    assert weights_digest("some/model") == f"{model} on {code}"


def test_adapters_that_name_each_other_have_an_identity(tmp_path):
    other = adapter_of(str(tmp_path / "one"), tmp_path / "other")
    one = adapter_of(other, tmp_path / "one")

    assert weights_digest(one).count(" on ") == 1


def named_in(form: str, path: str) -> dict:
    return {
        "tokenizer": {"tokenizer": path},
        "adapter": {"enable_lora": True, "lora_modules": [f"sql={path}"]},
        "adapter as JSON": {"lora-modules": [json.dumps({"name": "sql", "path": path})]},
        "adapter as a dictionary": {"lora_modules": [{"name": "sql", "path": path}]},
        "draft": {"speculative_config": {"model": path, "num_speculative_tokens": 2}},
        "configuration": {"hf_config_path": path, "max_model_len": 512},
    }[form]


FORMS = ["tokenizer", "adapter", "adapter as JSON", "adapter as a dictionary", "draft",
         "configuration"]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_what_the_arguments_of_vllm_name_counts(form, weights, tmp_path):
    named = tmp_path / "named"
    named.mkdir()
    (named / "tokenizer.json").write_text("{}")
    arguments = {"model_id": str(weights), "engine_args": named_in(form, str(named))}
    identify = resolve_backend("vllm").identify
    before, again = identify(**arguments), identify(**arguments)

    (named / "tokenizer.json").write_text("[]")

    assert before is not None and before == again
    assert before != identify(model_id=str(weights))
    assert identify(**arguments) not in (None, before)
    shutil.rmtree(named)
    assert identify(**arguments) is None


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_model_len": 512, "tool_call_parser": "hermes", "generation_config": "vllm"},
        {"download_dir": "/", "allowed_local_media_path": "/"},
        {"chat_template": "{% for m in messages %}{{ m.content }}\n{% endfor %}"},
    ],
)
def test_arguments_of_vllm_that_name_no_file_leave_the_identity(arguments, weights):
    identify = resolve_backend("vllm").identify

    assert identify(model_id=str(weights), engine_args=arguments) == weights_digest(str(weights))


def test_a_named_hub_model_counts_with_its_own_revision(weights):
    commit = "0123456789abcdef0123456789abcdef01234567"
    named = {
        "lora_modules": [{"name": "a/label", "path": str(weights), "base_model_name": "a/model"}],
        "speculative_config": {"model": "some/draft", "revision": commit},
        "tokenizer": "some/tokenizer",
        "tokenizer_revision": commit,
    }

    identity = resolve_backend("vllm").identify(model_id=str(weights), engine_args=named)

    own = weights_digest(str(weights))
    assert identity == f"{own}; {own}; hub:some/draft@{commit}; hub:some/tokenizer@{commit}"


@pytest.mark.parametrize(
    "backend", ["sentence_transformers", "image_embedder", "transformers_pipeline", "vllm"]
)
def test_a_replaced_tokenizer_or_another_revision_is_another_model(backend, weights):
    identify = resolve_backend(backend).identify
    before = identify(model_id=str(weights))

    (weights / "tokenizer.json").write_text("{}")

    assert identify(model_id=str(weights)) not in (None, before)
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert identify(model_id="some/model", revision=commit) == f"hub:some/model@{commit}"
