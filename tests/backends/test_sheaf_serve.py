"""sheaf-serve's backends through the one adapter: listed, fed, and run where weights can be made."""

from __future__ import annotations

import base64
import io
import json
import pickle
import subprocess
import sys
from collections import defaultdict
from uuid import UUID

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

import sheaf_dagster as sd
from sheaf_dagster.backends import known_backends, resolve_backend, sheaf_serve
from sheaf_dagster.batch.loading import ModelContext
from sheaf_dagster.batch.rows import RowContract
from sheaf_dagster.contracts import contract_for, known_model_types
from sheaf_dagster.contracts.sheaf_serve import sheaf_serve_types
from sheaf_dagster.testing import RULES, check_backend
from tests.conftest import ROOT, read_rows

union = pytest.importorskip("sheaf.api.union", reason="sheaf-serve needs Python 3.11")
THEIRS = TypeAdapter(union.AnyRequest)


def floats(*shape: int) -> str:
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return base64.b64encode(values.tobytes()).decode()


def png(size: tuple[int, int] = (32, 24), seed: int = 0) -> str:
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


SOUND = base64.b64encode(b"RIFF").decode()
FIELDS = {"t2m": floats(2, 3)}
LEVELS = {"z": floats(1, 2, 3)}
ROWS: dict[str, dict] = {
    "time_series": {"history": [1, 2, 3], "horizon": 2, "frequency": "1d"},
    "tabular": {"context_X": [[1, 2]], "context_y": [1], "query_X": [[3, 4]]},
    "audio": {"audio_b64": SOUND},
    "audio_generation": {"prompt": "rain"},
    "tts": {"text": "hello"},
    "embedding": {"texts": ["hello"]},
    "segmentation": {"image_b64": png(), "box": [0, 0, 5, 5]},
    "molecular": {"sequences": ["MKT"]},
    "genomic": {"sequences": ["ACGT"]},
    "materials": {"atomic_numbers": [1, 1], "positions_b64": floats(2, 3)},
    "small_molecule": {"smiles": ["CCO"]},
    "depth": {"image_b64": png()},
    "detection": {"image_b64": png()},
    "weather": {
        "surface_vars": FIELDS,
        "atmospheric_vars": LEVELS,
        "prev_surface_vars": FIELDS,
        "prev_atmospheric_vars": LEVELS,
        "lat": [1, 0],
        "lon": [0, 1, 2],
        "pressure_levels": [500],
        "current_time": "2026-01-01T00:00:00",
    },
    "geospatial": {
        "pixels_b64": floats(1, 1, 2, 2),
        "n_bands": 1,
        "height": 2,
        "width": 2,
        "band_names": ["red"],
    },
    "multimodal_embedding": {"texts": ["hello"]},
    "diffusion": {"prompt": "a cat", "seed": 3},
    "video": {"frames_b64": [png()] * 2},
    "pose": {"image_b64": png()},
    "optical_flow": {"frame1_b64": png(), "frame2_b64": png(seed=1)},
    "multimodal_generation": {"prompt": "a cat", "image_b64": png()},
    "point_cloud": {"points_b64": floats(5, 3), "n_points": 5},
    "protein_language": {"sequences": ["MKT"]},
    "structure": {"chains": [{"chain_id": "A", "sequence": "MKT"}]},
}
ARGUMENTS = {"graphcast": {"checkpoint_path": "/weights/graphcast.npz"}}


def line(model_type: str, **fields) -> bytes:
    return json.dumps(
        {"model_type": model_type, "model_name": "m", **ROWS[model_type], **fields}
    ).encode()


def theirs() -> dict:
    sheaf_serve.sheaf_serve_names()
    return __import__("sheaf.registry", fromlist=["x"])._BACKEND_REGISTRY


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
        found = rows.check(text + b"\n", 1)
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
    found = rows.check(line("depth") + b"\n" + line("pose") + b"\n", 1)
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


# -- a backend of sheaf-serve's kind, in a module that SHEAF_EXTRA_BACKENDS names --------------

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


def diffusion(i: int, **fields):
    row = json.loads(line("diffusion", request_id=str(UUID(int=i)), **fields))
    return THEIRS.validate_python(row)


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


# -- real ones -------------------------------------------------------------------------------


