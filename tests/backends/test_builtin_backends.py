"""The built-in backends on real code: small weights made here, real weights from a package."""

from __future__ import annotations

import json
from pathlib import Path
from uuid import UUID

import pytest

from sheaf_dagster import MissingDependencyError, SpecError
from sheaf_dagster.backends.chronos import ChronosBackend
from sheaf_dagster.backends.statsforecast import StatsForecastBackend
from sheaf_dagster.backends.text_embedder import SentenceTransformersBackend
from sheaf_dagster.contracts import EmbeddingRequest, OpenAIBatchRequest, TimeSeriesRequest
from sheaf_dagster.testing import RULES, check_backend
from tests.backends.rules import WITHOUT_A_WORKER

pytestmark = pytest.mark.model


def series(i: int, **fields) -> TimeSeriesRequest:
    defaults = {
        "request_id": UUID(int=i + 1),
        "model_name": "m",
        "history": [float((t * (i + 2)) % 7) + 0.1 * t for t in range(30 + i)],
        "horizon": 4,
        "frequency": "1d",
    }
    return TimeSeriesRequest(**{**defaults, **fields})


MIXED = [
    series(0),
    series(1, horizon=9),
    series(2, output_mode="quantiles", quantile_levels=[0.05, 0.33, 0.5, 0.9]),
    series(3, output_mode="samples", num_samples=3),
    series(4, history=[[float(t % 5), t * 0.5] for t in range(40)], target_index=1),
    series(5, history=[[float(t % 3), t * 0.25, 1.0] for t in range(25)], horizon=9),
    series(6, history=[1, 2, 3.5, float("nan"), 4]),
]


@pytest.mark.parametrize("family", ["bolt", "chronos2"])
def test_quantile_families_answer_mixed_rows_like_single_ones(family, models):
    check_backend(
        ChronosBackend,
        MIXED,
        backend_kwargs={"model_id": models[family], "device": "cpu"},
        rules=RULES if family == "bolt" else WITHOUT_A_WORKER,
    )


def test_t5_keeps_the_rules_that_sampling_a_batch_can_keep(models):
    # The draws of a row depend on its batch; those of a batch don't depend on anything else.
    check_backend(
        ChronosBackend,
        MIXED,
        backend_kwargs={"model_id": models["t5"], "device": "cpu"},
        rules=[r for r in RULES if r not in ("single_row", "poison", "predict", "travels")],
    )


@pytest.mark.parametrize("family", ["bolt", "t5", "chronos2"])
def test_each_row_of_a_mixed_batch_gets_its_own_shape(family, models):
    backend = ChronosBackend(models[family], device="cpu")
    backend.load()

    answers = backend.batch_predict(MIXED)

    assert [a.request_id for a in answers] == [r.request_id for r in MIXED]
    assert [len(a.mean) for a in answers] == [4, 9, 4, 4, 4, 9, 4]
    assert list(answers[2].quantiles) == ["0.05", "0.33", "0.5", "0.9"]
    low, high = answers[2].quantiles["0.05"], answers[2].quantiles["0.9"]
    assert all(a <= b for a, b in zip(low, high, strict=True))
    assert [len(path) for path in answers[3].samples] == [4, 4, 4]
    assert all(a.quantiles is None and a.samples is None for a in (answers[0], answers[4]))


def test_t5_draws_the_same_paths_whatever_ran_before(models):
    backend = ChronosBackend(models["t5"], device="cpu")
    backend.load()
    first = backend.batch_predict(MIXED)

    backend.batch_predict([series(40, output_mode="samples")])
    again = backend.batch_predict(MIXED)

    assert [a.model_dump() for a in first] == [a.model_dump() for a in again]


def test_chronos2_sees_the_other_variates(models):
    backend = ChronosBackend(models["chronos2"], device="cpu")
    backend.load()
    alone = series(0, history=[[float(t % 5)] for t in range(40)])
    joint = series(0, history=[[float(t % 5), 9.0 * (t % 2)] for t in range(40)])

    one, two = backend.batch_predict([alone, joint])

    assert one.mean != two.mean


def test_a_row_that_chronos_cannot_forecast_is_named(models):
    backend = ChronosBackend(models["bolt"], device="cpu")
    backend.load()
    with pytest.raises(ValueError, match=rf"{UUID(int=3)}.*no value to forecast from"):
        backend.batch_predict([series(1), series(2, history=[])])


def test_weights_digest_follows_the_weights(models, tmp_path):
    digest = ChronosBackend.identify(model_id=models["bolt"])
    other = tmp_path / "copy"
    other.mkdir()
    for f in Path(models["bolt"]).iterdir():
        (other / f.name).write_bytes(f.read_bytes())

    assert ChronosBackend.identify(model_id=str(other), device="cpu") == digest
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "dropout_rate": 0.5}))
    assert ChronosBackend.identify(model_id=str(other)) != digest


