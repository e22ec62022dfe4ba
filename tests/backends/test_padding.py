"""What backends say that the device had, against what their networks were really given."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sheaf_dagster import BatchRunner, BatchSpec, ModelSpec
from sheaf_dagster.backends.chronos import ChronosBackend
from sheaf_dagster.backends.image_embedder import ImageEmbedderBackend
from sheaf_dagster.backends.tables.stacking import InputField, ModelInput, Stacker
from sheaf_dagster.backends.text_embedder import SentenceTransformersBackend
from sheaf_dagster.backends.transformers_text import TransformersPipelineBackend
from sheaf_dagster.contracts import (
    EmbeddingRequest,
    TensorsRequest,
    TextRequest,
    TimeSeriesRequest,
)

TEXTS = [["dog", "a photo of a red cat"], [], ["a"], ["the dog says a red cat", "a a", "cat"]]


def given_to(module) -> list[int]:
    """Grows by the size of what a module of a network is given at each call."""
    seen: list[int] = []
    module.register_forward_hook(lambda _, given, made: seen.append(given[0].numel()))
    return seen


def asked(backend, rows) -> int:
    """What a backend says of rows that it then answers."""
    prepared = [backend.prepare(request) for request in rows]
    told = backend.device_size(prepared, [backend.size(one) for one in prepared])
    backend.infer(prepared)
    return told


def embeddings(texts) -> list[EmbeddingRequest]:
    return [EmbeddingRequest(model_name="m", texts=own) for own in texts]


@pytest.mark.model
@pytest.mark.parametrize(("family", "at_once"), [("clip", 32), ("clip", 2), ("siglip", 4)])
def test_texts_of_a_joint_space_are_counted_as_they_are_filled_up(family, at_once, models):
    from transformers import AutoTokenizer

    backend = ImageEmbedderBackend(models[family], device="cpu", encode_batch_size=at_once)
    backend.load()
    seen = given_to(backend._model.text_model.embeddings.token_embedding)

    told = asked(backend, embeddings(TEXTS))

    flat = [text for own in TEXTS for text in own]
    how = {"padding": "max_length", "max_length": 12} if family == "siglip" else {"padding": True}
    tokenizer = AutoTokenizer.from_pretrained(models[family])
    passes = [
        tokenizer(flat[i : i + at_once], **how, return_tensors="pt")["input_ids"].numel()
        for i in range(0, len(flat), at_once)
    ]
    assert seen == passes
    assert told == sum(passes)


@pytest.mark.model
def test_a_job_reports_the_padding_of_texts_that_fill_their_whole_length(models, tmp_path):
    source = tmp_path / "in.jsonl"
    rows = [{"model_type": "embedding", "model_name": "m", "texts": own} for own in TEXTS if own]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = ModelSpec(
        name="m",
        model_type="embedding",
        backend="image_embedder",
        backend_kwargs={"model_id": models["siglip"], "device": "cpu"},
    )

    result = BatchRunner(model).run(
        BatchSpec(source=str(source), sink=str(tmp_path / "out.jsonl"), compute="local")
    )

    read = sum(len(text.split()) + 2 for own in TEXTS for text in own)  # each between two marks
    assert result.padding_fraction == pytest.approx(1 - read / (6 * 12))


@pytest.mark.model
def test_pictures_are_counted_without_padding(models):
    from tests.backends.sheaf_rows import png

    backend = ImageEmbedderBackend(models["clip"], device="cpu")
    backend.load()
    rows = [EmbeddingRequest(model_name="m", images_b64=[png()] * n) for n in (1, 3)]

    assert asked(backend, [*rows, *embeddings([["a", "a a"]])]) == 4 * 32 * 32 + 2 * 4


@pytest.mark.model
def test_several_texts_of_a_row_are_sorted_into_passes(minilm):
    backend = SentenceTransformersBackend(minilm, device="cpu", encode_batch_size=3)
    backend.load()
    seen = given_to(backend._model[0].auto_model.embeddings.word_embeddings)

    told = asked(backend, embeddings([["word " * 40, "a"], ["a b c"], ["b", "word " * 70]]))

    assert told == sum(seen)
    assert len(seen) > 1


@pytest.mark.model
@pytest.mark.parametrize("at_once", [1, 2, 16])
def test_a_pipeline_counts_what_its_batches_are_filled_up_to(at_once, models):
    backend = TransformersPipelineBackend(
        models["moods"], task="text-classification", device="cpu", model_batch_size=at_once
    )
    backend.load()
    seen = given_to(backend._pipeline._pipeline.model.get_input_embeddings())

    told = asked(
        backend,
        [TextRequest(model_name="m", text=text) for text in ("a", "the red dog", "a cat", "dog")],
    )

    assert told == sum(seen)


@pytest.mark.model
def test_histories_are_filled_up_to_those_that_are_forecast_with_them(models):
    backend = ChronosBackend(models["bolt"], device="cpu")
    backend.load()
    seen: list[int] = []
    backend._pipeline.model.register_forward_pre_hook(
        lambda _, given, named: seen.append(named["context"].numel()), with_kwargs=True
    )

    told = asked(
        backend,
        [
            TimeSeriesRequest(model_name="m", history=[1.0] * n, horizon=h, frequency="1d")
            for n, h in ((5, 2), (40, 2), (100, 3), (7, 3))
        ],
    )

    assert told == sum(seen) == 2 * 40 + 2 * 64


@pytest.mark.parametrize(("fewest", "most"), [(1, None), (1, 2), (4, 4)])
def test_arrays_are_counted_as_they_are_stacked(fewest, most):
    seen: list[int] = []

    def run(stacked):
        seen.append(max(np.asarray(values).size for values in stacked.values()))
        return {"y": stacked["x"]}

    made = Stacker(
        {"x": ModelInput("float32", None), "z": ModelInput("float32", None)},
        {"x": InputField(pad=0), "z": InputField()},
        {},
        run,
        fewest,
        most,
    )
    given = [([1.0] * n, [2.0] * m) for n, m in ((3, 2), (9, 2), (1, 4), (2, 2), (5, 2))]
    prepared = [
        made.prepare(TensorsRequest(model_name="m", inputs={"x": x, "z": z})) for x, z in given
    ]

    told = made.device_size(prepared)
    made.infer(prepared)

    assert told == sum(seen)
