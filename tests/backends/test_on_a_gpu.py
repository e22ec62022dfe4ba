"""Backends on a GPU against the library called by hand on it, and what a job finds of its GPU.

Where there is no GPU, the same comparisons run on the CPU, and the tests that need one are skipped.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from uuid import UUID

import numpy as np
import pytest
from PIL import Image

from sheaf_dagster import BatchResult, BatchRunner, BatchSpec, ModelSpec, ResourceConfig
from sheaf_dagster.contracts import EmbeddingRequest, TensorsRequest, TextRequest, TimeSeriesRequest
from tests.backends.gpu_models import HELD_BYTES, ROWS_THAT_FIT, Multiplies, TakesMemory
from tests.backends.gpu_models import TakesMemoryInOneCall as InOneCall
from tests.backends.weights import greedy
from tests.conftest import read_rows, start_again
from tests.toys import NumberRequest, shaped

pytestmark = pytest.mark.model


def skip_without_a_gpu() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request) -> str:
    if request.param == "cuda":
        skip_without_a_gpu()
    return request.param


@pytest.fixture
def gpu() -> Iterator[None]:
    """A GPU, of whose memory nothing is held back before and after."""
    skip_without_a_gpu()
    import torch

    torch.cuda.empty_cache()
    yield
    torch.cuda.empty_cache()


@pytest.fixture
def nvml() -> None:
    """NVIDIA's library, and a GPU of which it tells something."""
    pynvml = pytest.importorskip("pynvml")
    try:
        pynvml.nvmlInit()
        pynvml.nvmlDeviceGetUtilizationRates(pynvml.nvmlDeviceGetHandleByIndex(0))
    except pynvml.NVMLError as e:
        pytest.skip(f"NVML tells nothing of this GPU: {e}")


def run(folder, rows, model: ModelSpec, **options) -> tuple[list[dict], BatchResult]:
    """The answers of a job, in their order, and its result."""
    source = folder / "in.jsonl"
    source.write_text("".join(r.model_dump_json(exclude_none=True) + "\n" for r in rows))
    options = {"compute": "local", **options}
    sink = folder / f"{options['compute']}.jsonl"
    result = BatchRunner(model).run(BatchSpec(source=str(source), sink=str(sink), **options))
    answers = read_rows(sink)
    assert [a["request_id"] for a in answers] == [str(r.request_id) for r in rows]
    return answers, result


def answered(folder, rows, model_type: str, backend: str, arguments: dict, **options) -> list[dict]:
    """The answers of a job with a backend of ours."""
    model = ModelSpec(name="m", model_type=model_type, backend=backend, backend_kwargs=arguments)
    return run(folder, rows, model, **options)[0]


def ids(i: int) -> dict:
    return {"request_id": UUID(int=i + 1), "model_name": "m"}


# -- our backends --------------------------------------------------------------------------------

