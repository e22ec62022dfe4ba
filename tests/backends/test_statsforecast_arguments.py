"""Arguments of the statistical forecasters: what can't work is refused at once, what is put aside is noted."""

from __future__ import annotations

import numpy as np
import pytest

from sheaf_dagster import BatchRunner, BatchSpec, ModelSpec, SpecError
from sheaf_dagster.backends.forecasting.statistical_models import StatisticalModel
from sheaf_dagster.backends.statsforecast import StatsForecastBackend
from sheaf_dagster.contracts.base import deviations_of
from tests.backends.forecast_rows import SEASONAL, loaded, models, row

pytestmark = pytest.mark.model


@pytest.mark.parametrize(
    ("model", "kwargs", "says"),
    [
        ("AutoETS", {"model": "AAAA"}, "AAAA"),
        ("AutoETS", {"damped": "yes"}, r"model_kwargs.damped.*'yes'"),
        ("AutoETS", {"phi": 2.0}, "phi"),
        ("AutoETS", {"distribution": "bell"}, "bell"),
        ("AutoETS", {"trend": "add"}, r"no argument 'trend'; model_kwargs may hold .*damped"),
        ("AutoCES", {"model": "Q"}, "Q"),
        ("AutoTheta", {"decomposition_type": "mult"}, r"decomposition_type.*'mult'"),
        ("Theta", {"decomposition_type": "mult"}, r"decomposition_type.*'mult'"),
        ("AutoTheta", {"model": "XTM"}, "XTM"),
        ("AutoARIMA", {"max_p": "3"}, r"model_kwargs.max_p.*'3'"),
        ("AutoARIMA", {"max_order": "3"}, r"model_kwargs.max_order.*'3'"),
        ("AutoARIMA", {"max_p": -1}, "max_p"),
        ("AutoARIMA", {"stepwise": "no"}, r"model_kwargs.stepwise.*'no'"),
        ("AutoARIMA", {"ic": "best"}, "best"),
        ("AutoARIMA", {"test": "adf"}, r"model_kwargs.test.*'kpss'"),
        ("ARIMA", {"order": [1, 0]}, r"model_kwargs.order.*\[1, 0\]"),
        ("ARIMA", {"order": [1, 0, 0], "method": "OLS"}, r"method.*'OLS'"),
        ("ARIMA", {"order": [1, 0, 0], "fixed": {"phi": 0.5}}, "fixed"),
        ("ARIMA", {"order": [1, 0, 0], "seasonal_order": [1, 1]}, "seasonal_order"),
        ("AutoRegressive", {"lags": "1"}, "lags"),
        ("SimpleExponentialSmoothing", {"alpha": 1.5}, "alpha"),
        ("SeasonalExponentialSmoothing", {"alpha": "0.3"}, "alpha"),
        ("TSB", {"alpha_d": 0.2}, r"needs 'alpha_p'"),
        ("WindowAverage", {"window_size": -1}, "window_size"),
        ("WindowAverage", {}, "needs 'window_size'"),
        ("MFLES", {"max_rounds": "3"}, "max_rounds"),
        ("MFLES", {"fourier_order": -1}, "fourier_order"),
        ("MFLES", {"seasonal_lr": -3.0}, "seasonal_lr"),
        ("MFLES", {"min_alpha": 0.9, "max_alpha": 0.5}, "min_alpha is 0.9, above max_alpha"),
        ("AutoMFLES", {"test_size": 7, "metric": "best"}, "best"),
        ("AutoMFLES", {"test_size": 7, "step_size": -1}, "step_size"),
        ("AutoMFLES", {"test_size": 7, "config": {"seasonal_lr": 0.5}}, "config"),
        ("AutoMFLES", {"test_size": 7, "config": {"season": [1]}}, "season"),
        ("TBATS", {"bc_lower_bound": 2.0}, "bc_lower_bound is 2.0, above bc_upper_bound"),
        ("TBATS", {"bc_upper_bound": -1.0}, "bc_upper_bound, which is -1.0"),
        ("AutoARIMA", {"start_p": 3, "max_p": 2}, "start_p is 3, above max_p, which is 2"),
        ("AutoARIMA", {"start_Q": 4}, "start_Q is 4, above max_Q"),
        ("HoltWinters", {"error_type": "X"}, "error type"),
        ("UCM", {"level": "steep"}, "steep"),
        ("UCM", {"fit_method": "guess"}, "fit_method"),
        ("MSTL", {"stl_kwargs": {"nope": 1}}, "nope"),
        ("MSTL", {"trend_forecaster": {"model": "AutoETS"}}, "seasonal"),
        ("MSTL", {"trend_forecaster": {"model": "MSTLs"}}, "no model 'MSTLs'"),
        ("CrostonClassic", {"prediction_intervals": {"n_windows": 1}}, "n_windows"),
        ("CrostonClassic", {"prediction_intervals": {"windows": 2}}, "prediction_intervals"),
        ("CrostonClassic", {"prediction_intervals": {"method": "x"}}, "method"),
        ("TBATS", {"prediction_intervals": {"n_windows": 2}}, "no argument"),
        ("GARCH", {"prediction_intervals": {"n_windows": 2}}, "GARCH"),
        ("ConstantModel", {"constant": "3"}, "constant"),
        ("AutoMagic", {}, "no model 'AutoMagic'"),
        ("SklearnModel", {}, "needs regressors"),
        ("NaNModel", {}, "isn't finite"),
    ],
)
def test_arguments_that_cannot_work_are_refused_at_load(model, kwargs, says):
    with pytest.raises(SpecError, match=f"(?s){says}") as refused:
        StatsForecastBackend(model, model_kwargs=kwargs).load()
    assert model in str(refused.value)


