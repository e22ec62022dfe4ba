"""Rows and answers of embedders. Field-compatible with sheaf-serve 0.13."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from sheaf_dagster.contracts.base import BaseRequest, BaseResponse, ModelType

__all__ = ["EmbeddingRequest", "EmbeddingResponse", "Vector"]

Vector = Annotated[list[float], Field(json_schema_extra={"format": "vector"})]
"""Numbers of which every row of a file has as many, as a rule: a column of such lists, or of lists of
them, has a fixed width in a table where they really do."""

_DATA_URI = re.compile(r"data:[^,;]*(?:;[^,;]*)*;base64,", re.IGNORECASE)


class EmbeddingRequest(BaseRequest):
    """Texts or images to embed; one row may hold several.

    Attributes:
        texts: Texts to embed.
        images_b64: Image files to embed, base64-encoded; a prefix ``data:image/png;base64,`` is
            left out.
        image_uris: Where to read the image files: paths or fsspec URIs (``s3://…``) that every
            worker can reach. (Not in sheaf-serve.) Exactly one of the three is given.
        normalize: Scale each embedding to length 1.
    """

    model_type: Literal[ModelType.EMBEDDING] = ModelType.EMBEDDING

    texts: list[str] | None = None
    images_b64: list[str] | None = None
    image_uris: list[str] | None = None
    normalize: bool = True

    @field_validator("images_b64")
    @classmethod
    def _check_base64(cls, images: list[str] | None) -> list[str] | None:
        if images is None:
            return None
        images = [
            image[found.end() :] if (found := _DATA_URI.match(image)) else image for image in images
        ]
        for i, image in enumerate(images):
            try:
                base64.b64decode(image, validate=True)
            except (binascii.Error, ValueError) as e:
                raise ValueError(f"image {i} is not valid base64: {e}") from e
        return images

    @model_validator(mode="after")
    def _check_input(self) -> Self:
        names = [n for n in ("texts", "images_b64", "image_uris") if getattr(self, n) is not None]
        if not names:
            raise ValueError("needs 'texts', 'images_b64' or 'image_uris'")
        if len(names) > 1:
            raise ValueError(f"has {' and '.join(map(repr, names))}; give one of them")
        return self


class EmbeddingResponse(BaseResponse):
    """Embeddings of a row's inputs.

    Attributes:
        embeddings: One vector an input (shape: n_inputs × dim).
        dim: Length of a vector.
    """

    model_type: Literal[ModelType.EMBEDDING] = ModelType.EMBEDDING

    embeddings: list[Vector]
    dim: int
