"""Missing values, wide integers and columns: as the estimator answers to a frame made by hand."""

from __future__ import annotations

from itertools import permutations
from uuid import UUID

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestClassifier
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import ClassifierChain, MultiOutputClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, OrdinalEncoder, StandardScaler

from sheaf_dagster.backends.sklearn import SklearnBackend
from sheaf_dagster.contracts import FeaturesRequest
from sheaf_dagster.errors import SpecError

pytestmark = pytest.mark.model

WIDE = 2**53


def row(i: int, features, **fields) -> FeaturesRequest:
    return FeaturesRequest(request_id=UUID(int=i + 1), model_name="m", features=features, **fields)


def load(estimator, tmp_path) -> SklearnBackend:
    joblib.dump(estimator, tmp_path / "m.joblib")
    backend = SklearnBackend(str(tmp_path / "m.joblib"), allow_pickle=True)
    backend.load()
    return backend


def predictions(backend, rows) -> list:
    return [a.prediction for a in backend.batch_predict([row(i, r) for i, r in enumerate(rows)])]


def plans(missing) -> tuple[pd.DataFrame, np.ndarray]:
    """A text, a number, a flag and a wide integer, each with gaps but the last."""
    n = 36
    plan = [("basic", "pro", missing)[i % 3] for i in range(n)]
    table = pd.DataFrame(
        {
            "plan": pd.Series(plan, dtype=object),
            "seats": [float(i % 7) if i % 5 else np.nan for i in range(n)],
            "trial": pd.Series([(True, False, missing)[i % 3] for i in range(n)], dtype=object),
            "account": [WIDE + i % 3 for i in range(n)],
        }
    )
    by_plan = {"basic": 0.0, "pro": 20.0}
    cost = [by_plan.get(p, 70.0) + 3 * (i % 7) for i, p in enumerate(plan)]
    return table, np.array(cost)


def encode() -> OneHotEncoder:
    return OneHotEncoder(handle_unknown="ignore")


def by_names() -> list:
    numbers = (SimpleImputer(strategy="mean"), ["seats"])
    texts = ["plan", "trial", "account"]
    chained = make_pipeline(SimpleImputer(strategy="most_frequent"), encode())
    return [
        make_pipeline(make_column_transformer((encode(), texts), numbers), LinearRegression()),
        make_pipeline(
            make_column_transformer(
                (encode(), make_column_selector(dtype_include=object)), numbers
            ),
            LinearRegression(),
        ),
        GridSearchCV(
            make_pipeline(
                make_column_transformer((chained, ["plan"]), (encode(), slice(2, 4)), numbers),
                LinearRegression(),
            ),
            {"linearregression__fit_intercept": [True]},
            cv=2,
        ),
    ]


@pytest.mark.parametrize("missing", [np.nan, None])
@pytest.mark.parametrize("which", range(3))
def test_null_is_what_the_estimator_was_fitted_with_for_a_missing_value(missing, which, tmp_path):
    table, cost = plans(missing)
    estimator = by_names()[which].fit(table, cost)
    backend = load(estimator, tmp_path)
    rows = [
        {"plan": None, "seats": 2, "trial": True, "account": WIDE + 1},
        {"plan": "pro", "seats": None, "trial": None, "account": WIDE},
        {"plan": None, "seats": None, "trial": None, "account": WIDE + 2},
        {"plan": "basic", "seats": 1.5, "trial": False, "account": WIDE + 1},
    ]
    text = {"plan": object, "trial": object}
    by_hand = pd.DataFrame(
        [{k: missing if v is None and k in text else v for k, v in r.items()} for r in rows]
    ).astype({**text, "seats": float})

    expected = estimator.predict(by_hand)

    assert len({round(v, 3) for v in expected}) == len(rows)
    np.testing.assert_allclose(predictions(backend, rows), expected)
    for i, one in enumerate(rows):
        np.testing.assert_allclose(predictions(backend, [one]), expected[i : i + 1])


@pytest.mark.parametrize("missing", [np.nan, None])
def test_lists_have_missing_values_too(missing, tmp_path):
    table, cost = plans(missing)
    values = np.array(table[["plan", "seats"]].to_numpy(), dtype=object)
    estimator = make_pipeline(
        make_column_transformer((encode(), [0]), (SimpleImputer(), [1])), LinearRegression()
    ).fit(values, cost)
    backend = load(estimator, tmp_path)
    rows = [[None, 2], ["pro", None], [None, None]]

    by_hand = np.array([[missing, 2], ["pro", np.nan], [missing, np.nan]], dtype=object)

    np.testing.assert_allclose(predictions(backend, rows), estimator.predict(by_hand))
    np.testing.assert_allclose(predictions(backend, rows[:1]), estimator.predict(by_hand[:1]))


