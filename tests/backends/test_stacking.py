"""Rows of arrays in the types that a model takes."""

from __future__ import annotations

import importlib
import math
from contextlib import suppress

import numpy as np
import pytest

from sheaf_dagster import SpecError
from sheaf_dagster.backends.tables.stacking import InputField, ModelInput, OutputField, Stacker
from sheaf_dagster.contracts import TensorsRequest


def stacker(kind: str, shape=None, **settings) -> Stacker:
    model = {"x": ModelInput(kind, shape)}
    return Stacker(model, {"x": InputField(**settings)}, {}, lambda stacked: {"y": stacked["x"]})


def row(x) -> TensorsRequest:
    return TensorsRequest(model_name="m", inputs={"x": x})


def seen(made: Stacker, *values):
    """What the model is given for some rows."""
    return [found["y"] for found in made.infer([made.prepare(row(v)) for v in values])]


@pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "float64", "int8", "int64", "uint8", "bool", "str"]
)
def test_the_warm_up_row_is_one_that_the_model_takes(dtype):
    made = stacker(dtype, (2, 3))

    (answer,) = [made.prepare(request)["x"] for request in made.examples()]

    assert answer.shape == (2, 3)


@pytest.mark.parametrize(
    ("dtype", "x"),
    [
        ("uint8", [0, 255]),
        ("int8", [-128]),
        ("bool", [0, 1]),
        ("bool", [True, False]),
        ("int64", [2**53 + 1, 1.0]),
        ("int64", [-(2**63), 2**63 - 1]),
        ("uint64", [2**64 - 1]),
        ("float64", [2**70, 1]),
        ("float64", []),
        ("int32", []),
        ("float16", [65504, -65504.0]),
        ("float32", [[3.4e38], [1]]),
        ("bfloat16", [3.38e38]),
        ("str", ["a", "ß"]),
    ],
)
def test_numbers_fit_by_their_size_and_not_by_how_they_are_written(dtype, x):
    (found,) = seen(stacker(dtype), x)

    assert found.dtype == {"bfloat16": np.float32, "str": object}.get(dtype, dtype)
    if dtype == "str":
        assert found.tolist() == x
    else:
        np.testing.assert_allclose(found.astype(float), np.asarray(x, float), rtol=1e-6)
    if dtype.startswith(("int", "uint")):
        assert found.tolist() == x


@pytest.mark.parametrize(
    ("dtype", "x", "message"),
    [
        ("int8", [300], r"300 \(at 0\) is not within -128 … 127 \(int8\)"),
        ("uint8", [1, -1], r"-1 \(at 1\) is not within"),
        ("bool", [0, 2], r"2 \(at 1\) is not within 0 … 1 \(bool\)"),
        ("int64", 2**63, "9223372036854775808 is not within"),
        ("int64", [1, 2**70], r"\(at 1\) is not within"),
        ("uint64", -1, "-1 is not within"),
        ("int64", [0.5], r"0\.5 \(at 0\) is not an integer \(int64\)"),
        ("int32", [math.inf], "is not an integer"),
        ("int64", [1, None], r"null \(at 1\) is a missing value, which the type doesn't have"),
        ("bool", None, "null is a missing value"),
        ("float16", 70000, "70000 is beyond the range of float16"),
        ("float16", [[1.0, 2.0], [3.0, -70000.0]], r"-70000\.0 \(at 1\.1\) is beyond"),
        ("float32", [1, 1e39], r"1e\+39 \(at 1\) is beyond the range of float32"),
        ("float32", [10**39], "is beyond the range of float32"),
        ("bfloat16", [3.4e38], "is beyond the range of bfloat16"),
        ("float64", [10**400], "is beyond the range"),
        ("float32", ["a"], r"'a' \(at 0\) is not a number but a str"),
        ("str", ["a", 1], r"1 \(at 1\) is not text"),
        ("str", [None], r"null \(at 0\) is not text"),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_its_place(dtype, x, message):
    with pytest.raises(ValueError, match=rf"request .*: input 'x': .*{message}"):
        stacker(dtype).prepare(row(x))


def test_null_is_not_a_number_where_the_type_has_that():
    first, second = seen(stacker("float32"), [1.5, None], [None, None])
    (alone,) = seen(stacker("float16"), None)

    assert first[0] == 1.5
    assert np.isnan([first[1], *second, alone]).all()


def test_what_a_row_says_itself_may_be_infinite():
    (found,) = seen(stacker("float16"), [math.inf, -math.inf])

    assert found.tolist() == [math.inf, -math.inf]


def test_a_narrower_type_may_be_asked_for():
    made = stacker("float32", dtype="uint8")

    assert seen(made, [255])[0].dtype == np.float32
    with pytest.raises(ValueError, match="256 .* not within 0 … 255"):
        made.prepare(row([256]))


def test_a_shape_that_the_model_does_not_take_is_its_own_rows_error():
    made = stacker("float32", (3, "n"))

    made.prepare(row([[1], [2], [3]]))
    with pytest.raises(ValueError, match="its shape is 2 × 1, but the model takes 3 × any"):
        made.prepare(row([[1], [2]]))
    with pytest.raises(ValueError, match="its shape is one value"):
        made.prepare(row(1))


def test_padding_fills_an_axis_of_fixed_length_whatever_the_batch_holds():
    made = stacker("float32", (4, None), pad=9)

    alone = [seen(made, x)[0].tolist() for x in ([[1], [2]], [[3]] * 4)]

    assert alone == [[[1], [2], [9], [9]], [[3]] * 4]
    assert [x.tolist() for x in seen(made, [[1], [2]], [[3]] * 4)] == alone
    with pytest.raises(ValueError, match="its shape is 5 × 1, but the model takes 4 × any"):
        made.prepare(row([[1]] * 5))


@pytest.mark.parametrize(
    ("dtype", "settings", "message"),
    [
        ("uint8", {"pad": -1}, r"inputs: x\.pad: -1\.0 is not within"),
        ("int64", {"pad": 0.5}, r"inputs: x\.pad: 0\.5 is not an integer"),
        ("float16", {"pad": 70000}, r"inputs: x\.pad: .* beyond the range of float16"),
        ("int64", {"dtype": "float32"}, r"inputs: x\.dtype: float32 can't be the model's int64"),
        ("float32", {"dtype": "float13"}, "inputs: x: .*float13"),
        ("float8_e4m3fn", {}, "inputs: x: JSON has no form for its type"),
        ("int4", {}, "inputs: x: JSON has no form for its type"),
        ("float32", {"mask": "m"}, r"inputs: x\.mask: no input 'm'; the model has x"),
    ],
)
def test_settings_that_can_not_work_are_refused_before_a_row_runs(dtype, settings, message):
    with suppress(ImportError):  # it registers types with numpy, whoever imports it
        importlib.import_module("ml_dtypes")
    with pytest.raises(SpecError, match=message):
        stacker(dtype, **settings)
    with pytest.raises(SpecError, match=r"outputs: y\.trim_to: no input 'ids'"):
        Stacker({"x": ModelInput("float32")}, {}, {"y": OutputField(trim_to="ids")}, dict)
