"""What a resource is given by name."""

from __future__ import annotations

import dagster as dg
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


MODEL = {"name": "m", "model_type": "t", "backend": "b"}


@pytest.mark.parametrize(
    ("make", "field", "instead"),
    [
        (
            lambda: sd.RayClusterResource(gpu_limit=dg.EnvVar.int("X")),
            "RayClusterResource: gpu_limit",
            'float(os.environ["X"])',
        ),
        (
            lambda: sd.RayClusterResource(gpu_limit=dg.EnvVar("X")),
            "RayClusterResource: gpu_limit",
            'float(os.environ["X"])',
        ),
        (
            lambda: sd.RayClusterResource(autoscaling=dg.EnvVar("X")),
            "RayClusterResource: autoscaling",
            'os.environ["X"] == "true"',
        ),
        (
            lambda: sd.RayClusterResource(engine=dg.EnvVar("X")),
            "RayClusterResource: engine",
            'os.environ["X"]',
        ),
        (
            lambda: sd.ModelResource(**MODEL, custom_resources={"tpu": dg.EnvVar("X")}),
            "ModelResource: custom_resources.tpu",
            'float(os.environ["X"])',
        ),
        (
            lambda: sd.ModelResource(**MODEL, backend_kwargs={"a": [{"b": dg.EnvVar.int("X")}]}),
            "ModelResource: backend_kwargs.a[0].b",
            'int(os.environ["X"])',
        ),
    ],
)
def test_a_variable_that_dagster_cannot_fill_in_is_refused_with_what_to_write(make, field, instead):
    with pytest.raises(sd.SpecError) as refused:
        make()

    assert f"{field} can't be an EnvVar (X)" in str(refused.value)
    assert f"give {instead}, which is read when the definitions are loaded" in str(refused.value)


def test_variables_of_text_and_of_free_dictionaries_are_taken():
    name = dg.EnvVar("X")

    cluster = sd.RayClusterResource(address=name, headers={"Authorization": name})
    model = sd.ModelResource(**{**MODEL, "name": name}, backend_kwargs={"a": [{"b": name}]})
    storage = sd.StorageResource(root=name, storage_options={"key": name})

    assert isinstance(cluster.address, dg.EnvVar)
    assert model.to_spec().backend_kwargs == {"a": [{"b": {"env": "X"}}]}
    assert isinstance(storage.root, dg.EnvVar)
