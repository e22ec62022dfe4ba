"""Estimators of scikit-learn and pyfunc models of MLflow, fitted and saved here."""

from __future__ import annotations

import json
from uuid import UUID

import numpy as np
import pytest

from sheaf_dagster import BatchRunner, BatchSpec, ModelSpec, SpecError
from sheaf_dagster.backends.mlflow import MlflowBackend
from sheaf_dagster.backends.sklearn import SklearnBackend
from sheaf_dagster.contracts import FeaturesRequest
from sheaf_dagster.testing import check_backend
from tests.conftest import read_rows

pytestmark = pytest.mark.model


def row(i: int, features, **fields) -> FeaturesRequest:
    return FeaturesRequest(request_id=UUID(int=i + 1), model_name="m", features=features, **fields)


def flowers():
    """Three features, of which one is a text, and two labels of three classes."""
    import pandas as pd

    random = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "width": random.normal(size=90),
            "colour": random.choice(["red", "blue"], 90),
            "height": random.normal(size=90),
        }
    )
    species = np.where(table.width > 0.5, "wide", np.where(table.height > 0, "tall", "small"))
    return table, species


@pytest.fixture(scope="module")
def classifier():
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    table, species = flowers()
    columns = make_column_transformer((OneHotEncoder(), ["colour"]), remainder="passthrough")
    return make_pipeline(columns, LogisticRegression()).fit(table, species)


@pytest.fixture(scope="module")
def classifier_file(classifier, tmp_path_factory) -> str:
    import skops.io

    path = tmp_path_factory.mktemp("skops") / "model.skops"
    skops.io.dump(classifier, path)
    return str(path)


def records(n: int) -> list[dict]:
    return json.loads(flowers()[0].head(n).to_json(orient="records"))


def test_rows_are_matched_by_column_name_whatever_their_order(classifier, classifier_file):
    given = records(6)
    rows = [
        row(0, given[0]),
        row(1, dict(reversed(given[1].items())), output_mode="probabilities"),
        row(2, [given[2][c] for c in ("width", "colour", "height")]),
        row(3, {**given[3], "surplus": 1}),
    ]
    check_backend(SklearnBackend, rows, backend_kwargs={"path": classifier_file})
    backend = SklearnBackend(classifier_file)
    backend.load()

    answers = backend.batch_predict(rows)

    table = flowers()[0].head(4)
    assert [a.prediction for a in answers] == classifier.predict(table).tolist()
    expected = dict(zip(classifier.classes_, classifier.predict_proba(table)[1], strict=True))
    assert answers[1].probabilities == pytest.approx(expected)
    assert answers[0].probabilities is None


def test_an_estimator_without_names_takes_lists_and_gives_quantiles(tmp_path):
    import skops.io
    from sklearn.linear_model import BayesianRidge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    random = np.random.default_rng(1)
    x = random.normal(size=(60, 2))
    model = make_pipeline(StandardScaler(), BayesianRidge()).fit(
        x, x[:, 0] + random.normal(size=60)
    )
    skops.io.dump(model, tmp_path / "m.skops")
    backend = SklearnBackend(str(tmp_path / "m.skops"))
    rows = [
        row(0, [0.5, 1.0], output_mode="quantiles", quantile_levels=[0.1, 0.5, 0.9]),
        row(1, [0.0, 2.0]),
        row(2, [0.5, 1.0], output_mode="quantiles", quantile_levels=[0.25]),
    ]
    check_backend(backend, rows)

    one, two, three = backend.batch_predict(rows)

    mean, std = model.predict([[0.5, 1.0]], return_std=True)
    assert one.prediction == one.quantiles["0.5"] == pytest.approx(mean[0])
    assert one.quantiles["0.9"] == pytest.approx(mean[0] + 1.2815516 * std[0])
    assert list(three.quantiles) == ["0.25"]
    assert two.quantiles is None
    with pytest.raises(ValueError, match="fitted without column names"):
        backend.predict(row(3, {"a": 1, "b": 2}))


@pytest.mark.parametrize(
    ("features", "fields", "message"),
    [
        ({"width": 1.0, "height": 2.0}, {}, "lacks colour"),
        ([1.0, "red"], {}, "has 2 values, but the model has 3 columns"),
        ({"width": 1, "height": 1, "colour": "red"}, {"output_mode": "quantiles"}, "no quantiles"),
    ],
)
def test_a_row_that_does_not_fit_the_estimator_is_refused(
    features, fields, message, classifier_file
):
    backend = SklearnBackend(classifier_file)
    backend.load()
    with pytest.raises(ValueError, match=message):
        backend.batch_predict([row(0, features, **fields)])


class Own:
    """An estimator that skops doesn't know."""

    def predict(self, x):
        return x[:, 0] * 2


