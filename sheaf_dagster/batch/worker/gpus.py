"""How busy the GPUs of a worker are, as NVIDIA's own library (NVML) says."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Self

__all__ = ["GpuFigures", "GpuSampler"]

_PERIOD_SECONDS = 0.2
"""NVML's own figure is over the last sixth of a second, or a whole one, by the product."""


class GpuFigures(NamedTuple):
    """What was seen of the GPUs in some time."""

    samples: int = 0
    utilisation: float = 0.0
    """The sum over the samples: of each the share of time in which a kernel ran, over the GPUs."""
    memory_bytes: int = 0
    """The most that was in use on one of them, whoever used it."""


class GpuSampler:
    """Looks at the GPUs that a model uses, from a thread, while it is entered.

    Without a GPU, or without ``nvidia-ml-py``, it sees nothing and starts no thread.

    Args:
        reserved: Whether GPUs were reserved for the model: all that this process sees are then
            its own. Otherwise those count on which torch has memory here.
    """

    def __init__(self, *, reserved: bool) -> None:
        self._nvml = _nvml()
        self._gpus: Sequence[Any] = () if self._nvml is None else _used(self._nvml, reserved)
        self._lock = threading.Lock()
        self._found = GpuFigures()
        self._any = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="sheaf-gpus")

    def __enter__(self) -> Self:
        if self._gpus:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._gpus:
            self._thread.join()

    def take(self) -> GpuFigures:
        """What was seen since the last call."""
        if self._gpus and not self._any:  # a job shorter than the period has one sample
            self._sample()
        with self._lock:
            found, self._found = self._found, GpuFigures()
        return found

    def _run(self) -> None:
        while self._gpus and not self._stop.wait(_PERIOD_SECONDS):
            self._sample()

    def _sample(self) -> None:
        nvml = self._nvml
        try:
            rates = [nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100 for gpu in self._gpus]
            used = max(int(nvml.nvmlDeviceGetMemoryInfo(gpu).used) for gpu in self._gpus)
        except nvml.NVMLError:  # a slice of a GPU (MIG) has none, or the driver is gone
            self._gpus = ()
            return
        with self._lock:
            self._any = True
            samples, utilisation, memory = self._found
            self._found = GpuFigures(
                samples + 1, utilisation + sum(rates) / len(rates), max(memory, used)
            )


@lru_cache(maxsize=1)
def _nvml() -> Any:
    """The library, ready to be asked; None where it or the driver isn't there."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def _used(nvml: Any, reserved: bool) -> list[Any]:
    """Handles of the GPUs that the model of this process uses."""
    try:
        names = _of_torch()
        if not names and reserved:
            names = _visible(nvml.nvmlDeviceGetCount())
        return [
            nvml.nvmlDeviceGetHandleByIndex(int(name))
            if name.isdigit()
            else nvml.nvmlDeviceGetHandleByUUID(name)
            for name in names
        ]
    except nvml.NVMLError:
        return []


def _of_torch() -> list[str]:
    """UUIDs of the GPUs on which torch has memory in this process."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return []
    used = [i for i in range(torch.cuda.device_count()) if torch.cuda.memory_reserved(i)]
    ids = [getattr(torch.cuda.get_device_properties(i), "uuid", None) for i in used]
    return [f"GPU-{id}" for id in ids if id is not None]


def _visible(count: int) -> list[str]:
    """What this process may use, by number or UUID, of so many GPUs."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return [str(i) for i in range(count)]
    return [name.strip() for name in given.split(",") if name.strip() not in ("", "-1")]
