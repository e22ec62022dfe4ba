"""Models of MLflow: by signature or without one, each row as if it came alone."""

from __future__ import annotations

from uuid import UUID

import mlflow.pyfunc
import mlflow.sklearn
import numpy as np
import pandas as pd
import pytest
from mlflow.models import ModelSignature, infer_signature
from mlflow.types import DataType
from mlflow.types.schema import Array, ColSpec, Map, Object, Property, Schema, TensorSpec
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from sheaf_dagster.backends.mlflow import MlflowBackend
from sheaf_dagster.contracts import FeaturesRequest, deviations_of
from sheaf_dagster.testing import check_backend
from tests.backends.rules import WITHOUT_A_WORKER

pytestmark = pytest.mark.model

WIDE = 2**53


def row(i: int, features) -> FeaturesRequest:
    return FeaturesRequest(request_id=UUID(int=i + 1), model_name="m", features=features)


def predictions(backend, rows) -> list:
    return [a.prediction for a in backend.batch_predict([row(i, r) for i, r in enumerate(rows)])]


def sklearn_model(tmp_path, estimator, **fields) -> MlflowBackend:
    path = str(tmp_path / "sklearn")
    mlflow.sklearn.save_model(
        estimator,
        path,
        serialization_format="cloudpickle",
        pip_requirements=["mlflow-skinny"],
        **fields,
    )
    backend = MlflowBackend(path)
    backend.load()
    return backend


def pyfunc_model(tmp_path, code: str, inputs: Schema | None = None) -> MlflowBackend:
    """A model whose ``predict(self, context, x, params=None)`` has the given body."""
    source = (
        "import mlflow.models, mlflow.pyfunc\nimport numpy as np\nimport pandas as pd\n"
        "class Model(mlflow.pyfunc.PythonModel):\n"
        "    def predict(self, context, x, params=None):\n"
        f"        {code}\n"
        "mlflow.models.set_model(Model())\n"
    )
    (tmp_path / "model.py").write_text(source)
    path = str(tmp_path / "pyfunc")
    mlflow.pyfunc.save_model(
        path,
        python_model=str(tmp_path / "model.py"),
        signature=None if inputs is None else ModelSignature(inputs=inputs),
        pip_requirements=["mlflow-skinny"],
    )
    backend = MlflowBackend(path)
    backend.load()
    return backend


def test_an_optional_column_is_there_whatever_a_batch_holds(tmp_path):
    table = pd.DataFrame(
        {
            "plan": ["basic", "pro", np.nan] * 10,
            "income": [float(i) if i % 4 else np.nan for i in range(30)],
            "trial": pd.Series([True, False, np.nan] * 10, dtype=object),
        }
    )
    cost = np.arange(30.0) + 9 * table["plan"].isna()
    encode = (OneHotEncoder(handle_unknown="ignore"), ["plan", "trial"])
    estimator = make_pipeline(
        make_column_transformer(encode, remainder="passthrough"),
        HistGradientBoostingRegressor(min_samples_leaf=2),
    ).fit(table, cost)
    backend = sklearn_model(tmp_path, estimator, signature=infer_signature(table, cost))
    rows = [
        {"plan": "pro", "trial": None},
        {"plan": "pro", "income": None, "trial": None},
        {"plan": None, "income": 7, "trial": True},
        {"plan": None, "income": None, "trial": False},
    ]
    by_hand = pd.DataFrame(
        {
            "plan": pd.Series(["pro", "pro", np.nan, np.nan], dtype=object),
            "income": [np.nan, np.nan, 7, np.nan],
            "trial": pd.Series([np.nan, np.nan, True, False], dtype=object),
        }
    )

    expected = estimator.predict(by_hand)

    assert len(set(expected)) == 3
    assert predictions(backend, rows) == pytest.approx(expected)
    for i, one in enumerate(rows):
        assert predictions(backend, [one]) == pytest.approx(expected[i : i + 1])