def test_unknown_types_and_pickles_are_loaded_only_where_the_spec_says_so(tmp_path):
    import joblib
    import skops.io

    skops.io.dump(Own(), tmp_path / "own.skops")
    joblib.dump(Own(), tmp_path / "own.joblib")

    with pytest.raises(SpecError, match=rf"not trusted: {__name__}\.Own"):
        SklearnBackend(str(tmp_path / "own.skops")).load()
    with pytest.raises(SpecError, match="allow_pickle=True"):
        SklearnBackend(str(tmp_path / "own.joblib")).load()
    for backend in (
        SklearnBackend(str(tmp_path / "own.skops"), trusted=[f"{__name__}.Own"]),
        SklearnBackend(str(tmp_path / "own.joblib"), allow_pickle=True),
    ):
        backend.load()
        assert backend.predict(row(0, [4.0, 1.0])).prediction == 8.0


def test_an_estimator_in_an_object_store_runs_as_a_job(classifier, classifier_file, tmp_path):
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.put(classifier_file, "/models/m.skops")
    model = ModelSpec(
        name="m",
        model_type="features",
        backend="sklearn",
        backend_kwargs={"path": "memory://models/m.skops"},
    )
    source, sink = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [{"model_type": "features", "model_name": "m", "features": r} for r in records(40)]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))

    result = BatchRunner(model).run(
        BatchSpec(source=str(source), sink=str(sink), batch_size=16, compute="local")
    )

    answers = [a["prediction"] for a in read_rows(sink)]
    assert answers == classifier.predict(flowers()[0].head(40)).tolist()
    assert result.model_digest.startswith("memory://models/m.skops#")


PRICER = """
import mlflow.models
import mlflow.pyfunc


class Pricer(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        doubled = model_input["price"] * 2 * params["factor"]
        days = model_input["day"].dt.dayofyear
        return doubled.to_frame("double").assign(shop=model_input["shop"].str.upper(), day=days)


mlflow.models.set_model(Pricer())
"""


@pytest.fixture(scope="module")
def pricer(tmp_path_factory):
    """Registers a model with a signature at a tracking store (SQLite) of its own."""
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ParamSchema, ParamSpec
    from mlflow.types.schema import ColSpec, Schema

    root = tmp_path_factory.mktemp("mlflow")
    (root / "pricer.py").write_text(PRICER)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{root}/mlflow.db")
    mlflow.create_experiment("e", artifact_location=(root / "artifacts").as_uri())
    mlflow.set_experiment("e")
    columns = [ColSpec("double", "price"), ColSpec("string", "shop"), ColSpec("datetime", "day")]
    signature = ModelSignature(
        inputs=Schema([*columns, ColSpec("long", "stock", required=False)]),
        params=ParamSchema([ParamSpec("factor", "double", 1.0)]),
    )
    logged = mlflow.pyfunc.log_model(
        name="pricer",
        python_model=str(root / "pricer.py"),
        signature=signature,
        pip_requirements=["mlflow-skinny"],
        registered_model_name="pricer",
    )
    yield {"tracking_uri": f"sqlite:///{root}/mlflow.db", "id": logged.model_id, "root": root}
    mlflow.set_tracking_uri(before)


def test_a_registered_model_answers_mixed_rows_by_its_signature(pricer):
    rows = [
        row(0, {"price": 2, "shop": "a", "day": "2026-01-03"}),
        row(1, {"stock": 3, "shop": "b", "price": 2.5, "day": "2026-02-01"}),
        row(2, {"stock": None, "shop": "c", "price": 0.0, "day": "2026-01-01"}),
    ]
    kwargs = {"model_uri": "models:/pricer/1", "tracking_uri": pricer["tracking_uri"]}
    check_backend(MlflowBackend, rows, backend_kwargs={**kwargs, "params": {"factor": 3.0}})
    backend = MlflowBackend(**kwargs)
    backend.load()

    answers = backend.batch_predict(rows)

    assert [a.prediction for a in answers] == [
        {"double": 4.0, "shop": "A", "day": 3},
        {"double": 5.0, "shop": "B", "day": 32},
        {"double": 0.0, "shop": "C", "day": 1},
    ]
    assert MlflowBackend.identify(**kwargs) == f"mlflow:{pricer['id']}"
    with pytest.raises(Exception, match=r"price.*str|Incompatible input types for column price"):
        backend.predict(row(3, {"price": "much", "shop": "a", "day": "2026-01-01"}))
    with pytest.raises(ValueError, match="lacks price"):
        backend.predict(row(3, {"shop": "a", "day": "2026-01-01"}))


def test_a_model_in_a_folder_without_a_signature_runs_too(classifier, tmp_path):
    import mlflow.sklearn

    mlflow.sklearn.save_model(
        classifier,
        str(tmp_path / "m"),
        serialization_format="cloudpickle",
        pip_requirements=["scikit-learn"],
    )
    backend = MlflowBackend(str(tmp_path / "m"))
    backend.load()

    answers = backend.batch_predict([row(i, r) for i, r in enumerate(records(5))])

    assert [a.prediction for a in answers] == classifier.predict(flowers()[0].head(5)).tolist()
    assert MlflowBackend.identify(model_uri=str(tmp_path / "m")).startswith("sha256:")
