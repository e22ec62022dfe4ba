"""Pictures of every kind become what a viewer shows, or are refused."""

from __future__ import annotations

import base64
import io
import struct
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from zlib import compress, crc32

import numpy as np
import pytest
from PIL import Image

from sheaf_dagster.backends.common.files import read_uri
from sheaf_dagster.backends.common.images import decode_image
from sheaf_dagster.backends.sheaf_serve import _NAMES_WEIGHTS
from sheaf_dagster.contracts import EmbeddingRequest

RAMP = np.linspace(0, 1, 12).reshape(3, 4)
GREY = (RAMP * 255).round()


RATIONAL_NAN, RATIONAL_NEGATIVE = struct.pack("<II", 0, 0), struct.pack("<ii", -1, 1)
ODD_TAGS = {
    "NaN": (0x11A, 5, 1, RATIONAL_NAN),
    "negative": (0x11A, 10, 1, RATIONAL_NEGATIVE),
    "negative in a whole number": (0x829A, 9, 1, struct.pack("<i", -5)),
    "a text": (0x829A, 2, 4, b"abc\0"),
    "a folder of tags that is a text": (0x8769, 2, 4, b"abc\0"),
    "a folder of tags before the file": (0x8825, 9, 1, struct.pack("<i", -256)),
    "a type that doesn't exist": (0x9999, 99, 1, b"\1\0\0\0"),
    "XMP as a text": (700, 2, 6, b"<x:x>\0"),
}
"""Each with its number, type, count and bytes."""


def tags(*given: tuple[int, int, int, bytes]) -> bytes:
    """A TIFF header and one directory of tags, as EXIF has it, too."""
    entries, data = b"", b""
    for number, kind, count, value in sorted(given):
        if len(value) > 4:
            at = 8 + 2 + 12 * len(given) + 4 + len(data)
            value, data = struct.pack("<I", at), data + value
        entries += struct.pack("<HHI", number, kind, count) + value.ljust(4, b"\0")
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(given)) + entries + bytes(4) + data


def tiff(pixels: np.ndarray, *more: tuple[int, int, int, bytes]) -> bytes:
    """Grey pixels with further tags."""
    height, width = pixels.shape
    bits = 8 * pixels.itemsize
    numbers = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 277: 1, 278: height}

    def head(offset: int) -> bytes:
        numbered = {**numbers, 273: offset, 279: pixels.nbytes}
        own = {n: (n, 4, 1, struct.pack("<I", v)) for n, v in numbered.items()}
        return tags(*(own | {tag[0]: tag for tag in more}).values())

    return head(len(head(0))) + pixels.tobytes()