WORDS = ["cat", "train", "valley", "of", "the", "slowly", "red", "river"]
TEXTS = [
    " ".join(WORDS[(i + k * k) % 8] for k in range(n + i // 12))
    for i, n in enumerate([1, 300, 2, 40, 5, 120, 1, 9, 250, 3, 17, 70] * 4)
]


def text_rows() -> list[EmbeddingRequest]:
    return [EmbeddingRequest(**ids(i), texts=[t], normalize=False) for i, t in enumerate(TEXTS)]


def by_sentence_transformers(minilm: str, device: str):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(minilm, device=device).encode(TEXTS)


@pytest.mark.parametrize("options", [{}, {"batch_budget": "auto"}], ids=["usual", "budget"])
def test_texts_are_embedded_as_by_the_library(device, options, minilm, tmp_path):
    arguments = {"model_id": minilm, "device": device}

    answers = answered(
        tmp_path, text_rows(), "embedding", "sentence_transformers", arguments, **options
    )

    found = [a["embeddings"][0] for a in answers]
    np.testing.assert_allclose(found, by_sentence_transformers(minilm, device), atol=1e-4)


def picture(i: int) -> Image.Image:
    noise = np.random.default_rng(i).integers(0, 255, (30 + 5 * i, 60, 3), dtype=np.uint8)
    return Image.fromarray(noise // (1 + i % 4))


def as_png(image: Image.Image) -> str:
    out = io.BytesIO()
    image.save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


@pytest.mark.parametrize("family", ["clip", "dinov2"])
def test_images_are_embedded_as_by_the_library(device, family, models, tmp_path):
    import torch
    from transformers import AutoImageProcessor, AutoModel

    images = [picture(i) for i in range(12)]
    rows = [
        EmbeddingRequest(**ids(i), images_b64=[as_png(image)], normalize=False)
        for i, image in enumerate(images)
    ]
    arguments = {"model_id": models[family], "device": device}

    answers = answered(tmp_path, rows, "embedding", "image_embedder", arguments, batch_size=12)

    # All at once, as the backend does: a GPU may convolve batches of other sizes more coarsely.
    model = AutoModel.from_pretrained(models[family]).to(device).eval()
    processor = AutoImageProcessor.from_pretrained(models[family], backend="pil")
    pixels = processor(images=images, return_tensors="pt").to(device)
    with torch.inference_mode():
        made = model(**pixels) if family == "dinov2" else model.get_image_features(**pixels)
    found = [a["embeddings"][0] for a in answers]
    np.testing.assert_allclose(found, made.pooler_output.cpu().numpy(), atol=1e-4)


BAG = {
    "inputs": {"ids": {"dtype": "int64", "pad": 0, "mask": "mask"}, "mask": {}},
    "outputs": {"mean": {}, "tokens": {"trim_to": "ids"}},
}


@pytest.mark.parametrize(("name", "fields"), [("net", {}), ("bag", BAG)])
def test_a_program_answers_as_on_the_cpu(device, name, fields, programs, tmp_path):
    import torch

    if name == "net":
        given = [{"x": [0.3 * i, 1.0, -0.1 * i], "scale": i + 1.0} for i in range(19)]
    else:
        given = [{"ids": [(i * 7 + t) % 20 for t in range(1 + 3 * i)]} for i in range(12)]
    rows = [TensorsRequest(**ids(i), inputs=own) for i, own in enumerate(given)]
    arguments = {"path": programs[name], "device": device, **fields}

    answers = answered(tmp_path, rows, "tensors", "torch_export", arguments)

    program = torch.export.load(programs[name]).module()
    for own, answer in zip(given, answers, strict=True):
        inputs = [torch.tensor([value]) for value in own.values()]
        if name == "bag":
            inputs.append(torch.ones(1, len(own["ids"])))
        made = program(*inputs)
        values = made.values() if name == "net" else made
        for found, expected in zip(answer["outputs"].values(), values, strict=True):
            np.testing.assert_allclose(found, expected[0].detach(), rtol=1e-3, atol=1e-5)


SENTENCES = ["a photo of a cat", "dog", "the blue dog says a red cat", "red blue", "cat " * 40, "a"]


def test_texts_are_classified_as_by_the_library(device, models, tmp_path):
    from transformers import pipeline

    rows = [TextRequest(**ids(i), text=text) for i, text in enumerate(SENTENCES)]
    task = "text-classification"
    arguments = {"model_id": models["moods"], "task": task, "device": device}

    answers = answered(tmp_path, rows, "text", "transformers_pipeline", arguments)

    by_hand = pipeline(task, model=models["moods"], device=device, top_k=None)
    for text, answer in zip(SENTENCES, answers, strict=True):
        found = {one["label"]: one["score"] for one in answer["labels"]}
        expected = {one["label"]: one["score"] for one in by_hand([text])[0]}
        assert found == pytest.approx(expected, abs=1e-4)


def test_texts_are_continued_as_by_the_library(device, models, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lengths = [8, 3, 8, 5, 6, 12]
    rows = [
        TextRequest(**ids(i), text=text, max_new_tokens=most)
        for i, (text, most) in enumerate(zip(SENTENCES, lengths, strict=True))
    ]
    arguments = {"model_id": models["causal"], "device": device, "dtype": "float32"}

    answers = answered(tmp_path, rows, "text", "transformers_pipeline", arguments)

    model = AutoModelForCausalLM.from_pretrained(models["causal"], dtype=torch.float32).to(device)
    tokenizer = AutoTokenizer.from_pretrained(models["causal"])
    for text, most, answer in zip(SENTENCES, lengths, answers, strict=True):
        assert answer["text"] == greedy(model, tokenizer, text, most)


@pytest.mark.parametrize("family", ["bolt", "chronos2"])
def test_series_are_forecast_as_by_the_library(device, family, models, tmp_path):
    chronos = pytest.importorskip("chronos")
    import torch

    histories = [[10.0 + (t * (i + 2)) % 7 + 0.1 * t for t in range(20 + 3 * i)] for i in range(12)]
    asked = {"horizon": 4, "frequency": "1d", "output_mode": "quantiles"}
    rows = [
        TimeSeriesRequest(**ids(i), history=own, quantile_levels=[0.1, 0.9], **asked)
        for i, own in enumerate(histories)
    ]
    arguments = {"model_id": models[family], "device": device}

    answers = answered(tmp_path, rows, "time_series", "chronos2", arguments)

    pipeline = chronos.BaseChronosPipeline.from_pretrained(
        models[family], device_map=device, dtype=torch.float32
    )
    for own, answer in zip(histories, answers, strict=True):
        context = torch.tensor(own)
        given = [context[None]] if family == "chronos2" else [context]
        raw = np.asarray(pipeline.predict(given, prediction_length=4)[0].float().cpu())
        levels = np.sort(raw.reshape(-1, 4), axis=0)
        found = [answer["quantiles"]["0.1"], answer["mean"], answer["quantiles"]["0.9"]]
        np.testing.assert_allclose(found, levels[[0, 4, 8]], rtol=1e-3)


# -- memory that really runs out -----------------------------------------------------------------


def number_rows(count: int) -> list[NumberRequest]:
    return [NumberRequest(**ids(i), value=float(i)) for i in range(count)]


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("backend", "options"),
    [
        (TakesMemory, {"batch_size": 64}),
        (TakesMemory, {"batch_budget": 64}),
        (TakesMemory, {"batch_budget": "auto"}),
        (InOneCall, {"batch_size": 64}),
        (InOneCall, {"batch_size": "auto"}),
    ],
)
def test_every_row_is_answered_though_the_gpu_runs_out_of_memory(gpu, backend, options, tmp_path):
    # A loaded model keeps what it has learned of its memory.
    model = shaped(backend).model_copy(update={"name": f"{backend.__name__} {options}"})

    answers, result = run(tmp_path, number_rows(300), model, **options)

    assert [a["value"] for a in answers] == [2.0 * i for i in range(300)]
    assert result.shape == ("stages" if backend is TakesMemory else "call")
    assert (result.halved_batches > 0, result.error_rows) == (True, 0)
    if "batch_budget" in options:
        assert result.batch_budget <= ROWS_THAT_FIT
    if options.get("batch_size") == "auto":
        assert result.batch_size <= ROWS_THAT_FIT


# -- what is seen of the GPU ---------------------------------------------------------------------


@pytest.mark.gpu
def test_a_busy_gpu_is_seen_to_be_busy(gpu, nvml, tmp_path):
    import torch

    answers, result = run(tmp_path, number_rows(64), shaped(Multiplies, seconds=0.5), batch_size=8)

    assert [a["value"] for a in answers] == [2.0 * i for i in range(64)]
    assert {a["note"] for a in answers} == {"cuda:0"}
    assert 0.5 < result.gpu_utilisation <= 1
    assert HELD_BYTES <= result.gpu_memory_bytes <= torch.cuda.mem_get_info()[1]
    assert 0 < result.device_busy_fraction <= 1


@pytest.fixture(scope="module")
def ray_with_a_gpu() -> Iterator[None]:
    """A local Ray with two CPUs and one GPU, which exists."""
    skip_without_a_gpu()
    ray = pytest.importorskip("ray")
    if ray.is_initialized():
        pytest.skip("the Ray of this process has GPUs that don't exist")

    def start() -> None:
        ray.init("local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)

    start_again(start, ray.shutdown)
    yield
    ray.shutdown()


ON_AN_ACTOR = {"compute": "actors", "num_actors": 1}
ONE_GPU = ResourceConfig(num_cpus=1, num_gpus=1)


@pytest.mark.gpu
@pytest.mark.ray
def test_a_worker_of_ray_has_its_model_on_the_gpu(gpu, nvml, ray_with_a_gpu, tmp_path):
    model = shaped(Multiplies, seconds=0.25).model_copy(update={"resources": ONE_GPU})

    answers, result = run(tmp_path, number_rows(64), model, batch_size=8, **ON_AN_ACTOR)

    here, _ = run(tmp_path, number_rows(64), model, batch_size=8)
    assert answers == here
    assert {a["note"] for a in answers} == {"cuda:0"}
    assert 0 < result.gpu_utilisation <= 1
    assert result.gpu_memory_bytes >= HELD_BYTES


@pytest.mark.gpu
@pytest.mark.ray
def test_a_worker_of_ray_embeds_as_the_library_does(gpu, minilm, ray_with_a_gpu, tmp_path):
    model = ModelSpec(
        name="minilm",
        model_type="embedding",
        backend="sentence_transformers",
        backend_kwargs={"model_id": minilm},
        resources=ONE_GPU,
    )

    answers, _ = run(tmp_path, text_rows(), model, **ON_AN_ACTOR)

    found = [a["embeddings"][0] for a in answers]
    np.testing.assert_allclose(found, by_sentence_transformers(minilm, "cuda"), atol=1e-4)