def customers() -> pd.DataFrame:
    """Missing values, a category, a flag, integers that floats don't have, and dates."""
    n = 40
    days = [pd.Timestamp(t) for t in ("2024-05-01", "2024-05-02T12:30:00", "2024-06-01")]
    return pd.DataFrame(
        {
            "plan": pd.Series([("basic", "pro", np.nan)[i % 3] for i in range(n)], dtype=object),
            "income": [float(i) if i % 4 else np.nan for i in range(n)],
            "trial": pd.Series([(True, False)[i % 2] for i in range(n)]),
            "account": [WIDE + i % 4 for i in range(n)],
            "day": [days[i * 7 % 3] for i in range(n)],
        }
    )


@pytest.mark.parametrize("signed", [True, False], ids=["signature", "no_signature"])
def test_every_trait_of_a_table_answers_as_by_hand(signed, tmp_path):
    table = customers()
    cost = np.arange(40.0) % 11 + 9 * table["plan"].isna() + 100 * (table["account"] - WIDE)
    cost += 40 * (table["day"].dt.month - 5)
    encode = (OneHotEncoder(handle_unknown="ignore"), ["plan", "trial", "account", "day"])
    estimator = make_pipeline(
        make_column_transformer(encode, remainder="passthrough"),
        HistGradientBoostingRegressor(min_samples_leaf=2),
    ).fit(table, cost)
    fields = {"signature": infer_signature(table, cost)} if signed else {}
    backend = sklearn_model(tmp_path, estimator, **fields)
    rows = [
        {"plan": "pro", "income": 7, "trial": True, "account": WIDE + 1, "day": "2024-05-01"},
        {"plan": None, "income": None, "trial": False, "account": WIDE + 2, "day": "2024-06-01"},
        {"plan": "new", "income": 3.5, "trial": True, "account": WIDE + 3,
         "day": "2024-05-02T14:30:00+02:00"},
        {"plan": "basic", "income": 1, "trial": False, "account": WIDE, "day": "2024-05-02T12:30"},
    ]  # fmt: skip
    by_hand = pd.DataFrame(
        {
            "plan": pd.Series(["pro", np.nan, "new", "basic"], dtype=object),
            "income": [7.0, np.nan, 3.5, 1.0],
            "trial": [True, False, True, False],
            "account": [WIDE + 1, WIDE + 2, WIDE + 3, WIDE],
            "day": pd.to_datetime(
                ["2024-05-01", "2024-06-01", "2024-05-02T12:30", "2024-05-02T12:30"],
                format="ISO8601",
            ),
        }
    )

    expected = mlflow.pyfunc.load_model(str(tmp_path / "sklearn")).predict(by_hand)

    assert len(set(expected)) == 4
    assert predictions(backend, rows) == pytest.approx(expected)
    for i, one in enumerate(rows):
        assert predictions(backend, [one]) == pytest.approx(expected[i : i + 1])


def test_an_optional_integer_is_left_out_where_it_is_missing(tmp_path):
    columns = Schema([ColSpec("long", "a"), ColSpec("long", "b", required=False)])
    backend = pyfunc_model(tmp_path, "return x['a'] + (x['b'] if 'b' in x else -1)", columns)

    found = predictions(backend, [{"a": 1, "b": None}, {"a": WIDE, "b": 1}, {"a": 5}, {"a": 2.0}])

    assert found == [0, WIDE + 1, 4, 1]
    with pytest.raises(ValueError, match=r"'features\.a': is missing, which a column of type long"):
        predictions(backend, [{"a": 1}, {"a": None}])


def test_a_field_that_may_be_an_optional_column_misspelt_is_noted(tmp_path):
    columns = [ColSpec("double", "age"), ColSpec("double", "income", required=False)]
    backend = pyfunc_model(tmp_path, "return x.age.tolist()", Schema(columns))
    given = [
        {"age": 1, "incme": 5},
        {"age": 1, "income": 5, "id": 7},
        {"age": 1},
        {"age": 1, "income": None},
    ]

    answers = backend.batch_predict([row(i, features) for i, features in enumerate(given)])

    assert [deviations_of(a) for a in answers] == [("ignored_field",), (), (), ()]


