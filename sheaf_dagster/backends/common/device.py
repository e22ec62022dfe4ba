"""What a GPU has made, brought to main memory while it goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["from_device"]


def from_device(tensor: Any, then: Callable[[Any], Any] = lambda array: array) -> Any:
    """What ``infer`` may return for a torch tensor: its array, or what gives it once it has arrived.

    From a GPU the copy is begun, into pinned memory, and a function is returned that waits for it. By
    then the GPU can have the next batch. A tensor in main memory is an array at once::

        def infer(self, prepared):
            return from_device(self.model(stacked(prepared)))

    Args:
        tensor: A tensor of any device; bfloat16, which numpy lacks, as float32 before.
        then: Makes the outputs of the array. By default the array is the outputs: a row for each.

    Returns:
        ``then(array)``, or a function that returns it.
    """
    if tensor.device.type != "cuda":
        return then(tensor.detach().cpu().numpy())
    import torch

    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor.detach(), non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(tensor.device))

    def arrive() -> Any:
        arrived.synchronize()
        return then(host.numpy())

    return arrive