@pytest.mark.parametrize(
    ("model", "season", "kwargs"),
    [
        ("AutoRegressive", 7, {"lags": 52}),
        ("AutoRegressive", 7, {"lags": [1, 7, 364]}),
        ("ARIMA", 52, {"order": [40, 0, 2], "seasonal_order": [1, 0, 1]}),
        ("AutoARIMA", 12, {"stepwise": False}),
        ("AutoETS", 288, {}),
    ],
)
def test_a_model_is_proven_with_few_terms_and_keeps_its_own(model, season, kwargs):
    # With all its terms each of these takes half a minute to three minutes.
    made = StatisticalModel(models, model, kwargs)

    made.prove(season)

    assert made.has_intervals
    seasonal = {} if model == "AutoRegressive" else {"season_length": season}
    own = getattr(models, model)(**seasonal, **kwargs)
    assert repr(vars(made.build(season))) == repr(vars(own))


@pytest.mark.parametrize(
    "kwargs",
    [
        {"season_length": 0},
        {"season_length": [7, "14"]},
        {"season_length": []},
        {"season_length": 7, "model_kwargs": {"season_length": 7}},
        {"fallback": "mean"},
    ],
)
def test_the_backends_own_arguments_are_checked_at_once(kwargs):
    with pytest.raises(SpecError, match="|".join(kwargs)):
        StatsForecastBackend(**kwargs)


def test_no_row_is_read_by_a_model_that_cannot_work(tmp_path):
    source, sink = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(row().model_dump_json() + "\n")
    spec = ModelSpec(
        name="m",
        model_type="time_series",
        backend="statsforecast",
        backend_kwargs={"model": "AutoETS", "model_kwargs": {"model": "AAAA"}},
    )
    with pytest.raises(SpecError, match="AAAA"):
        BatchRunner(model_spec=spec).run(
            BatchSpec(source=str(source), sink=str(sink), compute="local", on_error="record")
        )
    assert not sink.exists()


@pytest.mark.parametrize(
    ("model", "kwargs", "history", "noted"),
    [
        ("TBATS", {}, [0.0, *SEASONAL], True),
        ("TBATS", {}, SEASONAL, False),
        ("TBATS", {"use_boxcox": False}, [0.0, *SEASONAL], False),
        ("TBATS", {"use_boxcox": None}, [0.0, *SEASONAL], False),
        ("ARIMA", {"order": [0, 2, 1], "include_drift": True}, SEASONAL, True),
        ("ARIMA", {"order": [0, 1, 1], "include_drift": True}, SEASONAL, False),
    ],
)
def test_an_argument_that_the_library_puts_aside_is_noted(model, kwargs, history, noted):
    backend = loaded(model, season_length=7, model_kwargs=kwargs)

    answer = backend.predict(row(history=history))

    made = getattr(models, model)(season_length=7, **kwargs)
    by_hand = made.forecast(y=np.array(history), h=answer.horizon)["mean"]
    assert answer.mean == pytest.approx(by_hand.tolist())
    assert deviations_of(answer) == (("ignored_field",) if noted else ())
    assert len(answer.metadata.get("warnings", [])) == noted
