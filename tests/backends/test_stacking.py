"""Rows of arrays in the types that a model takes."""

from __future__ import annotations

import pytest

from sheaf_dagster.backends.stacking import InputField, Stacker
from sheaf_dagster.contracts import TensorsRequest


def stacker(dtype: str) -> Stacker:
    return Stacker({"x": InputField(dtype=dtype)}, {}, lambda stacked: {"y": stacked["x"]})


def row(x) -> TensorsRequest:
    return TensorsRequest(model_name="m", inputs={"x": x})


@pytest.mark.parametrize("dtype", ["float16", "float64", "int8", "int64", "uint8", "bool", "str"])
def test_the_warm_up_row_is_one_that_the_model_takes(dtype):
    made = stacker(dtype)

    (answer,) = made.answer(made.examples({"x": (2, 3)}))

    assert answer.outputs["y"].shape == (2, 3)


@pytest.mark.parametrize(("dtype", "x"), [("uint8", [0, 255]), ("int8", [-128]), ("bool", [0, 1])])
def test_integers_fit_by_their_size(dtype, x):
    (answer,) = stacker(dtype).answer([row(x)])

    assert answer.outputs["y"].dtype == dtype
    assert answer.outputs["y"].tolist() == x


@pytest.mark.parametrize(("dtype", "x"), [("int8", [300]), ("uint8", [-1]), ("bool", [0, 2])])
def test_an_integer_that_does_not_fit_is_refused_and_not_wrapped(dtype, x):
    with pytest.raises(ValueError, match=rf"input 'x': .* is not within .* \({dtype}\)"):
        stacker(dtype).answer([row(x)])


def test_a_fraction_is_no_integer():
    with pytest.raises(ValueError, match="float64 values can't be int64"):
        stacker("int64").answer([row([0.5])])
