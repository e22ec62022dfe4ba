"""The statistical forecasters against the library called by hand on the same rows."""

from __future__ import annotations

import json
from uuid import UUID

import numpy as np
import pytest

from sheaf_dagster import BatchRunner, BatchSpec, ModelSpec
from sheaf_dagster.backends.statsforecast import StatsForecastBackend
from sheaf_dagster.contracts.base import deviations_of
from sheaf_dagster.testing import check_backend
from tests.backends.forecast_rows import DEMAND, SEASONAL, by_hand, loaded, models, row
from tests.backends.rules import WITHOUT_A_WORKER

pytestmark = pytest.mark.model
WITHOUT_INTERVALS = [
    "ADIDA",
    "AutoMFLES",
    "CrostonClassic",
    "CrostonOptimized",
    "CrostonSBA",
    "IMAPA",
    "MFLES",
    "SeasonalExponentialSmoothing",
    "SeasonalExponentialSmoothingOptimized",
    "SeasonalWindowAverage",
    "SimpleExponentialSmoothing",
    "SimpleExponentialSmoothingOptimized",
    "TSB",
    "WindowAverage",
]
OWN_DRAWS = ["ConformalSeasonalPool"]  # the library's own intervals differ at each call
NOT_FOR_ROWS = ["NaNModel", "SklearnModel"]
SLOW = ["AutoTBATS"]
ALL = [m for m in models.__all__ if m not in NOT_FOR_ROWS + SLOW]
WITH_INTERVALS = [m for m in ALL if m not in WITHOUT_INTERVALS + OWN_DRAWS]


@pytest.mark.parametrize("model", ALL)
def test_the_mean_is_the_librarys(model):
    backend = loaded(model)

    seasonal, demand = backend.batch_predict([row(), row(history=DEMAND, horizon=3)])

    expected = by_hand(model).forecast(y=np.array(SEASONAL), h=5)["mean"]
    assert seasonal.mean == pytest.approx(list(expected), rel=1e-9)
    expected = by_hand(model).forecast(y=np.array(DEMAND), h=3)["mean"]
    assert demand.mean == pytest.approx(list(expected), rel=1e-9)
    assert not deviations_of(seasonal)


@pytest.mark.parametrize("model", WITH_INTERVALS)
def test_quantiles_are_the_ends_of_the_librarys_intervals(model):
    levels = [0.05, 0.1, 0.5, 0.9, 0.975]
    answer = loaded(model).predict(row(output_mode="quantiles", quantile_levels=levels))

    expected = by_hand(model).forecast(y=np.array(SEASONAL), h=5, level=[0, 80, 90, 95])
    names = ["lo-90", "lo-80", "lo-0", "hi-80", "hi-95"]
    for q, name in zip(levels, names, strict=True):
        assert answer.quantiles[str(q)] == pytest.approx(list(expected[name]), rel=1e-9), q
    assert answer.mean == pytest.approx(list(expected["mean"]), rel=1e-9)


@pytest.mark.parametrize("model", WITHOUT_INTERVALS)
def test_models_without_intervals_say_so(model):
    backend = loaded(model, fallback="last_season")  # which is for series, not for models
    with pytest.raises(ValueError, match=rf"{model} has no intervals.*prediction_intervals"):
        backend.predict(row(history=DEMAND, output_mode="quantiles"))


@pytest.mark.parametrize("method", ["conformal_distribution", "conformal_error"])
@pytest.mark.parametrize("model", [*WITHOUT_INTERVALS, "AutoETS", "AutoARIMA", "MSTL", "Naive"])
def test_conformal_intervals_are_asked_for_in_json(model, method):
    from statsforecast.utils import ConformalIntervals

    wanted = {"n_windows": 3, "h": 5, "method": method}
    backend = loaded(model, model_kwargs={"prediction_intervals": wanted})

    answer = backend.predict(row(output_mode="quantiles", quantile_levels=[0.1, 0.5, 0.9]))

    own = {"trend_forecaster": models.AutoETS(model="ZZN")} if model == "MSTL" else {}
    made = by_hand(model, prediction_intervals=ConformalIntervals(**wanted), **own)
    expected = made.forecast(y=np.array(SEASONAL), h=5, level=[0, 80])
    assert answer.mean == pytest.approx(list(expected["mean"]), rel=1e-9)
    expected["middle"] = (expected["lo-0"] + expected["hi-0"]) / 2
    for q, name in (("0.1", "lo-80"), ("0.5", "middle"), ("0.9", "hi-80")):
        assert answer.quantiles[q] == pytest.approx(list(expected[name]), rel=1e-9)