def test_a_gap_among_numbers_stays_a_number(tmp_path):
    """A function that knows numbers only must not meet objects where a batch has none but gaps."""
    table = pd.DataFrame({"seats": [1.0, 2, np.nan, 4]})
    estimator = make_pipeline(
        FunctionTransformer(np.log1p), SimpleImputer(), LinearRegression()
    ).fit(table, [1.0, 2, 3, 4])
    backend = load(estimator, tmp_path)

    found = predictions(backend, [{"seats": None}])

    np.testing.assert_allclose(found, estimator.predict(pd.DataFrame({"seats": [np.nan]})))


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"seats": "two"}, r"'features\.seats' \('two'\): could not convert"),
        ({"seats": None}, r"'features\.seats' \(null\): Input X contains NaN"),
        ({"seats": float("inf")}, r"'features\.seats' \(inf\): Input X contains infinity"),
        ({"seats": [2]}, r"'features\.seats' \(\[2\]\): setting an array element"),
        ({"plan": "gold"}, r"'features\.plan' \('gold'\): Found unknown categories"),
        ({"plan": 5}, r"'features\.plan' \(5\): Found unknown categories"),
    ],
)
def test_a_value_that_the_model_refuses_is_named_by_its_column(row, named, tmp_path):
    table = pd.DataFrame({"plan": ["basic", "pro"] * 3, "seats": range(6), "age": range(6)})
    encoded = make_column_transformer(
        (StandardScaler(), ["seats", "age"]), (OneHotEncoder(), ["plan"])
    )
    backend = load(make_pipeline(encoded, LinearRegression()).fit(table, range(6)), tmp_path)

    with pytest.raises(ValueError, match=named):
        predictions(backend, [{"plan": "pro", "seats": 1, "age": 2, **row}])


def test_a_value_that_the_model_refuses_is_named_by_its_place_in_a_list(tmp_path):
    backend = load(LinearRegression().fit([[1.0, 2.0], [2.0, 1.0]], [1, 2]), tmp_path)

    with pytest.raises(ValueError, match=r"'features\.1' \('x'\): could not convert"):
        predictions(backend, [[1.0, "x"]])


def test_categories_of_a_boosted_tree_may_be_missing(tmp_path):
    table, cost = plans(np.nan)
    table = table[["plan", "seats"]].astype({"plan": "category"})
    estimator = HistGradientBoostingRegressor(min_samples_leaf=2).fit(table, cost)
    backend = load(estimator, tmp_path)
    plan = pd.Categorical([None, "pro", "basic"], categories=table["plan"].cat.categories)

    expected = estimator.predict(pd.DataFrame({"plan": plan, "seats": [2, np.nan, 1]}))

    rows = [
        {"plan": None, "seats": 2},
        {"plan": "pro", "seats": None},
        {"plan": "basic", "seats": 1},
    ]
    np.testing.assert_allclose(predictions(backend, rows), expected)
    np.testing.assert_allclose(predictions(backend, rows[:1]), expected[:1])


def test_integers_beyond_53_bits_and_dates_reach_the_encoder_as_they_are(tmp_path):
    table = pd.DataFrame(
        {
            "id": [WIDE, WIDE + 1, WIDE + 2, WIDE + 3],
            "day": ["2024-05-01", "2024-05-02", "2024-05-01", "2024-05-03"],
        }
    )
    estimator = make_pipeline(OrdinalEncoder(), LinearRegression(fit_intercept=False))
    estimator.fit(table, [0.0, 1.5, 2.0, 4.0])
    backend = load(estimator, tmp_path)
    gaps = pd.DataFrame({"id": [WIDE + 1, WIDE, np.nan]}, dtype=object)
    encoder = make_pipeline(OrdinalEncoder(encoded_missing_value=-1), Column()).fit(gaps, [1, 2, 3])

    assert predictions(backend, table.to_dict("records")) == pytest.approx(estimator.predict(table))
    # Beside a gap or a fraction, pandas would make floats of a column of integers.
    found = predictions(load(encoder, tmp_path), [{"id": WIDE + 1}, {"id": None}, {"id": WIDE}])
    assert found == [1, -1, 0]


DAYS = ["2024-05-01", "2024-05-02", "2024-06-01", "2024-05-02"] * 5


def dated(kind: str, gaps: bool) -> pd.DataFrame:
    column = pd.Series(pd.to_datetime(DAYS))
    column = column.dt.tz_localize("UTC") if kind == "datetime" else column
    column = column.dt.date if kind == "date" else column
    table = pd.DataFrame({"seats": np.arange(20.0) % 3, "day": column})
    if gaps:
        table.loc[[3, 9], "day"] = None if kind == "date" else pd.NaT
    return table


