"""How many rows of a file may fail before that file is given up."""

from __future__ import annotations

import math

import pytest

import sheaf_dagster as sd
from sheaf_dagster import BatchRunner
from sheaf_dagster.batch.spec import BatchOptions
from sheaf_dagster.batch.tolerance import most_error_rows
from tests.batch.jobs import here_and_in_workers, leftovers, spec
from tests.conftest import read_rows
from tests.toys import Doubler, NumberRequest, NumberResponse, doubler


@pytest.mark.parametrize(
    ("rows", "fraction", "rows_allowed", "most"),
    [
        (100, None, None, math.inf),
        (100, None, 7, 7),
        (100, 0.29, None, 29),  # 28.999999999999996 in floating point
        (99, 0.29, None, 28),
        (3, 0.01, None, 0),
        (100, 0.05, 7, 5),
        (100, 0.5, 7, 7),
        (100, None, 0, 0),
        (100, 0.0, 7, 0),
        (10**9, 0.29, None, 290_000_000),
        (10, 0.9999999999, None, 9),
    ],
)
def test_the_smaller_of_both_limits_holds(rows, fraction, rows_allowed, most):
    options = BatchOptions(
        on_error="record", max_error_rows=rows_allowed, max_error_fraction=fraction
    )
    assert most_error_rows(options, rows) == most


@pytest.mark.parametrize("limit", [{"max_error_rows": 3}, {"max_error_fraction": 0.1}])
def test_a_limit_needs_rows_that_may_fail(limit):
    with pytest.raises(ValueError, match="needs on_error='record'"):
        BatchOptions(**limit)


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_past_the_limit_the_first_rows_are_named_and_a_rerun_goes_on(write_rows, tmp_path, suffix):
    source = tmp_path / "in.jsonl"
    text = open(write_rows(list(range(1, 4001)))).read()
    source.write_text("\n\n" + text)  # so that lines and rows are numbered apart
    calls = tmp_path / "calls"
    model = doubler(fail_every=1000, call_log=str(calls))
    job = spec(
        source, tmp_path, batch_size=500, compute="local", on_error="record", max_error_rows=4
    )
    job = job.model_copy(update={"sink": job.sink + suffix})
    at_most = BatchRunner(model).run(job)
    whole = open(job.sink, "rb").read()
    assert at_most.error_rows == 4

    tight = job.model_copy(update={"sink": str(tmp_path / "out" / f"b.jsonl{suffix}")})
    tight = tight.model_copy(update={"max_error_rows": 3})
    for _ in range(2):  # from its own rows, and from the parts of the run before
        with pytest.raises(sd.TooManyErrorsError) as caught:
            BatchRunner(model).run(tight)
        assert "4 of the 4,000 rows run so far have failed; max_error_rows=3 allows 3" in str(
            caught.value
        )
        assert f"{source}, line 1002: ValueError: cannot double this" in str(caught.value)
        assert f"{source}, line 3002: " in str(caught.value)
        assert "line 4002" not in str(caught.value)
        assert f"b.jsonl{suffix}" not in leftovers(tmp_path)
    before = calls.read_text()

    more = tight.model_copy(update={"max_error_rows": 4})
    result = BatchRunner(model).run(more)

    assert result.resumed_rows == 4000
    assert calls.read_text() == before
    assert open(more.sink, "rb").read() == whole
    assert leftovers(tmp_path) == sorted([f"b.jsonl{suffix}", f"out.jsonl{suffix}"])


@here_and_in_workers
def test_a_file_past_the_limit_ends_alone(mode, write_rows, tmp_path):
    jobs = [
        spec(write_rows(values, f"{name}.jsonl"), tmp_path, batch_size=4, **mode).model_copy(
            update={
                "sink": str(tmp_path / f"{name}.out.jsonl"),
                "on_error": "record",
                "max_error_fraction": 0.25,
            }
        )
        for name, values in (("bad", [7, 1, 7, 2, 7, 3, 7, 4]), ("good", [7, 1, 2, 3, 4]))
    ]
    outcomes = list(BatchRunner(doubler(fail_every=7)).run_many(jobs))

    by_name = {o.spec.sink.rpartition("/")[2]: o for o in outcomes}
    assert isinstance(by_name["bad.out.jsonl"].error, sd.TooManyErrorsError)
    assert "bad.jsonl, line 1: ValueError" in str(by_name["bad.out.jsonl"].error)
    good = by_name["good.out.jsonl"]
    assert good.error is None and good.result.error_rows == 1
    assert [r.get("value") for r in read_rows(good.spec.sink)] == [None, 2, 4, 6, 8]


class Note(NumberRequest):
    """A request whose error rows have a form of their own."""

    model_type: str = "noted"

    def error_record(self, error: BaseException) -> dict:
        return {"error": f"no: {error}"} if self.value < 10 else {"why": str(error)}


class NotedDoubler(Doubler):
    model_type = "noted"


@pytest.mark.parametrize(("value", "first"), [(7, "The first: "), (14, None)])
def test_error_rows_of_any_form_are_shown_as_they_can_be(write_rows, tmp_path, value, first):
    sd.register_contract("noted", Note, NumberResponse)
    sd.register_backend("noted_doubler")(NotedDoubler)
    source = write_rows([1, value, 2], model_type="noted")
    model = sd.ModelSpec(
        name="m", model_type="noted", backend="noted_doubler", backend_kwargs={"fail_every": 7}
    )
    job = spec(source, tmp_path, compute="local", on_error="record", max_error_fraction=0.1)

    with pytest.raises(sd.TooManyErrorsError, match="1 of the 3 rows") as caught:
        BatchRunner(model).run(job)

    assert ("line 2: no: cannot double this" in str(caught.value)) == (first is not None)
    assert ("The first" in str(caught.value)) == (first is not None)
