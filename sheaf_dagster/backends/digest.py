"""Identity of a model's weights."""

from __future__ import annotations

import hashlib
import os

__all__ = ["weights_digest"]

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".json", ".model", ".txt")


def weights_digest(model_id: str, revision: str | None = None) -> str:
    """A digest of a local folder's weights and configuration, or the hub id with its revision.

    Args:
        model_id: A local path or a hub id.
        revision: Commit that the hub resolved, where it is known.
    """
    if not os.path.isdir(model_id):
        return f"{model_id}@{revision or 'main'}"
    digest = hashlib.sha256()
    for root, folders, files in os.walk(model_id):
        folders.sort()
        for name in sorted(files):
            if name.endswith(_WEIGHTS):
                path = os.path.join(root, name)
                digest.update(os.path.relpath(path, model_id).encode() + b"\0")
                with open(path, "rb") as f:
                    while block := f.read(2**22):
                        digest.update(block)
    return f"sha256:{digest.hexdigest()}"
