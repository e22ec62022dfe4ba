"""From the bytes of an image file to RGB pixels, whatever its mode."""

from __future__ import annotations

import io
from typing import Any

__all__ = ["decode_image"]


def decode_image(data: bytes) -> Any:
    """An RGB ``PIL.Image``, upright.

    A camera's rotation (EXIF) is applied, transparency becomes white, grey is repeated in the
    three channels, 16-bit values are scaled to 8 bits, and of an animation the first frame is
    taken.

    Raises:
        ValueError: The bytes are no image that Pillow reads, or it is cut short.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(data)) as opened:
            opened.load()
            image = ImageOps.exif_transpose(opened)
    except Exception as e:
        raise ValueError(f"is no readable image ({type(e).__name__}: {e})") from e
    if image.mode.startswith("I"):  # 16 bits; a plain conversion would clip them
        import numpy as np

        return Image.fromarray((np.asarray(image).clip(0, 65535) / 257).astype("uint8")).convert(
            "RGB"
        )
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        ground = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")
