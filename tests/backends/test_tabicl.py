"""TabICL on random weights of a tiny configuration, saved as the library's own checkpoints."""

from __future__ import annotations

from uuid import UUID

import numpy as np
import pytest
from pydantic import ValidationError

from sheaf_dagster import SpecError
from sheaf_dagster.backends.tabicl import TabICLBackend
from sheaf_dagster.contracts import TabularRequest
from sheaf_dagster.testing import check_backend
from tests.backends.rules import WITHOUT_A_WORKER

pytestmark = pytest.mark.model


def row(i: int, n_context: int = 24, context: int = 0, **fields) -> TabularRequest:
    random = np.random.default_rng(context)
    x = random.normal(size=(n_context, 3))
    labels = (x[:, 0] > 0).astype(int) + (x[:, 1] > 0) if "task" not in fields else x[:, 0]
    query = np.random.default_rng(100 + i).normal(size=(1 + i % 3, 3))
    defaults = {
        "request_id": UUID(int=i + 1),
        "model_name": "m",
        "context_X": x.tolist(),
        "context_y": labels.tolist(),
        "query_X": query.tolist(),
    }
    return TabularRequest(**{**defaults, **fields})


MIXED = [
    row(0),
    row(1, output_mode="probabilities"),
    row(2, context=1, n_context=31, output_mode="probabilities"),
    row(3, task="regression"),
    row(4, task="regression", output_mode="quantiles", quantile_levels=[0.2, 0.7]),
    row(5, query_X=[]),
    row(6, query_X=[[0.1, float("nan"), 0.2]]),
]


def test_mixed_rows_answer_like_single_ones(checkpoints):
    check_backend(
        TabICLBackend,
        MIXED,
        backend_kwargs={**checkpoints, "device": "cpu", "n_estimators": 2},
        rules=WITHOUT_A_WORKER,
    )


def test_answers_are_those_of_the_library(checkpoints):
    from tabicl import TabICLClassifier, TabICLRegressor

    backend = TabICLBackend(**checkpoints, device="cpu", n_estimators=2)
    backend.load()
    _, two, _, four, five, *_ = backend.batch_predict(MIXED)

    options = {"allow_auto_download": False, "device": "cpu", "n_estimators": 2}
    classifier = TabICLClassifier(model_path=checkpoints["classifier_path"], **options)
    classifier.fit(np.array(MIXED[1].context_X), np.array(MIXED[1].context_y))
    regressor = TabICLRegressor(model_path=checkpoints["regressor_path"], **options)
    regressor.fit(np.array(MIXED[3].context_X), np.array(MIXED[3].context_y))

    expected = classifier.predict_proba(np.array(MIXED[1].query_X))
    np.testing.assert_allclose(two.probabilities, expected, atol=1e-5)
    assert two.classes == [0, 1, 2]
    assert two.predictions == classifier.classes_[expected.argmax(axis=1)].tolist()
    np.testing.assert_allclose(
        four.predictions, regressor.predict(np.array(MIXED[3].query_X)), atol=1e-5
    )
    assert list(five.quantiles) == ["0.2", "0.7"]
    assert all(low <= high for low, high in zip(*five.quantiles.values(), strict=True))


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_null_is_missing_in_examples_and_queries(task, checkpoints):
    from tabicl import TabICLClassifier, TabICLRegressor

    example = row(0, task=task).context_X
    context = [[None if i % 5 == 0 else v[0], *v[1:]] for i, v in enumerate(example)]
    queries = [[0.1, None, 0.2], [None, 0.3, 0.4]]
    labels = [i % 2 for i in range(len(context))]
    given = {"context_X": context, "context_y": labels, "task": task}
    backend = TabICLBackend(**checkpoints, device="cpu", n_estimators=2)
    backend.load()
    rows = [row(i, query_X=[q], **given) for i, q in enumerate(queries)]
    rows += [row(2, query_X=queries, **given)]

    answers = [a.predictions for a in backend.batch_predict(rows)]

    cls, path = {
        "classification": (TabICLClassifier, checkpoints["classifier_path"]),
        "regression": (TabICLRegressor, checkpoints["regressor_path"]),
    }[task]
    library = cls(model_path=path, allow_auto_download=False, device="cpu", n_estimators=2)
    library.fit(np.array(context, dtype=float), np.array(labels))
    expected = library.predict(np.array(queries, dtype=float))
    np.testing.assert_allclose(answers[2], expected, atol=1e-5)
    for i, query in enumerate(queries):  # a column that is missing in all queries is left out
        alone = library.predict(np.array([query], dtype=float))
        np.testing.assert_allclose(answers[i], alone, atol=1e-5)


