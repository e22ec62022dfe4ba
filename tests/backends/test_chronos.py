"""The Chronos forecasters against the library called by hand, on small weights."""

from __future__ import annotations

from uuid import UUID

import numpy as np
import pytest

from sheaf_dagster.backends.chronos import ChronosBackend
from sheaf_dagster.contracts import TimeSeriesRequest
from sheaf_dagster.contracts.base import deviations_of

pytestmark = pytest.mark.model
FAMILIES = ["bolt", "t5", "chronos2"]


@pytest.fixture(scope="module")
def backends(models) -> dict[str, ChronosBackend]:
    pytest.importorskip("chronos")
    made = {family: ChronosBackend(models[family], device="cpu") for family in FAMILIES}
    for backend in made.values():
        backend.load()
    return made


def row(i: int, **fields) -> TimeSeriesRequest:
    history = [10.0 + (t * (i + 2)) % 7 + 0.1 * t for t in range(30 + i % 5)]
    defaults = {"model_name": "m", "history": history, "horizon": 4, "frequency": "1d"}
    return TimeSeriesRequest(**{"request_id": UUID(int=i + 1), **defaults, **fields})


@pytest.mark.parametrize("family", ["bolt", "chronos2"])
def test_quantiles_are_the_librarys(family, backends):
    import torch

    backend, levels = backends[family], [0.1, 0.25, 0.5, 0.9]
    rows = [row(i, output_mode="quantiles", quantile_levels=levels) for i in range(3)]

    answers = backend.batch_predict(rows)

    for asked, answer in zip(rows, answers, strict=True):
        context = torch.tensor(asked.history)
        given = [context[None]] if family == "chronos2" else [context]
        raw = backend._pipeline.predict(given, prediction_length=4)[0]
        by_hand = np.sort(np.asarray(raw.squeeze(0) if raw.ndim == 3 else raw), axis=0)
        assert answer.quantiles["0.1"] == pytest.approx(by_hand[0].tolist(), rel=1e-4)
        assert answer.quantiles["0.9"] == pytest.approx(by_hand[8].tolist(), rel=1e-4)
        assert answer.quantiles["0.25"] == pytest.approx((by_hand[1:3].mean(0)).tolist(), rel=1e-4)
        assert answer.mean == answer.quantiles["0.5"]
        assert answer.mean == pytest.approx(by_hand[4].tolist(), rel=1e-4)
        assert not deviations_of(answer)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_row_of_a_batch_is_answered_at_its_own_levels(family, backends):
    backend = backends[family]
    asked = [[0.1, 0.5], [0.9], None, [0.5, 0.1], [], [0.9], [0.1, 0.5]]
    rows = [
        row(i) if q is None else row(i, output_mode="quantiles", quantile_levels=q)
        for i, q in enumerate(asked)
    ]

    for levels, one, answer in zip(asked, rows, backend.batch_predict(rows), strict=True):
        (alone,) = backend.batch_predict([one])
        assert answer.mean == pytest.approx(alone.mean, rel=1e-4)
        if levels is None:
            assert answer.quantiles is None
            continue
        assert [*answer.quantiles] == [*map(str, levels)]
        for level, values in answer.quantiles.items():
            assert values == pytest.approx(alone.quantiles[level], rel=1e-4)


def test_the_paths_of_t5_are_the_librarys(backends):
    import torch

    backend = backends["t5"]
    asked = row(0, output_mode="samples", num_samples=6)

    (answer,) = backend.batch_predict([asked])

    import hashlib

    seed = int.from_bytes(hashlib.sha256(asked.request_id.bytes).digest()[:6], "big")
    torch.manual_seed(seed)
    drawn = backend._pipeline.predict(
        torch.tensor(asked.history), prediction_length=4, num_samples=6
    )[0]
    assert np.array(answer.samples) == pytest.approx(drawn.numpy(), rel=1e-5)
    assert answer.mean == pytest.approx(drawn.mean(0).tolist(), rel=1e-5)


def test_the_paths_of_t5_are_a_rows_own_whatever_its_mates(backends):
    import torch

    backend = backends["t5"]
    alone = row(0, output_mode="samples", num_samples=6, horizon=70)  # more than one pass
    mates = [row(i, output_mode="samples", num_samples=6, horizon=70) for i in (3, 1, 2)]
    torch.manual_seed(5)

    by_itself = backend.predict(alone)
    first, *_, last = backend.batch_predict([alone, *mates, alone])

    assert first.samples == last.samples
    assert np.array(first.samples) == pytest.approx(np.array(by_itself.samples), rel=1e-5)
    assert "generate" not in vars(backend._pipeline.model.model)