def test_conformal_windows_are_as_long_as_each_rows_horizon_or_as_told():
    from statsforecast.utils import ConformalIntervals

    free = loaded("CrostonClassic", model_kwargs={"prediction_intervals": {"n_windows": 2}})
    seven = loaded("CrostonClassic", model_kwargs={"prediction_intervals": {"h": 7}})
    asked = row(history=DEMAND, output_mode="quantiles", quantile_levels=[0.1], horizon=3)

    def expected(h: int) -> list[float]:
        made = models.CrostonClassic(prediction_intervals=ConformalIntervals(n_windows=2, h=h))
        return list(made.forecast(y=np.array(DEMAND), h=h, level=[80])["lo-80"])

    assert free.predict(asked).quantiles["0.1"] == pytest.approx(expected(3))
    assert seven.predict(asked).quantiles["0.1"] == pytest.approx(expected(7)[:3])
    with pytest.raises(ValueError, match="'horizon' is 8, but conformal intervals .* 7 steps"):
        seven.predict(asked.model_copy(update={"horizon": 8}))
    with pytest.raises(ValueError, match="CrostonClassic can't forecast this history.*at least 15"):
        seven.predict(asked.model_copy(update={"history": DEMAND[:9]}))


def test_a_models_own_conformal_intervals_are_not_left_to_the_next_model():
    # The library keeps them in a default argument that all of its MSTL models share.
    loaded("MSTL", model_kwargs={"prediction_intervals": {"n_windows": 2}}).predict(
        row(output_mode="quantiles")
    )
    answer = loaded("MSTL").predict(row(output_mode="quantiles", quantile_levels=[0.1]))

    made = models.MSTL(season_length=7, trend_forecaster=models.AutoETS(model="ZZN"))
    expected = made.forecast(y=np.array(SEASONAL), h=5, level=[80])["lo-80"]
    assert answer.quantiles["0.1"] == pytest.approx(list(expected))


@pytest.mark.parametrize("model", [*WITH_INTERVALS, *OWN_DRAWS, "SimpleExponentialSmoothing"])
def test_samples_are_paths_around_the_models_own_mean(model):
    asked = row(output_mode="samples", num_samples=400)

    answer = loaded(model).predict(asked)
    again = loaded(model).predict(asked)
    other = loaded(model).predict(asked.model_copy(update={"request_id": UUID(int=12)}))

    paths = np.array(answer.samples)
    assert paths.shape == (400, 5)
    assert again.samples == answer.samples
    expected = by_hand(model).forecast(y=np.array(SEASONAL), h=5)["mean"]
    assert answer.mean == pytest.approx(list(expected), rel=1e-9)
    if model in ("ConstantModel", "ZeroModel"):
        assert (paths == paths[0]).all()
        return
    assert other.samples != answer.samples
    if model in OWN_DRAWS or not _is_symmetric(model):
        return
    bound = by_hand(model).forecast(y=np.array(SEASONAL), h=5, level=[80])
    inside = (paths >= np.array(bound["lo-80"])) & (paths <= np.array(bound["hi-80"]))
    assert inside.mean() == pytest.approx(0.8, abs=0.1)


def _is_symmetric(model: str) -> bool:
    # Holt's and HoltWinters' simulated paths drift from their own mean in statsforecast 2.1.
    return model not in ("Holt", "HoltWinters", "SimpleExponentialSmoothing")