def test_categories_are_those_of_the_library_and_unseen_ones_are_unknown(checkpoints):
    import pandas as pd
    from tabicl import TabICLClassifier

    numbers = row(0).context_X
    context = [[float([30, 10, 20][i % 3]), v[1], None if i == 2 else v[2]]
               for i, v in enumerate(numbers)]  # fmt: skip
    queries = [[10.0, 0.1, 0.2], [77.0, 0.3, 0.4], [None, 0.5, 0.6]]
    given = {"context_X": context, "query_X": queries, "output_mode": "probabilities"}
    backend = TabICLBackend(**checkpoints, device="cpu", n_estimators=2)
    backend.load()

    as_numbers, answer = backend.batch_predict(
        [row(0, **given), row(1, categorical_feature_indices=[0], **given)]
    )

    def frame(rows):
        return pd.DataFrame(np.array(rows, dtype=float)).astype({0: "category"})

    options = {"allow_auto_download": False, "device": "cpu", "n_estimators": 2}
    library = TabICLClassifier(model_path=checkpoints["classifier_path"], **options)
    library.fit(frame(context), np.array(row(0).context_y))
    expected = library.predict_proba(frame(queries))
    np.testing.assert_allclose(answer.probabilities, expected, atol=1e-5)
    assert not np.allclose(as_numbers.probabilities, expected, atol=1e-5)


def test_labels_beyond_a_floats_digits_stay_as_they_are(checkpoints):
    backend = TabICLBackend(**checkpoints, device="cpu", n_estimators=2)
    backend.load()
    labels = [2**53 + 1 if i % 2 else 1.0 for i in range(24)]

    answer = backend.predict(row(0, context_y=labels, output_mode="probabilities"))

    assert answer.classes == [1, 2**53 + 1]
    assert set(answer.predictions) <= {1, 2**53 + 1}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"context_y": [0.5, 1.5] * 12}, r"'context_y' \(task 'classification'\).*continuous"),
        ({"context_y": [float("nan"), *[1] * 23]}, r"'context_y\.0' is nan"),
        ({"context_y": [1e39, *[0.5] * 23], "task": "regression"}, r"'context_y'.*too large"),
        ({"categorical_feature_indices": [3]}, r"has 3, but features are numbered 0 to 2"),
    ],
)
def test_examples_that_teach_nothing_are_their_own_rows_error(fields, says, checkpoints):
    backend = TabICLBackend(**checkpoints, device="cpu", n_estimators=2)
    backend.load()
    with pytest.raises(ValueError, match=rf"(?s){UUID(int=2)}: .*{says}"):
        backend.batch_predict([row(0), row(1, **fields)])


@pytest.mark.parametrize("field", ["context_X", "query_X"])
def test_dates_are_no_numbers_and_refused_while_rows_are_validated(field):
    given = row(0).model_dump(mode="json", include={"context_X", "context_y", "query_X"})
    given[field][0][0] = "2024-06-05"
    with pytest.raises(ValidationError, match=rf"{field}\.0\.0\n.*number"):
        TabularRequest(model_name="m", **given)


def test_a_value_that_the_library_refuses_is_its_own_rows_error(checkpoints):
    backend = TabICLBackend(**checkpoints, device="cpu", n_estimators=2)
    backend.load()
    with pytest.raises(ValueError, match=rf"{UUID(int=2)}: 'query_X\.0\.1' is infinite"):
        backend.batch_predict([row(0), row(1, query_X=[[0.0, float("inf"), 1.0]])])
    with pytest.raises(ValueError, match=rf"{UUID(int=2)}: 'context_X\.1\.0' is infinite"):
        context = [[0.0, 1.0], [float("-inf"), 0.5], [1.0, 1.0]]
        given = {"context_X": context, "context_y": [0, 1, 1], "query_X": [[0.0, 1.0]]}
        backend.batch_predict([row(0), row(1, **given)])


def test_rows_of_one_context_share_a_fit_and_the_file_is_read_once(checkpoints, monkeypatch):
    import torch
    from tabicl import TabICLClassifier

    fits, reads = [], []
    fit, load = TabICLClassifier.fit, torch.load
    monkeypatch.setattr(
        TabICLClassifier, "fit", lambda self, x, y: (fits.append(len(x)), fit(self, x, y))[1]
    )
    monkeypatch.setattr(torch, "load", lambda *a, **k: (reads.append(a), load(*a, **k))[1])
    backend = TabICLBackend(**checkpoints, device="cpu", n_estimators=2)
    backend.load()

    backend.batch_predict([row(i, context=i % 2) for i in range(10)])

    assert len(fits) == 2
    assert len(reads) == 1


def test_what_it_can_not_answer_is_named(checkpoints):
    backend = TabICLBackend(**checkpoints, device="cpu")
    backend.load()
    with pytest.raises(ValueError, match=rf"{UUID(int=2)}: has no examples"):
        backend.batch_predict([row(0), row(1, context_X=[], context_y=[])])
    with pytest.raises(
        ValueError, match=r"'query_X\.1' has 2 features, but the first example has 3"
    ):
        backend.batch_predict([row(0, query_X=[[1, 2, 3], [1, 2]])])
    with pytest.raises(SpecError, match=r"not found at '/nowhere/m\.ckpt'"):
        TabICLBackend(classifier_path="/nowhere/m.ckpt", device="cpu").load()
