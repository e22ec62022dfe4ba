"""Pictures of every kind become what a viewer shows, or are refused."""

from __future__ import annotations

import base64
import io
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from sheaf_dagster.backends.files import read_uri
from sheaf_dagster.backends.images import decode_image
from sheaf_dagster.backends.sheaf_serve import _NAMES_WEIGHTS
from sheaf_dagster.contracts import EmbeddingRequest

RAMP = np.linspace(0, 1, 12).reshape(3, 4)
GREY = (RAMP * 255).round()


def stored(image: Image.Image, form: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_with_odd_tags_beside_it(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x829A] = 1  # exposure time, a rational
    noise = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    data = stored(picture, "PNG", exif=exif)
    ways = [None, None, 0, 3, 1, 5, 4, 6, 2]

    upright = decode_image(data)

    way = ways[orientation]
    expected = picture if way is None else picture.transpose(Image.Transpose(way))
    assert np.array_equal(upright, expected)


def test_a_text_where_a_rational_belongs_does_not_matter():
    raw = (
        b"Exif\0\0II*\0\x08\0\0\0\x02\0"
        b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"
        b"\x1a\x01\x02\0\x04\0\0\0abc\0"  # resolution as a text
        b"\0\0\0\0"
    )
    picture = Image.new("RGB", (30, 20), "red")

    assert decode_image(stored(picture, "JPEG", exif=raw)).size == (20, 30)


@pytest.mark.parametrize(
    "values",
    [
        GREY.astype(np.int32),
        (RAMP * 65535).round().astype(np.int32),
        (RAMP * 65535).round().astype(np.uint16),
        RAMP.astype(np.float32),
        GREY.astype(np.float32),
    ],
)
def test_deep_pictures_are_scaled_by_their_range(values):
    found = np.asarray(decode_image(stored(Image.fromarray(values), "TIFF")))

    assert np.abs(found.astype(float) - GREY[..., None]).max() <= 1


@pytest.mark.parametrize(
    "values",
    [
        np.array([[-5, 10]], np.int32),
        np.array([[0, 70_000]], np.int32),
        np.array([[0, np.nan]], np.float32),
        np.array([[-0.5, 1]], np.float32),
        np.array([[0, 1e9]], np.float32),
    ],
)
def test_values_without_a_known_range_are_refused(values):
    with pytest.raises(ValueError, match="has values from"):
        decode_image(stored(Image.fromarray(values), "TIFF"))


def test_what_is_no_whole_image_is_refused_in_the_same_words_each_time(monkeypatch):
    whole = stored(Image.new("RGB", (90, 90), "red"), "PNG")
    for data in (b"", b"nothing", whole[:60], whole[: len(whole) // 2]):
        with pytest.raises(ValueError, match="is no readable image") as e:
            decode_image(data)
        assert " at 0x" not in str(e.value)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    with pytest.raises(ValueError, match="90 × 90 pixels, over 5000"):
        decode_image(whole)


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (4, 4), c) for c in ("red", "blue")]
    data = stored(frames[0], "GIF", save_all=True, append_images=frames[1:])

    assert decode_image(data).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("prefix", ["data:image/png;base64,", "DATA:image/jpeg;x=1;BASE64,", ""])
def test_data_uris_are_read(prefix):
    coded = base64.b64encode(b"picture").decode()

    assert EmbeddingRequest(model_name="m", images_b64=[prefix + coded]).images_b64 == [coded]


def test_only_arguments_called_like_weights_name_a_hub_model():
    yes = ["model", "model_id", "model_name", "weights", "checkpoint_path", "vae_id", "repo_id"]
    no = ["media_type", "mime", "model_type", "output_format", "image_mime_type", "units"]
    assert all(map(_NAMES_WEIGHTS.fullmatch, yes))
    assert not any(map(_NAMES_WEIGHTS.fullmatch, no))


def test_options_made_for_s3_do_not_reach_the_web(s3, tmp_path):
    (tmp_path / "a.png").write_bytes(b"picture")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        web = f"http://127.0.0.1:{server.server_port}/a.png"
        stored_there = s3.put("a.png", b"picture")

        found = [read_uri(uri, s3.options()) for uri in (web, stored_there)]

        server.shutdown()
    assert found == [b"picture", b"picture"]