@pytest.mark.parametrize(
    "bad", [float("inf"), float("-inf"), 1e39, -1e300], ids=["inf", "-inf", "1e39", "-1e300"]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_value_that_is_no_float32_fails_its_row_by_its_place(family, bad, backends):
    poisoned = row(1, history=[1.0, 2.0, bad, 4.0])
    with pytest.raises(ValueError, match=rf"{UUID(int=2)}: 'history' is infinite.* at step 2"):
        backends[family].batch_predict([row(0), poisoned, row(2)])


@pytest.mark.parametrize("history", [[1e30] * 20, [1e19, -1e20, 3e19] * 9], ids=["size", "spread"])
@pytest.mark.parametrize("family", ["bolt", "chronos2"])
def test_values_whose_variance_is_beyond_float32_fail_their_row(family, history, backends):
    with pytest.raises(ValueError, match=rf"{UUID(int=2)}: the values of 'history' are too large"):
        backends[family].batch_predict([row(0), row(1, history=history)])


@pytest.mark.parametrize("family", ["bolt", "chronos2"])
def test_a_large_constant_is_continued(family, backends):
    answer = backends[family].predict(row(0, history=[1e20] * 20))
    assert answer.mean == pytest.approx([1e20] * 4, rel=1e-4)


def test_an_infinite_covariate_fails_its_row_where_covariates_are_seen(backends):
    poisoned = row(1, history=[[1.0, 2.0], [2.0, float("inf")], [3.0, 1.0]])
    with pytest.raises(ValueError, match=rf"{UUID(int=2)}: 'history' is infinite.* at step 1"):
        backends["chronos2"].batch_predict([row(0), poisoned])
    _, answer = backends["bolt"].batch_predict([row(0), poisoned])
    assert np.isfinite(answer.mean).all()


@pytest.mark.parametrize("family", ["bolt", "chronos2"])
@pytest.mark.parametrize(
    "mate",
    [[3e38, -3e38, 3e38, 1.0] * 5, [1e-40] * 9, [None, 5.0, None], [5.0], [0.0] * 200],
    ids=["huge", "tiny", "holes", "one", "longest"],
)
def test_a_strange_mate_changes_no_other_answer(family, mate, backends):
    backend = backends[family]
    rows = [row(i) for i in range(40)]
    rows[20] = row(20, history=mate)
    rest = [r for i, r in enumerate(rows) if i != 20]

    try:
        answers = [*backend.batch_predict(rows)]
    except ValueError as e:  # the row's own error, which leaves the others to another call
        assert str(rows[20].request_id) in str(e)  # noqa: PT017
        answers = backend.batch_predict(rest)
    else:
        answers.pop(20)

    for asked, answer in zip(rest[::6], answers[::6], strict=True):
        assert answer.mean == pytest.approx(backend.predict(asked).mean, rel=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_null_is_a_missing_value(family, backends):
    history = row(0).history
    nulls = row(0, history=[*history[:5], None, *history[6:]])
    nans = row(0, history=[*history[:5], float("nan"), *history[6:]])

    assert backends[family].predict(nulls).mean == backends[family].predict(nans).mean
    with pytest.raises(ValueError, match="no value to forecast from"):
        backends[family].predict(row(0, history=[None, None]))
    with pytest.raises(ValueError, match="no value to forecast from in the last 64 steps"):
        backends[family].predict(row(0, history=[*history, *[None] * 64]))


def test_a_missing_covariate_is_read(backends):
    history = [[float(t % 5), None if t % 4 else t * 0.5] for t in range(30)]
    assert np.isfinite(backends["chronos2"].predict(row(0, history=history)).mean).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_answered_otherwise_than_asked_is_noted(family, backends):
    two = [[float(t % 5), 1.0] for t in range(30)]
    long, variates, tails, samples, lost = backends[family].batch_predict(
        [
            row(0, history=[float(t % 7) for t in range(65)]),
            row(1, history=two),
            row(2, output_mode="quantiles", quantile_levels=[0.05, 0.5]),
            row(3, output_mode="samples"),
            row(4, target_index=1),
        ]
    )

    assert deviations_of(long) == ("truncated",)
    assert deviations_of(variates) == (() if family == "chronos2" else ("ignored_field",))
    clipped = () if family == "t5" else ("clipped",)
    assert deviations_of(lost) == ("ignored_field",)
    assert deviations_of(tails) == deviations_of(samples) == clipped