@pytest.mark.parametrize("model", ["AutoETS", "AutoTheta", "SeasonalNaive", "HistoricAverage"])
def test_statsforecast_answers_mixed_rows_like_single_ones(model):
    rows = [*MIXED, series(7, history=[5.0] * 40, output_mode="quantiles"), series(8, history=[3])]
    check_backend(
        StatsForecastBackend,
        rows,
        backend_kwargs={"model": model, "fallback": "last_season"},
        rules=RULES if model == "AutoTheta" else WITHOUT_A_WORKER,
    )


def test_statsforecast_continues_a_season():
    backend = StatsForecastBackend(model="SeasonalNaive")
    backend.load()
    week = [1.0, 2, 3, 4, 5, 6, 7]

    answer = backend.predict(series(0, history=week * 4, horizon=7))

    assert answer.mean == week
    assert answer.metadata["model"] == "SeasonalNaive"


def test_statsforecast_quantiles_are_ordered_and_missing_values_filled():
    backend = StatsForecastBackend()
    backend.load()
    history = [float(t % 7) + (t % 3) * 0.3 for t in range(60)]
    history[5] = float("nan")

    answer = backend.predict(
        series(0, history=history, output_mode="quantiles", quantile_levels=[0.1, 0.5, 0.9])
    )

    q = answer.quantiles
    assert all(a <= b <= c for a, b, c in zip(q["0.1"], q["0.5"], q["0.9"], strict=True))
    assert len(q["0.5"]) == 4


def test_an_unknown_statistical_model_is_refused():
    with pytest.raises(SpecError, match="no model 'AutoMagic'"):
        StatsForecastBackend(model="AutoMagic").load()


def texts(i: int, *values: str, **fields) -> EmbeddingRequest:
    return EmbeddingRequest(
        request_id=UUID(int=i + 1), model_name="m", texts=list(values), **fields
    )


def test_text_rows_of_any_number_embed_like_single_ones(minilm):
    rows = [
        texts(0, "a cat", "a dog"),
        texts(1, "ein längerer Satz über Züge und Bahnhöfe, zum Auffüllen"),
        texts(2),
        texts(3, "a cat", normalize=False),
    ]
    check_backend(
        SentenceTransformersBackend, rows, backend_kwargs={"model_id": minilm, "device": "cpu"}
    )


def test_real_text_embeddings_know_what_is_similar(minilm):
    backend = SentenceTransformersBackend(minilm, device="cpu")
    backend.load()

    (answer,) = backend.batch_predict(
        [texts(0, "a kitten sleeps", "a cat is napping", "the stock market fell")]
    )

    kitten, cat, market = answer.embeddings
    dot = lambda a, b: sum(x * y for x, y in zip(a, b, strict=True))  # noqa: E731
    assert answer.dim == 384
    assert dot(kitten, kitten) == pytest.approx(1.0, abs=1e-5)
    assert dot(kitten, cat) > 0.5 > dot(kitten, market)


def test_batch_api_lines_are_embedded_like_text_rows(minilm):
    lines = [
        OpenAIBatchRequest(custom_id=str(i), url="/v1/embeddings", body={"input": given})
        for i, given in enumerate(["a cat", ["a dog", "ein Zug fährt durch das Tal"]])
    ]
    check_backend(SentenceTransformersBackend(minilm, device="cpu"), lines)
    backend = SentenceTransformersBackend(minilm, device="cpu")
    backend.load()

    answers = backend.batch_predict(lines)

    (own,) = backend.batch_predict([texts(0, "a cat")])
    first, second = (a.response.body for a in answers)
    assert first["data"][0]["embedding"] == pytest.approx(own.embeddings[0], abs=1e-5)
    assert [d["index"] for d in second["data"]] == [0, 1]
    assert second["usage"]["total_tokens"] > first["usage"]["total_tokens"] > 0
    chat = OpenAIBatchRequest(custom_id="c", url="/v1/completions", body={"prompt": "a"})
    with pytest.raises(ValueError, match=r"row 'c'.*doesn't answer /v1/completions"):
        backend.batch_predict([chat])


def test_images_are_refused_by_a_text_model(minilm):
    backend = SentenceTransformersBackend(minilm, device="cpu")
    backend.load()
    request = EmbeddingRequest(model_name="m", images_b64=["aGk="])
    with pytest.raises(ValueError, match="embeds text"):
        backend.batch_predict([request])


@pytest.mark.parametrize(
    ("backend", "module", "extra"),
    [
        (ChronosBackend(), "chronos", "chronos"),
        (StatsForecastBackend(), "statsforecast", "statsforecast"),
        (SentenceTransformersBackend(), "sentence_transformers", "sentence-transformers"),
    ],
)
def test_a_missing_package_names_the_extra(backend, module, extra, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(MissingDependencyError, match=rf"sheaf_dagster\[{extra}\]"):
        backend.load()