def test_a_model_without_signature_has_the_columns_it_was_fitted_with(tmp_path):
    table = pd.DataFrame({"weight": [1.0, 2, 3, 5], "age": [4.0, 1, 2, 2]})
    estimator = LinearRegression().fit(table, 100 * table["weight"] + table["age"])
    backend = sklearn_model(tmp_path, estimator)

    found = predictions(backend, [{"age": 7.5, "weight": 2.5}, {"weight": 1, "age": 0, "more": 1}])

    assert found == pytest.approx([257.5, 100])
    with pytest.raises(ValueError, match="lacks age"):
        predictions(backend, [{"weight": 1}])
    with pytest.raises(ValueError, match=r"'features\.age' \('old'\): could not convert"):
        predictions(backend, [{"weight": 1, "age": "old"}])


def test_a_model_that_knows_no_columns_has_those_of_the_row_in_its_order(tmp_path):
    values = np.array([[1.0, 4], [2, 1], [3, 2], [5, 2]])
    estimator = LinearRegression().fit(values, values @ [100, 1])
    fitted = sklearn_model(tmp_path, estimator)
    code = "return np.asarray(x) @ np.array([100.0, 1])"
    position = pyfunc_model(tmp_path, code)
    named = {"weight": 2.5, "age": 7.5}
    expected = pytest.approx([257.5, 752.5, 257.5])

    for backend in (fitted, position):
        assert predictions(backend, [named, dict(reversed(named.items())), [2.5, 7.5]]) == expected


@pytest.mark.parametrize("dtype", ["float32", "int32", "float64"])
def test_an_array_has_the_type_of_the_signature_whatever_its_mates(dtype, tmp_path):
    code = f"return (np.asarray(x) @ np.array([100, 1], '{dtype}')).astype('{dtype}')"
    spec = Schema([TensorSpec(np.dtype(dtype), (-1, 2))])
    backend = pyfunc_model(tmp_path, code, spec)
    mate = [1, 3] if dtype == "int32" else [1.5, 3]

    assert predictions(backend, [[1, 2], [3, 4]]) == [102, 304]
    assert predictions(backend, [[1, 2], mate, {"a": 3, "b": 4}])[::2] == [102, 304]
    too_large = {"float32": 1e39, "int32": 2**31, "float64": 10**400}[dtype]
    with pytest.raises(ValueError, match=r"'features': \S+ \(at 1\) is"):
        predictions(backend, [[1, 2], [1, too_large]])


def test_named_arrays_have_their_own_types_and_shapes(tmp_path):
    spec = Schema(
        [
            TensorSpec(np.dtype("float32"), (-1, 2, 2), "picture"),
            TensorSpec(np.dtype("int64"), (-1,), "n"),
            TensorSpec(np.dtype("float64"), (-1, 1), "scale"),
        ]
    )
    code = "return x['picture'].sum(axis=(1, 2)) * x['scale'][:, 0] + x['n']"
    backend = pyfunc_model(tmp_path, code, spec)
    rows = [
        {"picture": [[1, 2], [3, 4]], "n": 1, "scale": 2},
        {"picture": [1.5, 2, 3, 4], "n": 0, "scale": [1]},
    ]

    assert predictions(backend, rows) == [21, 10.5]
    with pytest.raises(ValueError, match=r"'features\.n': 0\.5 is not an integer \(int64\)"):
        predictions(backend, [{**rows[0], "n": 0.5}])