@pytest.mark.parametrize(
    ("model", "kwargs"),
    [("ARIMA", {"order": [0, 1, 0]}), ("AutoRegressive", {"lags": 1}), ("UCM", {})],
)
def test_steps_of_a_path_depend_on_each_other(model, kwargs):
    walk = np.random.default_rng(0).normal(size=120).cumsum().round(3).tolist()
    answer = loaded(model, model_kwargs=kwargs).predict(
        row(history=walk, output_mode="samples", num_samples=500)
    )

    paths = np.array(answer.samples)
    assert np.corrcoef(paths[:, 3], paths[:, 4])[0, 1] > 0.6


def test_samples_of_conformal_models_are_the_paths_that_their_quantiles_are_taken_of():
    from statsforecast.utils import ConformalIntervals

    backend = loaded("CrostonSBA", model_kwargs={"prediction_intervals": {"n_windows": 4}})
    answer = backend.predict(row(history=DEMAND, output_mode="samples", num_samples=300, horizon=3))

    made = models.CrostonSBA(prediction_intervals=ConformalIntervals(n_windows=4, h=3))
    bound = made.forecast(y=np.array(DEMAND), h=3, level=[99.99])
    paths = np.array(answer.samples)
    assert len({tuple(p) for p in answer.samples}) == 8  # four windows, up and down
    assert paths.min(axis=0) == pytest.approx(np.array(bound["lo-99.99"]), abs=1e-3)
    assert paths.max(axis=0) == pytest.approx(np.array(bound["hi-99.99"]), abs=1e-3)


@pytest.mark.parametrize(
    ("frequency", "season"),
    [("1h", 24), ("1d", 7), ("1M", 12), ("1W", 52)],
)
def test_the_season_follows_the_frequency_or_the_argument(frequency, season):
    history = (np.arange(130) % 13 + np.arange(130) * 0.01).tolist()
    asked = row(history=history, frequency=frequency, horizon=13)

    free, fixed = loaded("SeasonalNaive"), loaded("SeasonalNaive", season_length=13)

    expected = by_hand("SeasonalNaive", season).forecast(y=np.array(history), h=13)["mean"]
    assert free.predict(asked).mean == pytest.approx(list(expected))
    expected = by_hand("SeasonalNaive", 13).forecast(y=np.array(history), h=13)["mean"]
    assert fixed.predict(asked).mean == pytest.approx(list(expected))


def test_a_model_may_have_several_seasons_and_another_models_trend():
    backend = loaded(
        "MSTL",
        season_length=[7, 14],
        model_kwargs={"trend_forecaster": {"model": "AutoARIMA", "model_kwargs": {"max_p": 1}}},
    )

    made = models.MSTL(season_length=[7, 14], trend_forecaster=models.AutoARIMA(max_p=1))
    expected = made.forecast(y=np.array(SEASONAL), h=5)["mean"]
    assert backend.predict(row()).mean == pytest.approx(list(expected))


def test_another_distribution_of_errors_has_an_effect():
    wild = np.array(SEASONAL)
    wild[::9] += 25
    asked = row(history=wild.tolist(), output_mode="quantiles", quantile_levels=[0.01])

    answer = loaded("AutoETS", model_kwargs={"distribution": "t"}).predict(asked)

    made = models.AutoETS(season_length=7, distribution="t").fit(wild)
    assert answer.quantiles["0.01"] == pytest.approx(list(made.predict(h=5, level=[98])["lo-98"]))


@pytest.mark.parametrize(
    ("model", "history"),
    [("AutoETS", [3.0]), ("SeasonalNaive", [1.0, 2.0, 3.0]), ("HoltWinters", [1.0, 5.0] * 4)],
)
def test_a_history_that_is_too_short_fails_its_row_or_falls_back_and_says_so(model, history):
    with pytest.raises(ValueError, match=rf"{model} can't forecast this history \({len(history)}"):
        loaded(model).predict(row(history=history))

    answer = loaded(model, fallback="last_season").predict(
        row(history=history, output_mode="quantiles")
    )

    step = 7 if len(history) >= 7 else 1
    assert answer.mean == np.resize(history[-step:], 5).tolist()
    assert answer.quantiles["0.5"] == answer.mean
    assert answer.metadata["model"] == "last season"
    assert f"{model} can't forecast this history" in answer.metadata["reason"]
    assert deviations_of(answer) == ("fell_back",)


