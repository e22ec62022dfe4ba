"""What a resource is given by name."""

from __future__ import annotations

import pytest

import sheaf_dagster as sd


@pytest.mark.parametrize(
    ("make", "typo", "meant"),
    [
        (lambda: sd.ModelResource(name="m", model_type="t", backend="b", num_gpu=1), "num_gpu", "num_gpus"),
        (lambda: sd.RayClusterResource(gpu_limits=2), "gpu_limits", "gpu_limit"),
        (lambda: sd.StorageResource(root="/data", storage_option={}), "storage_option", "storage_options"),
    ],
)  # fmt: skip
def test_a_misspelt_field_of_a_resource_is_refused_and_the_right_one_named(make, typo, meant):
    with pytest.raises(sd.SpecError) as refused:
        make()

    assert f"has no field {typo!r}; did you mean {meant!r}?" in str(refused.value)
