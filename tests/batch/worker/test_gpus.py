"""Figures of GPUs, sampled by NVIDIA's own bindings over a driver that is pretended.

No machine of ours has a GPU: the C functions of the driver are Python functions here, and all above
them, ``nvidia-ml-py`` included, is real.
"""

from __future__ import annotations

import ctypes

import pytest

from sheaf_dagster import BatchRunner, ResourceConfig
from sheaf_dagster.batch.rows.sample import OutputSample
from sheaf_dagster.batch.worker import gpus
from sheaf_dagster.batch.worker.gpus import GpuSampler
from sheaf_dagster.definitions.metadata import result_metadata
from tests.batch.jobs import spec
from tests.toys import shaped

pynvml = pytest.importorskip("pynvml")
NOT_SUPPORTED = 3


class Driver:
    """The C functions of two GPUs."""

    def __init__(self, rates=(40, 80), used=(1 << 30, 3 << 30)) -> None:
        self.rates, self.used, self.error = rates, used, 0

    def nvmlInitWithFlags(self, flags):
        return 0

    def nvmlDeviceGetCount_v2(self, count):
        count._obj.value = len(self.rates)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index, handle):
        ctypes.c_void_p.from_buffer(handle._obj).value = 1 + index.value
        return 0

    def nvmlDeviceGetUtilizationRates(self, handle, found):
        found._obj.gpu = self.rates[_index(handle)]
        return self.error

    def nvmlDeviceGetMemoryInfo(self, handle, found):
        found._obj.used = self.used[_index(handle)]
        return self.error


def _index(handle) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value - 1


@pytest.fixture
def driver(monkeypatch) -> Driver:
    made = Driver()
    monkeypatch.setattr(pynvml, "nvmlLib", made)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    gpus._nvml.cache_clear()
    yield made
    gpus._nvml.cache_clear()


@pytest.mark.parametrize(
    ("visible", "utilisation", "memory"),
    [(None, 0.6, 3), ("0", 0.4, 1), ("1", 0.8, 3), ("0,1", 0.6, 3)],
)
def test_the_gpus_that_a_worker_sees_are_sampled(driver, monkeypatch, visible, utilisation, memory):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    with GpuSampler(reserved=True) as sampler:
        found = sampler.take()

    assert found.samples >= 1
    assert found.utilisation / found.samples == pytest.approx(utilisation)
    assert found.memory_bytes == memory << 30


@pytest.mark.parametrize("visible", ["", "-1"])
def test_a_worker_without_a_gpu_on_a_machine_that_has_some_shows_none(driver, monkeypatch, visible):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with GpuSampler(reserved=True) as sampler:
        assert sampler.take().samples == 0


def test_gpus_that_others_use_are_not_this_models(driver):
    with GpuSampler(reserved=False) as sampler:
        assert sampler.take().samples == 0


def test_a_gpu_that_tells_nothing_is_left_alone(driver):
    driver.error = NOT_SUPPORTED
    with GpuSampler(reserved=True) as sampler:
        assert sampler.take().samples == sampler.take().samples == 0


def run(write_rows, tmp_path, num_gpus: float):
    model = shaped("stages").model_copy(update={"resources": ResourceConfig(num_gpus=num_gpus)})
    job = spec(write_rows([float(i) for i in range(64)]), tmp_path, compute="local")
    result = BatchRunner(model).run(job)
    sample = OutputSample([], in_order=True, compared=0)
    return result, result_metadata(result, job, model, sample, partitioned=False, preview=False)


def test_a_materialisation_has_the_figures_as_numbers(driver, write_rows, tmp_path):
    result, metadata = run(write_rows, tmp_path, num_gpus=2)

    assert result.gpu_utilisation == pytest.approx(0.6)
    assert result.gpu_memory_bytes == 3 << 30
    assert (metadata["gpu_utilisation"], metadata["gpu_memory_peak_gib"]) == (0.6, 3.0)


def test_without_a_driver_nothing_is_shown(write_rows, tmp_path):
    gpus._nvml.cache_clear()
    result, metadata = run(write_rows, tmp_path, num_gpus=1)

    assert (result.gpu_utilisation, result.gpu_memory_bytes) == (None, None)
    assert not [key for key in metadata if "gpu" in key]