@pytest.mark.parametrize(
    ("encoder", "kind", "gaps"),
    [
        (encoder, kind, gaps)
        for encoder in (encode(), OrdinalEncoder())
        for kind in ("datetime64", "datetime", "date")
        for gaps in (False, True)
        # Of this library: its ordinal encoder doesn't know a missing datetime64 again.
        if not (isinstance(encoder, OrdinalEncoder) and kind == "datetime64" and gaps)
    ],
)
def test_iso_text_is_the_date_that_an_encoder_has_met(encoder, kind, gaps, tmp_path):
    table = dated(kind, gaps)
    estimator = make_pipeline(
        make_column_transformer((encoder, ["day"]), remainder="passthrough"),
        RandomForestClassifier(n_estimators=5, random_state=0)
        if isinstance(encoder, OrdinalEncoder)
        else LinearRegression(),
    )
    estimator.fit(table, np.arange(20) // 4)
    backend = load(estimator, tmp_path)
    days = [*DAYS[:3], None, DAYS[4]] if gaps else DAYS[:5]
    asked = [{"day": d, "seats": float(i % 3)} for i, d in enumerate(days)]

    expected = estimator.predict(table[:5])

    assert len(set(expected)) > 1
    assert predictions(backend, asked) == pytest.approx(list(expected))
    for i, one in enumerate(asked):
        assert predictions(backend, [one]) == pytest.approx(list(expected[i : i + 1]))
    with pytest.raises(ValueError, match=r"'features.day': '05/06/2024' is not a date"):
        predictions(backend, [{"day": "05/06/2024", "seats": 1}])


def month_and_weekday(x):
    return np.column_stack([x["day"].dt.month, x["day"].dt.dayofweek, x["day"].isna()])


def test_columns_that_only_a_function_reads_are_dates_where_the_spec_says_so(tmp_path):
    table = dated("datetime64", gaps=False)
    estimator = make_pipeline(
        FunctionTransformer(month_and_weekday), HistGradientBoostingRegressor(min_samples_leaf=2)
    ).fit(table, np.arange(20.0))
    joblib.dump(estimator, tmp_path / "m.joblib")
    path = str(tmp_path / "m.joblib")
    backend = SklearnBackend(path, allow_pickle=True, datetime_columns=["day"])
    backend.load()
    days = ["2024-05-01", "2024-06-01T23:30:00-05:00", None, "20240502"]

    expected = estimator.predict(
        pd.DataFrame({"seats": 0.0, "day": pd.to_datetime(
            ["2024-05-01", "2024-06-02T04:30:00", None, "2024-05-02"], format="ISO8601")})
    )  # fmt: skip

    assert predictions(backend, [{"seats": 0, "day": d} for d in days]) == list(expected)
    with pytest.raises(SpecError, match="no column 'date'; it knows seats, day"):
        SklearnBackend(path, allow_pickle=True, datetime_columns=["date"]).load()


class Column(BaseEstimator):
    """Gives the first column back."""

    def __sklearn_is_fitted__(self):
        return True

    def fit(self, x, y):
        return self

    def predict(self, x):
        return np.asarray(x)[:, 0]


def labels() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    x = random.normal(size=(60, 3))
    return x, np.column_stack(
        [np.where(x[:, 0] > 0, "up", "down"), np.where(x[:, 1] > 0, "a", "b")]
    )


@pytest.mark.parametrize(
    "estimator",
    [MultiOutputClassifier(LogisticRegression()), RandomForestClassifier(5, random_state=0)],
)
def test_each_of_several_outputs_has_its_probabilities(estimator, tmp_path):
    x, y = labels()
    backend = load(estimator.fit(x, y), tmp_path)
    asked = [row(i, v.tolist(), output_mode="probabilities") for i, v in enumerate(x[:5])]

    answers = backend.batch_predict(asked)

    assert [a.prediction for a in answers] == estimator.predict(x[:5]).tolist()
    for output, expected in enumerate(estimator.predict_proba(x[:5])):
        keys = ("down", "up") if output == 0 else ("a", "b")
        assert [list(a.probabilities[output]) for a in answers] == [list(keys)] * 5
        found = [list(a.probabilities[output].values()) for a in answers]
        np.testing.assert_allclose(found, expected)
    again = type(answers[0]).model_validate_json(answers[0].model_dump_json())
    assert again.probabilities == answers[0].probabilities


def test_a_chain_and_one_against_the_rest_answer_each_label(tmp_path):
    x, y = labels()
    flags = (y == ["up", "a"]).astype(int)
    asked = [row(i, v.tolist(), output_mode="probabilities") for i, v in enumerate(x[:4])]
    chain = ClassifierChain(LogisticRegression()).fit(x, flags)
    from scipy.sparse import csr_matrix

    sparse = OneVsRestClassifier(LogisticRegression()).fit(x, csr_matrix(flags))

    chained = load(chain, tmp_path).batch_predict(asked)
    several = load(sparse, tmp_path).batch_predict(asked)

    expected = chain.predict_proba(x[:4])
    found = [[output["1"] for output in a.probabilities] for a in chained]
    np.testing.assert_allclose(found, expected)
    found = [[a.probabilities["0"], a.probabilities["1"]] for a in several]
    np.testing.assert_allclose(found, sparse.predict_proba(x[:4]))
    assert [a.prediction for a in several] == sparse.predict(x[:4]).toarray().tolist()


def test_each_of_several_outputs_has_its_quantiles(tmp_path):
    random = np.random.default_rng(0)
    x = random.normal(size=(20, 2))
    estimator = GaussianProcessRegressor(alpha=0.1).fit(x, x * [1, 5])
    asked = row(0, [0.5, 1.0], output_mode="quantiles", quantile_levels=[0.5, 0.9])

    (answer,) = load(estimator, tmp_path).batch_predict([asked])

    mean, std = estimator.predict([[0.5, 1.0]], return_std=True)
    np.testing.assert_allclose(answer.quantiles["0.5"], mean[0])
    np.testing.assert_allclose(answer.quantiles["0.9"], mean[0] + 1.2815516 * std[0])


class Frames:
    """Answers with whatever it was given."""

    def __init__(self, answer):
        self.answer = answer

    def predict(self, x):
        return self.answer


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (pd.DataFrame({"a": [1, 2], "b": ["x", None]}), [{"a": 1, "b": "x"}, {"a": 2, "b": None}]),
        (pd.Series([WIDE + 1, 2], index=[7, 3]), [WIDE + 1, 2]),
        (np.array(["2024-05-01T10:30", "NaT"], dtype="M8[ns]"), ["2024-05-01T10:30:00", None]),
        (np.array(["2024-05-01", "NaT"], dtype="M8[D]"), ["2024-05-01", None]),
        (pd.Series(pd.to_datetime(["2024-05-01", None])), ["2024-05-01T00:00:00", None]),
        (np.array([True, False]), [True, False]),
        ({"a": np.array([1.5, 2]), "b": ["x", "y"]}, [{"a": 1.5, "b": "x"}, {"a": 2.0, "b": "y"}]),
    ],
)
def test_whatever_a_model_answers_with_is_one_value_a_row(answer, expected, tmp_path):
    found = predictions(load(Frames(answer), tmp_path), [[1.0], [2.0]])

    assert found == expected


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (np.array([1.0]), "1 answers for 2 rows"),
        (pd.DataFrame([[1, 2], [3, 4]], columns=["a", "a"]), "several columns named a"),
        ("up", "must give one answer a row"),
    ],
)
def test_an_answer_that_is_not_one_a_row_is_refused(answer, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        predictions(load(Frames(answer), tmp_path), [[1.0], [2.0]])


@pytest.mark.parametrize("rows", permutations([[1.0, "a"], [None, None], [WIDE + 1, "b"]]))
def test_a_list_becomes_the_same_whatever_its_mates(rows, tmp_path):
    backend = load(Show(), tmp_path)

    together = predictions(backend, rows)

    assert together == [predictions(backend, [r])[0] for r in rows]


class Show:
    """Says what it was given."""

    def predict(self, x):
        return [repr([v if isinstance(v, str) else float(v) for v in r]) for r in x]


@pytest.mark.parametrize("text", ["inf", "-Infinity", "1e400"])
@pytest.mark.parametrize("as_list", [False, True])
def test_a_text_that_reads_as_infinity_is_refused_where_the_model_takes_numbers(
    text, as_list, tmp_path
):
    table = pd.DataFrame({"seats": range(40), "age": range(40)}, dtype=float)
    fitted = HistGradientBoostingRegressor().fit(table.to_numpy() if as_list else table, range(40))
    backend = load(fitted, tmp_path)
    rows = [{"seats": text, "age": 1}, {"seats": float("inf"), "age": 1}]
    bad, infinite = [[*r.values()] for r in rows] if as_list else rows

    with pytest.raises(ValueError, match=rf"'features\.(seats|0)': '{text}' is a text that reads"):
        predictions(backend, [bad])

    # The model takes infinity itself, which is what such a row asks for.
    expected = fitted.predict([[np.inf, 1]] if as_list else table.assign(seats=np.inf, age=1))[:1]
    np.testing.assert_allclose(predictions(backend, [infinite]), expected)


def test_a_category_may_read_as_infinity(tmp_path):
    table = pd.DataFrame({"ticker": ["inf", "msft"] * 4})
    estimator = make_pipeline(OneHotEncoder(), LinearRegression()).fit(table, [1, 2] * 4)

    found = predictions(load(estimator, tmp_path), [{"ticker": "inf"}])

    np.testing.assert_allclose(found, [1.0])