def requests(model_type: str, rows: list[dict]) -> list:
    contract = contract_for(model_type)
    return [
        contract.request.model_validate(
            {**json.loads(line(model_type)), "request_id": UUID(int=i + 1), **row}
        )
        for i, row in enumerate(rows)
    ]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> dict[str, str]:
    """Random weights of small architectures, saved as the hub has them."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    from tests.backends.weights import save_chronos_models, save_vision_models

    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("tiny")
    letters = root / "letters"
    letters.mkdir()
    (letters / "vocab.txt").write_text(
        "\n".join(
            ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"acgtno", *map("##{}".format, "acgtno")]
        )
    )
    BertTokenizer(str(letters / "vocab.txt")).save_pretrained(letters)
    config = BertConfig(
        vocab_size=17, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32,
    )  # fmt: skip
    BertModel(config).save_pretrained(letters)
    vision = save_vision_models(root / "vision")
    chronos = save_chronos_models(root / "chronos")
    return {**vision, **{k: str(v) for k, v in chronos.items()}, "letters": str(letters)}


CASES = {
    "pointnet": (
        "point_cloud",
        {},
        [{}, {"task": "classify"}, {"points_b64": floats(9, 3), "n_points": 9}],
    ),
    "dinov2": (
        "embedding",
        {"model_name": "dinov2"},
        [
            {"texts": None, "images_b64": [png(), png((40, 50), 1)]},
            {"texts": None, "images_b64": [png((64, 20), 2)], "normalize": False},
        ],
    ),
    "nucleotide_transformer": (
        "genomic",
        {"model_name": "letters"},
        [{}, {"sequences": ["AACC", "GGTTA"], "pooling": "cls"}],
    ),
    "molformer": ("small_molecule", {"model_name": "letters"}, [{}, {"smiles": ["CO", "N"]}]),
    "chronos2": (
        "time_series",
        {"model_id": "bolt"},
        [
            {"history": [float(t % 7) for t in range(30)]},
            {"history": [float(t % 5) for t in range(41)], "horizon": 5},
            {"history": [1, 2, 3.5, 4] * 8, "output_mode": "quantiles", "quantile_levels": [0.1]},
        ],
    ),
}


# Workers run below. PointNet without a checkpoint draws its weights anew at each load.
LEFT_OUT = defaultdict(lambda: ("travels",), pointnet=("travels", "seeded"))


@pytest.mark.model
@pytest.mark.parametrize("name", CASES)
def test_those_that_run_offline_keep_the_rules(name, tiny):
    model_type, kwargs, rows = CASES[name]
    kwargs = {k: tiny[v] for k, v in kwargs.items()}
    backend = resolve_backend(f"sheaf:{name}")
    check_backend(
        backend,
        requests(model_type, rows),
        backend_kwargs=kwargs,
        rules=[r for r in RULES if r not in LEFT_OUT[name]],
    )
    if kwargs:
        (argument,) = kwargs
        assert backend.identify(**kwargs).startswith(f"{argument}=sha256:")


@pytest.mark.model
def test_a_sampler_draws_the_same_paths_again(tiny):
    backend = resolve_backend("sheaf:chronos2")(model_id=tiny["t5"])
    backend.load()
    rows = requests(
        "time_series",
        [{"history": [1.0, 2, 3] * 9, "output_mode": "samples", "num_samples": n} for n in (2, 3)],
    )

    first = backend.batch_predict(rows)
    again = backend.batch_predict(rows)

    assert [len(a.samples) for a in first] == [2, 3], "each row its own number"
    assert [a.model_dump() for a in first] == [a.model_dump() for a in again]


@pytest.mark.model
@pytest.mark.ray
def test_a_file_runs_on_workers_with_pictures_by_uri(tiny, tmp_path, ray_cluster):
    (tmp_path / "a.png").write_bytes(base64.b64decode(png()))
    inline = {"model_type": "embedding", "model_name": "m", "images_b64": [png()]}
    by_uri = {"model_type": "embedding", "model_name": "m", "image_uris": [str(tmp_path / "a.png")]}
    (tmp_path / "in.jsonl").write_text(json.dumps(inline) + "\n" + json.dumps(by_uri) + "\n")
    model = sd.ModelSpec(
        name="dinov2",
        model_type="embedding",
        backend="sheaf:dinov2",
        backend_kwargs={"model_name": tiny["dinov2"]},
    )

    result = sd.BatchRunner(model).run(
        sd.BatchSpec(
            source=str(tmp_path / "in.jsonl"),
            sink=str(tmp_path / "out.jsonl"),
            compute="actors",
            num_actors=1,
        )
    )

    one, two = read_rows(tmp_path / "out.jsonl")
    assert result.rows == 2
    assert result.model_digest.startswith("model_name=sha256:")
    assert one["embeddings"] == two["embeddings"]