def test_each_date_is_read_alone_and_ambiguous_ones_are_refused(tmp_path):
    columns = Schema([ColSpec("datetime", "day")])
    backend = pyfunc_model(tmp_path, "return x['day'].astype(str)", columns)
    days = ["2024-06-05", "2024-06-05T12:30:00", "2024-06-05T12:30:00Z", "2024-06-05 14:30+02:00"]

    together = predictions(backend, [{"day": day} for day in [*days, None]])

    stamps = [pd.Timestamp(text) for text in together[:-1]]
    assert stamps == [pd.Timestamp("2024-06-05"), *[pd.Timestamp("2024-06-05 12:30")] * 3]
    assert together[-1] in ("NaT", None)
    for bad in (
        "05/06/2024",
        "13/06/2024",
        "2024/06/05",
        "today",
        "2024-13-01",
        1717545600,
        "5 June",
    ):
        with pytest.raises(ValueError, match=rf"{UUID(int=2)}: 'features\.day'.*"):
            predictions(backend, [{"day": days[0]}, {"day": bad}])


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("double", [1, 2.5, True][:2], ["1", True, 10**400, [1]]),
        ("float", [1, 2.5], [1e39, "a"]),
        ("integer", [1, -(2**31)], [2**31, 0.5, True]),
        ("long", [WIDE + 1, 3.0], [2**63, "3", None]),
        ("boolean", [True, False], [1, "true"]),
        ("string", ["a", ""], [1, True, ["a"]]),
        ("binary", ["aGk=", ""], ["a", 1]),
    ],
)
def test_a_value_is_of_its_column_type_or_its_row_is_refused(kind, good, bad, tmp_path):
    code = "return x['v'].map(lambda v: v.decode() if isinstance(v, bytes) else v)"
    backend = pyfunc_model(tmp_path, code, Schema([ColSpec(kind, "v")]))
    expected = ["hi", ""] if kind == "binary" else good

    assert predictions(backend, [{"v": v} for v in good]) == expected
    for value in bad:
        with pytest.raises(ValueError, match=rf"{UUID(int=3)}: 'features\.v'"):
            predictions(backend, [{"v": v} for v in [*good, value]])


def test_values_inside_lists_and_objects_are_read_by_the_signature_too(tmp_path):
    inside = Object(
        [Property("x", DataType.double), Property("y", DataType.string, required=False)]
    )
    columns = [Array(DataType.double), inside, Map(DataType.double)]
    schema = Schema([ColSpec(kind, name) for kind, name in zip(columns, "abc", strict=True)])
    code = "return [sum(a) + b['x'] + sum(c.values()) for a, b, c in zip(x.a, x.b, x.c)]"
    backend = pyfunc_model(tmp_path, code, schema)
    rows = [
        {"a": [1, 2], "b": {"x": 10, "y": None}, "c": {"p": 100, "q": 0.5}},
        {"a": [0.5], "b": {"x": 1.5, "y": "s"}, "c": {}},
    ]

    assert predictions(backend, rows) == [113.5, 2.0]
    assert [predictions(backend, [one])[0] for one in rows] == [113.5, 2.0]
    for field, bad in (("a", [1, "2"]), ("b", {"x": True}), ("c", [1])):
        with pytest.raises(ValueError, match=rf"'features\.{field}'"):
            predictions(backend, [rows[1] | {field: bad}])


def test_unnamed_columns_are_taken_in_order(tmp_path):
    columns = Schema([ColSpec("double"), ColSpec("string")])
    backend = pyfunc_model(tmp_path, "return x[1] + x[0].astype(str)", columns)

    assert predictions(backend, [[1, "a"], [None, "b"], {"x": 2.5, "y": "c"}]) == [
        "a1.0",
        "bnan",
        "c2.5",
    ]


def test_it_keeps_the_rules_with_gaps_and_mixed_rows(tmp_path):
    columns = [ColSpec("double", "a"), ColSpec("string", "s", required=False)]
    columns += [ColSpec("long", "n", required=False)]
    code = "return x.assign(n=x['n'] if 'n' in x else 0)[['a', 's', 'n']]"
    pyfunc_model(tmp_path, code, Schema(columns))
    rows = [{"a": 1, "n": WIDE + 1}, {"a": None, "s": "x"}, {"a": 1e300, "s": None, "n": 0}]

    check_backend(
        MlflowBackend,
        [row(i, r) for i, r in enumerate(rows)],
        backend_kwargs={"model_uri": str(tmp_path / "pyfunc")},
        rules=WITHOUT_A_WORKER,
    )


def test_a_local_model_is_identified_by_its_files_however_its_path_is_written(tmp_path):
    backend = pyfunc_model(tmp_path, "return [1] * len(x)")
    del backend
    folder = tmp_path / "pyfunc"
    uris = [str(folder), folder.as_uri(), f"file:{folder}"]

    before = {MlflowBackend.identify(model_uri=uri) for uri in uris}
    weights = folder / "weights.bin"
    weights.write_bytes(b"new")
    after = {MlflowBackend.identify(model_uri=uri) for uri in uris}

    assert len(before) == len(after) == 1
    assert before != after
