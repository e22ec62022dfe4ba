"""An ONNX file through onnxruntime."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Self

from sheaf_dagster.backends.common.files import file_identity, local_file, resolve_options
from sheaf_dagster.backends.common.libraries import require
from sheaf_dagster.backends.tables.stacking import (
    InputField,
    ModelInput,
    OutputField,
    Stacker,
    StackingBackend,
    parse_fields,
)
from sheaf_dagster.errors import SpecError

__all__ = ["OnnxBackend"]

_NAME = "onnx"
_PATH = "model.onnx"
_DTYPES = {"float": "float32", "double": "float64", "string": "str"}


class OnnxBackend(StackingBackend):
    """Runs an ONNX model over rows of named arrays.

    Names and types come from the model. A row holds one example without the batch axis, which is the
    first axis of every input and output. Rows of equal shapes run together. Rows of different shapes
    run together if ``inputs`` says how to pad. A batch axis of fixed size is respected. An input of
    single columns (n × 1, as skl2onnx makes them) takes ``[value]``. ``null`` becomes NaN in inputs of
    floats. A number outside the range of the input's type is refused.

    Args:
        path: The ``.onnx`` file: a path or an fsspec URI. Weights outside the file work only beside
            a local one.
        inputs: Settings of the inputs that need some:
            ``{"ids": {"pad": 0, "mask": "attention_mask"}}``.
        outputs: The outputs to return, by default all. ``{"y": {"trim_to": "ids"}}`` removes the
            padding of ``ids`` again.
        device: ``"auto"`` (a GPU if this onnxruntime has one), ``"cpu"`` or ``"cuda"``.
        max_batch_size: Rows that run at once, if that is less than the job's batch.
        storage_options: Arguments of the file system of a remote path.

    Raises:
        SpecError: At load: the declared fields don't fit the model.
        MissingDependencyError: At load: onnxruntime is not installed.
    """

    @classmethod
    def identify(
        cls, *, path: str = _PATH, storage_options: dict[str, Any] | None = None, **_: Any
    ) -> str | None:
        return file_identity(path, storage_options)

    def __init__(
        self,
        path: str = _PATH,
        inputs: dict[str, Any] | None = None,
        outputs: dict[str, Any] | list[str] | None = None,
        device: str = "auto",
        max_batch_size: int | None = None,
        storage_options: dict[str, Any] | None = None,
    ) -> None:
        self._path = path
        self._declared: dict[str, InputField] = parse_fields(InputField, inputs, "inputs")
        self._outputs: dict[str, OutputField] = parse_fields(OutputField, outputs, "outputs")
        self._device = device
        self._max_batch_size = max_batch_size
        self._storage_options = storage_options
        self._session: Any = None
        self._wanted: list[str] = []

    def load(self) -> None:
        (runtime,) = require(_NAME, "onnx", "onnxruntime")
        options = runtime.SessionOptions()
        if "OMP_NUM_THREADS" in os.environ:  # Ray's share of the CPUs
            options.intra_op_num_threads = int(os.environ["OMP_NUM_THREADS"])
        with local_file(self._path, resolve_options(self._storage_options)) as path:
            self._session = runtime.InferenceSession(
                path, options, providers=_providers(runtime, self._device)
            )
        given = self._session.get_inputs()
        self._check_names("inputs", self._declared, [i.name for i in given])
        has = [o.name for o in self._session.get_outputs()]
        self._check_names("outputs", self._outputs, has)
        self._wanted = list(self._outputs) or has
        model = {i.name: ModelInput(_dtype(i.name, i.type), _row_shape(i.shape)) for i in given}
        fixed = given[0].shape[0] if given[0].shape else None
        fewest, most = (fixed, fixed) if isinstance(fixed, int) else (1, self._max_batch_size)
        self._stacker = Stacker(model, self._declared, self._outputs, self._run, fewest, most)

    def without_model(self) -> Self:
        other = super().without_model()
        other._session = None
        return other

    def _run(self, stacked: dict[str, Any]) -> dict[str, Any]:
        found = self._session.run(self._wanted, stacked)
        return dict(zip(self._wanted, found, strict=True))

    def _check_names(self, what: str, declared: dict[str, Any], known: list[str]) -> None:
        unknown = sorted(set(declared) - set(known))
        if unknown:
            raise SpecError(
                f"{self._path} has no {what} {', '.join(unknown)}; it has {', '.join(known)}"
            )


def _providers(runtime: Any, device: str) -> list[str]:
    known = runtime.get_available_providers()
    if device == "cuda" and "CUDAExecutionProvider" not in known:
        raise SpecError(
            "device='cuda', but this onnxruntime has no GPU support; install onnxruntime-gpu"
        )
    gpu = ["CUDAExecutionProvider"] if device != "cpu" and "CUDAExecutionProvider" in known else []
    return [*gpu, "CPUExecutionProvider"]


def _dtype(name: str, onnx_type: str) -> str:
    """``tensor(float)`` as numpy's name."""
    inner = onnx_type.removeprefix("tensor(").removesuffix(")")
    if "(" in inner or inner == "bfloat16":  # numpy, and so the runtime's Python, has no bfloat16
        raise SpecError(f"input {name!r} is a {onnx_type}, which a row can't give")
    return _DTYPES.get(inner, inner)


def _row_shape(shape: Sequence[Any] | None) -> tuple[Any, ...] | None:
    """A shape without its batch axis; None where the model doesn't tell."""
    return tuple(shape[1:]) if shape else None