def test_rows_that_fell_back_are_counted_by_the_job(tmp_path):
    source, sink = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [row(request_id=UUID(int=i + 1), history=SEASONAL[: 1 + 40 * (i % 2)]) for i in range(6)]
    source.write_text("".join(r.model_dump_json() + "\n" for r in rows))
    spec = ModelSpec(
        name="m",
        model_type="time_series",
        backend="statsforecast",
        backend_kwargs={"fallback": "last_season"},
    )

    result = BatchRunner(model_spec=spec).run(
        BatchSpec(source=str(source), sink=str(sink), compute="local")
    )

    assert result.deviations["fell_back"] == 3
    answers = [json.loads(line) for line in sink.read_text().splitlines()]
    assert ["deviations" in a["metadata"] for a in answers] == [True, False] * 3


def test_running_out_of_memory_is_no_reason_to_fall_back():
    backend = loaded("HistoricAverage", fallback="last_season")
    with pytest.raises(MemoryError):
        backend.predict(row(horizon=10**15))


def test_missing_values_take_the_one_before_and_are_counted():
    holes = [None, None, *SEASONAL[2:10], None, *SEASONAL[11:]]
    filled = [SEASONAL[2], SEASONAL[2], *SEASONAL[2:10], SEASONAL[9], *SEASONAL[11:]]
    backend = loaded("AutoETS")

    answer = backend.predict(row(history=holes))

    expected = by_hand("AutoETS").forecast(y=np.array(filled), h=5)["mean"]
    assert answer.mean == pytest.approx(list(expected))
    assert answer.metadata["filled_values"] == 3
    with pytest.raises(ValueError, match="no value to forecast from"):
        backend.predict(row(history=[None, float("nan")]))
    with pytest.raises(ValueError, match="'history' is infinite at step 1"):
        backend.predict(row(history=[1.0, float("inf"), None]))


def test_variates_that_have_no_effect_are_noted():
    history = [[value, 1.0] for value in SEASONAL]
    for asked in (row(history=history), row(target_index=1)):
        answer = loaded("AutoETS").predict(asked)

        assert answer.mean == loaded("AutoETS").predict(row()).mean
        assert deviations_of(answer) == ("ignored_field",)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"output_mode": "samples", "num_samples": 0}, "'num_samples' must be at least 1"),
        ({"output_mode": "quantiles", "quantile_levels": [0.5, 1.0]}, "quantile level 1 "),
        ({"output_mode": "quantiles", "quantile_levels": [float("nan")]}, "quantile level nan"),
    ],
)
def test_a_row_that_asks_for_what_there_is_not_is_told(fields, says):
    with pytest.raises(ValueError, match=says):
        loaded("AutoETS", fallback="last_season").predict(row(**fields))


@pytest.mark.parametrize("model", ["AutoTheta", "ARIMA", "CrostonClassic", "MSTL"])
def test_the_rules_hold_in_every_output_mode(model):
    rows = [
        row(request_id=UUID(int=1)),
        row(request_id=UUID(int=2), history=DEMAND, horizon=9),
        row(request_id=UUID(int=3), output_mode="quantiles", quantile_levels=[0.05, 0.33, 0.5]),
        row(request_id=UUID(int=4), output_mode="samples", num_samples=3),
        row(request_id=UUID(int=5), history=[5.0] * 40, output_mode="quantiles"),
        row(request_id=UUID(int=6), history=[3.0]),
        row(request_id=UUID(int=7), history=[[v, 1.0] for v in SEASONAL], target_index=0),
    ]
    kwargs = {"prediction_intervals": {"n_windows": 2}} if model == "CrostonClassic" else {}
    check_backend(
        StatsForecastBackend,
        rows,
        backend_kwargs={"model": model, "model_kwargs": kwargs, "fallback": "last_season"},
        rules=WITHOUT_A_WORKER,
    )
