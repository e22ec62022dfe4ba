"""Pictures as viewers show them, for backends that read them by Pillow's plain conversion."""

from __future__ import annotations

import base64
import io
from typing import Any

from sheaf_dagster.backends.common.images import decode_image, is_plain_image

__all__ = ["as_shown"]

_FIELDS = ("image_b64", "images_b64", "mask_b64", "frames_b64", "frame1_b64", "frame2_b64")


def as_shown(request: Any) -> Any:
    """A request whose pictures are upright and of 8 bits; itself where they are so already.

    Plain conversion to RGB leaves a camera's picture on its side, and clips deep ones to white or
    black.

    Raises:
        ValueError: A deep picture has values of no known range.
    """
    changed: dict[str, Any] = {}
    for field in _FIELDS:
        given = getattr(request, field, None)
        if not given:
            continue
        pictures = given if isinstance(given, list) else [given]
        shown = [_as_shown(picture, f"{field!r}") for picture in pictures]
        if shown != pictures:
            changed[field] = shown if isinstance(given, list) else shown[0]
    return request.model_copy(update=changed) if changed else request


def _as_shown(picture: str, field: str) -> str:
    data = base64.b64decode(picture)
    if is_plain_image(data):
        return picture
    try:
        image = decode_image(data)
    except ValueError as e:
        raise ValueError(f"{field} {e}") from e
    out = io.BytesIO()
    image.save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()
