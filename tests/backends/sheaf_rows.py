"""A row of every request type of sheaf-serve; modules that import it are skipped without that."""

from __future__ import annotations

import base64
import io
import json
from uuid import UUID

import numpy as np
import pytest
from pydantic import TypeAdapter

from sheaf_dagster.backends import sheaf_serve
from sheaf_dagster.contracts import contract_for

union = pytest.importorskip("sheaf.api.union", reason="sheaf-serve needs Python 3.11")
THEIRS = TypeAdapter(union.AnyRequest)
"""Its own validation of a row of any type."""


def floats(*shape: int) -> str:
    """Random float32 of a shape, in base64."""
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return base64.b64encode(values.tobytes()).decode()


def png(size: tuple[int, int] = (32, 24), seed: int = 0) -> str:
    """A picture of noise, width by height, in base64."""
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
"""What a row of each type must hold."""

ARGUMENTS = {"graphcast": {"checkpoint_path": "/weights/graphcast.npz"}}
"""Of backends that can't be made without."""


def line(model_type: str, **fields) -> bytes:
    """A row as a file holds it."""
    return json.dumps(
        {"model_type": model_type, "model_name": "m", **ROWS[model_type], **fields}
    ).encode()


def theirs() -> dict:
    """Its registry: classes of backends by name."""
    sheaf_serve.sheaf_serve_names()
    return __import__("sheaf.registry", fromlist=["x"])._BACKEND_REGISTRY


def diffusion(i: int, **fields):
    """A request of its own class, with ``i`` as its id."""
    row = json.loads(line("diffusion", request_id=str(UUID(int=i)), **fields))
    return THEIRS.validate_python(row)


def asked_of(model_type: str, **fields):
    """A request of sheaf-serve's own class."""
    return THEIRS.validate_json(line(model_type, **fields))


def made(name: str, **kwargs):
    """A backend of its own class, without a model."""
    return theirs()[name](**kwargs)


def requests(model_type: str, rows: list[dict]) -> list:
    """Requests of our classes, numbered from 1."""
    contract = contract_for(model_type)
    return [
        contract.request.model_validate(
            {**json.loads(line(model_type)), "request_id": UUID(int=i + 1), **row}
        )
        for i, row in enumerate(rows)
    ]
