"""From the bytes of an image file to RGB pixels, whatever its mode."""

from __future__ import annotations

import io
from typing import Any

__all__ = ["decode_image", "is_plain_image"]

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
"""How a picture is turned by each value of the EXIF tag; 1 is upright."""

_PHOTOMETRIC, _BITS, _SAMPLE_FORMAT = 262, 258, 339
"""Tags of a TIFF: whether 0 is white (0) or black (1), bits of a value, and of what kind it is."""
_SIGNED = 2

_SCALES = {"L;2": 85, "L;4": 17}
"""By what Pillow multiplies grey of 2 and 4 bits."""


def decode_image(data: bytes) -> Any:
    """An RGB ``PIL.Image``, upright.

    A camera's rotation (EXIF) is applied, transparency becomes white, grey is repeated in the
    three channels, and of an animation the first frame is taken. Deeper values are scaled to 8
    bits: of up to 16 bits by their type; of 32-bit integers by 255 or 65535, whichever holds them
    all; of floats by 1 or 255.

    Raises:
        ValueError: The bytes are no image that Pillow reads, it is cut short, it has more pixels
            than ``PIL.Image.MAX_IMAGE_PIXELS``, or its values have no such range.
    """
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise ValueError("can't be read as an image: it is empty")
    try:
        with Image.open(io.BytesIO(data)) as opened:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and opened.width * opened.height > limit:
                raise ValueError(f"has {opened.width} × {opened.height} pixels, over {limit}")
            _prepare(opened)
            opened.load()
            image = _upright(opened)
            is_signed = _is_signed(opened)
            is_deep = image.mode.startswith("I") or image.mode == "F" or is_signed
            tops, is_negative = _tops(opened) if is_deep else (), _is_negative(opened)
    except UnidentifiedImageError:  # its own text is an address in memory
        raise ValueError("can't be read as an image: its format is not known") from None
    except Exception as e:
        raise ValueError(f"can't be read as an image ({type(e).__name__}: {e})") from e
    if is_deep:
        kind = "int8" if is_signed and image.mode == "L" else None
        return _from_deep(image, tops, kind, is_negative=is_negative)
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        ground = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def is_plain_image(data: bytes) -> bool:
    """Whether Pillow's own conversion to RGB shows a picture as viewers do: upright, of 8 bits.

    Of what is no picture it is true, too: whoever reads it says so.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as opened:
            is_deep = opened.mode.startswith("I") or opened.mode == "F" or _is_signed(opened)
            return not is_deep and opened.getexif().get(_ORIENTATION, 1) not in _UPRIGHT
    except Exception:
        return True


def _prepare(opened: Any) -> None:
    """Sets right what Pillow's readers would stumble over, or get wrong, in an opened picture."""
    if not isinstance(opened.info.get("xmp", b""), bytes):  # a TIFF's, under another type
        del opened.info["xmp"]
    if opened.format == "TIFF":  # Pillow turns it itself, and follows its tags meanwhile
        exif = opened.getexif()
        for tag in [tag for tag in exif if tag != _ORIENTATION]:
            del exif[tag]
    if opened.format == "PNG" and "transparency" in opened.info and opened.tile:
        # The transparent value is given as stored, while pixels are scaled to 8 bits.
        stored = opened.tile[0].args
        if stored in _SCALES:
            opened.info["transparency"] *= _SCALES[stored]
        elif stored == "RGB;16B":
            raise ValueError(
                "can't be read as an image: it names a transparent colour of 16 bits per channel; "
                "save it with 8 bits per channel, or with an alpha channel"
            )


def _upright(image: Any) -> Any:
    """The picture turned by its tag alone: Pillow's own way writes all tags again, and may fail."""
    from PIL import Image

    try:
        way = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # viewers show a picture whose EXIF is broken, too
        way = None
    return image.copy() if way is None else image.transpose(Image.Transpose[way])


def _is_signed(opened: Any) -> bool:
    """Whether its whole numbers have a sign, which Pillow doesn't look at where they have 8 bits."""
    return bool(opened.format == "TIFF" and opened.tag_v2.get(_SAMPLE_FORMAT, (1,))[0] == _SIGNED)


def _tops(opened: Any) -> tuple[int, ...]:
    """What may be white in a deep picture, whose darkest value is 0."""
    if opened.mode == "F":
        return 1, 255
    if opened.format == "TIFF":
        bits = opened.tag_v2.get(_BITS, (1,))[0]
        return (2 ** (bits - _is_signed(opened)) - 1,) if bits <= 16 else (255, 65535)
    # A PPM's values are scaled to 16 bits as it is read.
    return (255, 65535) if opened.mode == "I" and opened.format != "PPM" else (65535,)


def _is_negative(opened: Any) -> bool:
    """Whether 0 is white; Pillow turns pictures of 8 bits, and leaves deeper ones as stored."""
    return opened.format == "TIFF" and bool(opened.tag_v2.get(_PHOTOMETRIC) == 0)


def _from_deep(image: Any, tops: tuple[int, ...], kind: str | None, *, is_negative: bool) -> Any:
    """A grey picture of more than 8 bits, or of signed values; a plain conversion would clip them.

    Args:
        image: As Pillow has it.
        tops: What may be white.
        kind: The numpy type of its values where Pillow takes them for another.
        is_negative: Whether 0 is white.
    """
    import numpy as np
    from PIL import Image

    stored = np.asarray(image)
    values = (stored if kind is None else stored.view(kind)).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    top = next((top for top in tops if low >= 0 and high <= top), None)
    if top is None:
        raise ValueError(
            f"has values from {low:g} to {high:g}; values of mode {image.mode!r} must lie from 0 to "
            f"{' or to '.join(f'{top:g}' for top in tops)}"
        )
    shown = (values * (255 / top)).round().astype("uint8")
    if is_negative:
        shown = 255 - shown
    if (clear := image.info.get("transparency")) is not None:
        shown[values == clear] = 255
    return Image.fromarray(shown).convert("RGB")
