"""Image embeddings of tiny CLIP, SigLIP and DINOv2 models, inline and by URI."""

from __future__ import annotations

import base64
import io
import json
from uuid import UUID

import numpy as np
import pytest
from PIL import Image

from sheaf_dagster import BatchRunner, BatchSpec, ModelSpec, SpecError
from sheaf_dagster.backends.common.images import decode_image
from sheaf_dagster.backends.image_embedder import ImageEmbedderBackend
from sheaf_dagster.contracts import EmbeddingRequest, deviations_of
from sheaf_dagster.testing import RULES, check_backend
from tests.backends.rules import WITHOUT_A_WORKER
from tests.conftest import read_rows

pytestmark = pytest.mark.model


def picture(seed: int, size: tuple[int, int] = (40, 30), mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


def encoded(image: Image.Image, form: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def row(i: int, *images: bytes, **fields) -> EmbeddingRequest:
    if images:
        fields["images_b64"] = [base64.b64encode(image).decode() for image in images]
    return EmbeddingRequest(request_id=UUID(int=i + 1), model_name="m", **fields)


def mixed_rows(folder) -> list[EmbeddingRequest]:
    path = folder / "photo.jpg"
    path.write_bytes(encoded(picture(7, (90, 41)), "JPEG"))
    return [
        row(0, encoded(picture(0)), encoded(picture(1, (64, 64)))),
        row(1, encoded(picture(2, (33, 120), "L"))),
        row(2, images_b64=[]),
        row(3, image_uris=[str(path), path.as_uri()]),
        row(4, encoded(picture(3, mode="RGBA")), encoded(picture(4, mode="P")), normalize=False),
        row(5, encoded(picture(5, mode="1"))),
        row(6, encoded(picture(6, mode="CMYK"), "JPEG")),
    ]


@pytest.mark.parametrize("family", ["clip", "siglip", "dinov2"])
def test_images_of_any_number_size_and_mode_embed_like_single_ones(family, models, tmp_path):
    rows = mixed_rows(tmp_path)
    if family != "dinov2":
        rows += [row(7, texts=["a photo of a cat", "dog"]), row(8, texts=[])]
    check_backend(
        ImageEmbedderBackend,
        rows,
        backend_kwargs={"model_id": models[family], "device": "cpu", "encode_batch_size": 3},
        rules=RULES if family == "dinov2" else WITHOUT_A_WORKER,
    )


@pytest.mark.parametrize("family", ["clip", "siglip", "dinov2"])
def test_embeddings_are_those_of_the_library(family, models):
    import torch
    from transformers import AutoImageProcessor, AutoModel

    image = picture(0, (70, 50))
    backend = ImageEmbedderBackend(models[family], device="cpu")
    backend.load()
    (answer,) = backend.batch_predict([row(0, encoded(image), normalize=False)])

    model = AutoModel.from_pretrained(models[family])
    pixels = AutoImageProcessor.from_pretrained(models[family], backend="pil")(
        images=image, return_tensors="pt"
    )
    with torch.no_grad():
        if family == "dinov2":
            expected = model(**pixels).last_hidden_state[:, 0]
        else:
            expected = model.get_image_features(**pixels).pooler_output

    assert answer.dim == expected.shape[1]
    np.testing.assert_allclose(answer.embeddings, expected.numpy(), atol=1e-5)


def test_clip_texts_and_images_share_a_space(models):
    import torch
    from transformers import AutoModel, AutoTokenizer

    backend = ImageEmbedderBackend(models["clip"], device="cpu")
    backend.load()
    texts = ["a photo of a cat", "red dog"]
    answers = backend.batch_predict([row(0, texts=texts), row(1, encoded(picture(0)))])

    model = AutoModel.from_pretrained(models["clip"])
    tokens = AutoTokenizer.from_pretrained(models["clip"])(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model.get_text_features(tokens["input_ids"], tokens["attention_mask"])
    expected = torch.nn.functional.normalize(expected.pooler_output).numpy()

    assert answers[0].dim == answers[1].dim == 16
    np.testing.assert_allclose(answers[0].embeddings, expected, atol=1e-5)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_texts_that_are_cut_are_counted(family, models):
    backend = ImageEmbedderBackend(models[family], device="cpu", encode_batch_size=3)
    backend.load()
    full = "a " * 10  # with the marks of both ends as many tokens as the model reads
    rows = [
        row(0, texts=["dog", full]),
        row(1, encoded(picture(0))),
        row(2, texts=["a", "a " * 11]),
    ]

    found = [deviations_of(answer) for answer in backend.batch_predict(rows)]

    assert found == [(), (), ("truncated",)]


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_pooling_is_over_the_last_layer(pooling, models):
    import torch

    backend = ImageEmbedderBackend(models["dinov2"], device="cpu", pooling=pooling)
    backend.load()
    image = picture(0)
    (answer,) = backend.batch_predict([row(0, encoded(image), normalize=False)])

    with torch.no_grad():
        pixels = torch.from_numpy(backend._pixels(image))[None]
        hidden = backend._model(pixel_values=pixels).last_hidden_state[0]
    expected = hidden[0] if pooling == "cls" else hidden[1:].mean(0)

    np.testing.assert_allclose(answer.embeddings[0], expected.numpy(), atol=1e-5)


def test_half_precision_is_close(models):
    request = row(0, encoded(picture(0)))
    answers = []
    for dtype in ("float32", "bfloat16"):
        backend = ImageEmbedderBackend(models["clip"], device="cpu", dtype=dtype)
        backend.load()
        answers.append(backend.predict(request).embeddings)

    np.testing.assert_allclose(*answers, atol=0.03)


def test_uris_in_s3_are_read_by_the_worker_and_a_missing_one_is_its_rows_error(
    models, s3, tmp_path, monkeypatch
):
    images = [encoded(picture(i, (30 + i, 50))) for i in range(6)]
    uris = [s3.put(f"catalogue/{i}.png", data) for i, data in enumerate(images)]
    uris[4] = s3.uri("catalogue/gone.png")
    rows = [row(i, image_uris=[uri]) for i, uri in enumerate(uris)]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(r.model_dump_json(exclude_none=True) + "\n" for r in rows))
    options = s3.options()
    monkeypatch.setenv("CATALOGUE_SECRET", options["secret"])
    model = ModelSpec(
        name="images",
        model_type="embedding",
        backend="image_embedder",
        backend_kwargs={
            "model_id": models["dinov2"],
            "device": "cpu",
            "storage_options": {**options, "secret": {"env": "CATALOGUE_SECRET"}},
        },
    )
    sink = tmp_path / "out.jsonl"

    result = BatchRunner(model).run(
        BatchSpec(source=str(source), sink=str(sink), compute="local", on_error="record")
    )

    answers = read_rows(sink)
    assert result.error_rows == 1
    assert [a["request_id"] for a in answers] == [str(r.request_id) for r in rows]
    assert answers[4]["error"]["type"] == "FileNotFoundError"
    assert "catalogue/gone.png" in answers[4]["error"]["message"]
    backend = ImageEmbedderBackend(models["dinov2"], device="cpu")
    backend.load()
    inline = backend.batch_predict([row(i, data) for i, data in enumerate(images) if i != 4])
    found = [a["embeddings"] for i, a in enumerate(answers) if i != 4]
    np.testing.assert_allclose(found, [a.embeddings for a in inline], atol=1e-5)


def test_a_broken_image_is_named_with_its_row(models):
    backend = ImageEmbedderBackend(models["dinov2"], device="cpu")
    backend.load()
    whole = encoded(picture(1), "JPEG")

    with pytest.raises(ValueError, match=rf"{UUID(int=2)}: image 1 can't be read as an image"):
        backend.batch_predict([row(0, whole), row(1, whole, whole[: len(whole) // 2])])


def test_texts_for_a_model_without_a_text_tower_are_refused(models):
    backend = ImageEmbedderBackend(models["dinov2"], device="cpu")
    backend.load()
    with pytest.raises(ValueError, match="embeds images only"):
        backend.batch_predict([row(0, texts=["a"])])


def test_an_unset_variable_for_a_credential_is_named(models):
    backend = ImageEmbedderBackend(
        models["dinov2"], storage_options={"secret": {"env": "SHEAF_NO_SUCH_VARIABLE"}}
    )
    with pytest.raises(SpecError, match=r"storage_options.secret: .* SHEAF_NO_SUCH_VARIABLE"):
        backend.load()


@pytest.mark.parametrize("name", ["encode_batch_size", "read_threads"])
def test_numbers_that_can_not_work_are_refused_at_once(name):
    with pytest.raises(SpecError, match=rf"'{name}' must be at least 1 \(got 0\)"):
        ImageEmbedderBackend(**{name: 0})


def test_a_photo_is_turned_upright():
    image = Image.new("RGB", (40, 20), "red")
    image.paste("blue", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to view

    upright = decode_image(encoded(image, "PNG", exif=exif))

    assert upright.size == (20, 40)
    assert upright.getpixel((10, 5)) == (0, 0, 255)
    assert upright.getpixel((10, 35)) == (255, 0, 0)


def test_transparency_becomes_white_and_16_bits_are_scaled():
    clear = Image.new("RGBA", (2, 1), (10, 20, 30, 255))
    clear.putpixel((1, 0), (10, 20, 30, 0))
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 200, 0, 0])
    palette.putpixel((1, 0), 1)
    deep = Image.fromarray(np.array([[0, 32896, 65535]], dtype=np.uint16))

    assert list(decode_image(encoded(clear)).getdata()) == [(10, 20, 30), (255, 255, 255)]
    assert list(decode_image(encoded(palette, transparency=0)).getdata()) == [
        (255, 255, 255),
        (200, 0, 0),
    ]
    assert list(decode_image(encoded(deep)).getdata()) == [(0,) * 3, (128,) * 3, (255,) * 3]


def test_a_row_gives_images_in_one_way(tmp_path):
    with pytest.raises(ValueError, match="'images_b64' and 'image_uris'"):
        row(0, images_b64=[], image_uris=[])
    kept = row(0, image_uris=["s3://bucket/a.png"]).model_dump_json()
    assert json.loads(kept)["image_uris"] == ["s3://bucket/a.png"]