def png(width: int, depth: int, colour: int, line: bytes, transparent: bytes = b"") -> bytes:
    """One line of pixels, as the PNG specification lays it out."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc32(name + data))

    head = struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0)
    clear = chunk(b"tRNS", transparent) if transparent else b""
    pixels = chunk(b"IDAT", compress(b"\0" + line))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + clear + pixels + chunk(b"IEND", b"")


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


ROTATED = (0x112, 3, 1, struct.pack("<H", 6))


@pytest.mark.parametrize("odd", ODD_TAGS)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_odd_tags_do_not_keep_a_picture_from_being_turned(form, odd):
    exif = b"Exif\0\0" + tags(ROTATED, ODD_TAGS[odd])

    assert decode_image(stored(Image.new("RGB", (30, 20)), form, exif=exif)).size == (20, 30)


@pytest.mark.parametrize("odd", ODD_TAGS)
def test_odd_tags_of_a_tiff_do_not_matter(odd):
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40

    plain, turned = (decode_image(tiff(pixels, ODD_TAGS[odd], *more)) for more in ((), (ROTATED,)))

    assert np.array_equal(np.asarray(plain)[..., 0], pixels)
    assert np.array_equal(np.asarray(turned)[..., 0], np.rot90(pixels, -1))


@pytest.mark.parametrize(
    "ori",
    [
        (0x112, 5, 1, RATIONAL_NAN),
        (0x112, 8, 1, struct.pack("<h", -3)),
        (0x112, 2, 2, b"6\0"),
        (0x112, 3, 1, struct.pack("<H", 9)),
    ],
)
def test_an_orientation_that_is_none_leaves_the_picture_as_it_is(ori):
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    jpeg = stored(Image.new("RGB", (30, 20)), "JPEG", exif=b"Exif\0\0" + tags(ori))

    assert decode_image(jpeg).size == (30, 20)
    assert np.array_equal(np.asarray(decode_image(tiff(pixels, ori)))[..., 0], pixels)


def over_white(value: float, alpha: float) -> float:
    return value * alpha + 255 * (1 - alpha)


CLEAR = over_white(100, 128 / 255)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (png(3, 8, 4, bytes([0, 255, 100, 128, 200, 0])), [0, CLEAR, 255]),
        (png(3, 16, 4, struct.pack(">6H", 0, 65535, 25700, 32896, 51400, 0)), [0, CLEAR, 255]),
        (png(3, 16, 0, struct.pack(">3H", 0, 25700, 65535)), [0, 100, 255]),
        (png(3, 16, 0, struct.pack(">3H", 0, 25700, 25701), b"\x64\x64"), [0, 255, 100]),
        (png(3, 8, 0, bytes([0, 100, 200]), b"\0\x64"), [0, 255, 200]),
        (png(2, 4, 0, bytes([0x3A]), b"\0\3"), [255, 170]),
        (png(2, 2, 0, bytes([0b01100000]), b"\0\1"), [255, 170]),
        (png(2, 1, 0, bytes([0b01000000]), b"\0\0"), [255, 255]),
    ],
)
def test_transparent_grey_of_any_depth_becomes_white(data, expected):
    found = np.asarray(decode_image(data))[0].astype(float)

    assert np.abs(found - np.array(expected)[:, None]).max() <= 1


def test_a_palette_with_an_alpha_of_each_pixel_is_shown_on_white():
    picture = Image.new("PA", (3, 1))
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    for x, alpha in enumerate((255, 128, 0)):
        picture.putpixel((x, 0), (x, alpha))

    found = np.asarray(decode_image(stored(picture, "TIFF")))[0]

    assert found.tolist() == [[255, 0, 0], [127, 255, 127], [255, 255, 255]]


def test_a_transparent_colour_that_cannot_be_told_apart_is_refused():
    line = struct.pack(">6H", 0, 0, 0, 256, 257, 258)

    with pytest.raises(ValueError, match="transparent colour of 16 bits per channel"):
        decode_image(png(2, 16, 2, line, struct.pack(">3H", 256, 257, 258)))
    assert decode_image(png(2, 16, 2, line)).getpixel((1, 0)) == (1, 1, 1)


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


WHITE_IS_0, SIGNED, FLOATS = (
    (n, 3, 1, struct.pack("<H", v)) for n, v in ((262, 0), (339, 2), (339, 3))
)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (tiff(np.array([[0, 65535]], np.uint16), WHITE_IS_0), [255, 0]),
        (tiff(np.array([[0, 1]], np.float32), WHITE_IS_0, FLOATS), [255, 0]),
        (tiff(np.array([[0, 32767]], np.int16), SIGNED), [0, 255]),
        (tiff(np.array([[0, 127]], np.int8), SIGNED), [0, 255]),
        # Two values of 12 bits: 0 and 4095.
        (
            tiff(
                np.array([[0x00, 0x0F, 0xFF]], np.uint8),
                (256, 4, 1, struct.pack("<I", 2)),
                (258, 3, 1, struct.pack("<H", 12)),
            ),
            [0, 255],
        ),
    ],
)
def test_deep_pictures_are_as_bright_as_their_tags_say(data, expected):
    assert np.asarray(decode_image(data))[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ("values", "more"),
    [
        (np.array([[-5, 10]], np.int32), SIGNED),
        (np.array([[0, 70_000]], np.int32), SIGNED),
        (np.array([[-1, 10]], np.int8), SIGNED),
        (np.array([[-1, 10]], np.int16), SIGNED),
        (np.array([[0, np.nan]], np.float32), FLOATS),
        (np.array([[-0.5, 1]], np.float32), FLOATS),
        (np.array([[0, 1e9]], np.float32), FLOATS),
    ],
)
def test_values_without_a_known_range_are_refused(values, more):
    with pytest.raises(ValueError, match="has values from"):
        decode_image(tiff(values, more))


def test_what_is_no_whole_image_is_refused_in_the_same_words_each_time(monkeypatch):
    whole = stored(Image.new("RGB", (90, 90), "red"), "PNG")
    for data in (b"", b"nothing", whole[:60], whole[: len(whole) // 2]):
        with pytest.raises(ValueError, match="can't be read as an image") as e:
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
