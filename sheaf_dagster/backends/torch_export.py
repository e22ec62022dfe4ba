"""A team's own torch model, saved by ``torch.export.save``, without a class of ours."""

from __future__ import annotations

from typing import Any, Self

from sheaf_dagster.backends.common.device import from_device
from sheaf_dagster.backends.common.files import file_identity, local_file, resolve_options
from sheaf_dagster.backends.common.libraries import pick_device, require, use_own_threads
from sheaf_dagster.backends.tables.stacking import (
    InputField,
    ModelInput,
    OutputField,
    Stacker,
    StackingBackend,
    parse_fields,
)
from sheaf_dagster.errors import SpecError

__all__ = ["TorchExportBackend"]

_NAME = "torch_export"
_PATH = "model.pt2"


class TorchExportBackend(StackingBackend):
    """Runs an exported program over rows of named arrays.

    A row holds one example without the batch axis, which is the first axis of every input and output.
    Rows of equal shapes run together. Rows of different shapes run together if ``inputs`` says how to
    pad. The program's limits on its batch axis are respected: larger batches are run in pieces, and
    smaller ones (if the batch axis isn't dynamic) are filled up by repeats. Values get the program's own
    types: ``null`` becomes NaN in inputs of floats, and a number outside the range of the type is
    refused.

    Args:
        path: The ``.pt2`` file, a path or an fsspec URI. Load only files that you trust.
        inputs: Names of the program's arguments in their order, with settings for those that need
            some: ``{"x": {"pad": 0.0, "mask": "x_mask"}, "x_mask": {}}``, or a list of names. By
            default the program's own names.
        outputs: Names of the returned values, in order. ``{"y": {"trim_to": "x"}}`` removes the
            padding of ``x`` again. By default the keys of a returned dictionary, or else
            ``output``, ``output_1`` …
        device: ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"`` …
        max_batch_size: Rows that run at once, if that is less than the job's batch.
        storage_options: Arguments of the file system of a remote path.

    Raises:
        SpecError: At load: the declared fields don't fit the program.
        MissingDependencyError: At load: torch is not installed.
    """

    @classmethod
    def identify(
        cls, *, path: str = _PATH, storage_options: dict[str, Any] | None = None, **_: Any
    ) -> str | None:
        return file_identity(path, storage_options)

    def __init__(
        self,
        path: str = _PATH,
        inputs: dict[str, Any] | list[str] | None = None,
        outputs: dict[str, Any] | list[str] | None = None,
        device: str = "auto",
        max_batch_size: int | None = None,
        storage_options: dict[str, Any] | None = None,
    ) -> None:
        self._path = path
        self._outputs: dict[str, OutputField] = parse_fields(OutputField, outputs, "outputs")
        self._inputs: dict[str, InputField] = parse_fields(InputField, inputs, "inputs")
        self._device = device
        self._max_batch_size = max_batch_size
        self._storage_options = storage_options
        self._module: Any = None
        self._dtypes: dict[str, Any] = {}

    def load(self) -> None:
        torch, export = require(_NAME, "torch", "torch", "torch.export")
        use_own_threads(torch)
        self._device = pick_device(torch, self._device)
        with local_file(self._path, resolve_options(self._storage_options)) as path:
            program = export.load(path)
        if self._device != "cpu":
            (passes,) = require(_NAME, "torch", "torch.export.passes")
            program = passes.move_to_device_pass(program, self._device)
        names, values = _arguments(program)
        if not self._inputs:
            self._inputs = {n: InputField() for n in names}
        if len(self._inputs) != len(names):
            raise SpecError(
                f"{self._path} takes {len(names)} arguments ({', '.join(names)}), but 'inputs' "
                f"declares {len(self._inputs)}"
            )
        self._dtypes = {n: v.dtype for n, v in zip(self._inputs, values, strict=True)}
        model = {
            n: ModelInput(str(v.dtype).removeprefix("torch."), tuple(v.shape[1:]))
            for n, v in zip(self._inputs, values, strict=True)
        }
        fewest, most = _batch_bounds(program, values)
        if self._max_batch_size is not None:
            most = max(fewest, min(most or self._max_batch_size, self._max_batch_size))
        self._module = program.module()
        self._stacker = Stacker(model, self._inputs, self._outputs, self._run, fewest, most)

    def without_model(self) -> Self:
        other = super().without_model()
        other._module, other._dtypes = None, {}
        return other

    def _run(self, stacked: dict[str, Any]) -> dict[str, Any]:
        import torch

        arguments = [
            self._on_device(torch.from_numpy(stacked[n]), t) for n, t in self._dtypes.items()
        ]
        with torch.inference_mode():
            found = self._module(*arguments)
        if isinstance(found, dict):
            return {str(k): _numbers(v) for k, v in found.items()}
        several = list(found) if isinstance(found, (tuple, list)) else [found]
        names = list(self._outputs) or ["output", *(f"output_{i}" for i in range(1, len(several)))]
        if len(names) != len(several):
            raise SpecError(
                f"{self._path} returns {len(several)} values, but 'outputs' names {len(names)}"
            )
        return {name: _numbers(v) for name, v in zip(names, several, strict=True)}

    def _on_device(self, tensor: Any, dtype: Any) -> Any:
        """A batch in the program's type; from pinned memory the copy to a GPU waits for nothing."""
        if self._device.startswith("cuda"):
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True).to(dtype)


def _numbers(tensor: Any) -> Any:
    import torch

    return from_device(
        tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
    )


def _arguments(program: Any) -> tuple[list[str], list[Any]]:
    """Names of a program's inputs and their example values."""
    wanted = set(program.graph_signature.user_inputs)
    nodes = [n for n in program.graph.nodes if n.op == "placeholder" and n.name in wanted]
    return [n.name for n in nodes], [n.meta["val"] for n in nodes]


def _batch_bounds(program: Any, values: list[Any]) -> tuple[int, int | None]:
    """Fewest and most rows that a program's first axis takes."""
    size = values[0].shape[0] if len(values[0].shape) else 1
    if isinstance(size, int):
        return size, size
    for symbol, bounds in program.range_constraints.items():
        if str(symbol) == str(size):
            upper = str(bounds.upper)
            return max(1, int(bounds.lower)), int(upper) if upper.isdigit() else None
    return 1, None
