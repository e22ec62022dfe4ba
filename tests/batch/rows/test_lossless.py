"""Lines of which reading loses something are counted or refused, and no others."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, ValidationError

from sheaf_dagster.batch.rows.lossless import lost_in
from sheaf_dagster.batch.rows.requests import RowContract
from sheaf_dagster.contracts import contract_for


class Anything(BaseModel):
    """Takes every row, and keeps nothing of it."""


class Measured(BaseModel):
    weight: float = Field(default=0.0, alias="w")
    by_day: dict[str, float | None] = {}
    pairs: list[tuple[float, str]] = []
    parts: list[Measured] = []


SERIES = '{"model_name":"m","history":[1,2],"horizon":%s,"frequency":"1d"}'
FEATURES = '{"model_name":"m","features":{"a":%s}}'
CHAT = (
    '{"custom_id":"1","method":"POST","url":"/v1/chat/completions",'
    '"body":{"model":"m","messages":[{"role":"user","content":"hi"},{"role":"user",%s}]}}'
)


def findings(model_type: str, line: str, **options):
    contract = replace(RowContract.of(contract_for(model_type)), **options)
    return contract.validate(f"{line}\n".encode(), 1)


@pytest.mark.parametrize(
    ("model_type", "line", "field"),
    [
        ("time_series", SERIES % '3,"horizon":4', "horizon"),
        ("time_series", SERIES % '3,"horizon":3', "horizon"),
        ("time_series", SERIES % '3 , "horizon" : 4', "horizon"),
        ("time_series", SERIES % '3,"\\u0068orizon":4', "horizon"),
        ("time_series", SERIES % '3,"more":1,"more":2', "more"),
        ("features", FEATURES % '1,"a":2', "a"),
        ("features", FEATURES % '{"b":1,"b":2}', "b"),
        ("features", FEATURES % '[1,{"b":1,"b":2}]', "b"),
        ("features", FEATURES % 'NaN,"a":2', "a"),
        ("openai_batch", CHAT % '"content":"hi","content":"ho"', "content"),
    ],
)
def test_a_field_that_stands_twice_is_counted_and_refused_where_rows_are_strict(
    model_type, line, field
):
    lenient, strict = (findings(model_type, line, strict=strict) for strict in (False, True))

    counted = f"{field} (repeated)"
    assert not lenient.violations
    assert lenient.unknown_fields[counted] == 1
    if field in contract_for(model_type).request.model_fields:
        assert lenient.unknown_fields.keys() == {counted}
        (found,) = strict.violations
        assert (found.line, found.field) == (1, field)
        assert "appears more than once" in found.message
    else:
        assert strict.invalid_rows


@pytest.mark.parametrize("text", ["1e400", "-1e400", "inf", "Infinity", " -inf ", "nan", "NaN", "1_0e9_99", "9" * 400])  # fmt: skip
@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"w": "*"}, "w"),
        ({"by_day": {"a": None, "b": "*"}}, "by_day.b"),
        ({"pairs": [[1, "inf"], ["*", "a"]]}, "pairs.1.0"),
        ({"parts": [{"w": 1}, {"parts": [{"w": "*"}]}]}, "parts.1.parts.0.w"),
    ],
)
def test_a_text_that_reads_as_no_finite_number_is_refused_with_its_place(row, field, text):
    line = json.dumps(row).replace("*", text)
    contract = RowContract("measured", Measured)
    try:
        Measured.model_validate_json(line)
    except ValidationError:  # not every such text is a number to pydantic
        return

    (found,) = contract.validate(line.encode(), 1).violations

    assert found.field == field
    assert text.strip().startswith(found.excerpt.rstrip("…"))
    assert "is text that doesn't read as a finite number" in found.message


@pytest.mark.parametrize(
    ("model_type", "line", "field"),
    [
        ("time_series", SERIES.replace("[1,2]", '[1,"1e999"]') % "3", "history.1"),
        ("time_series", SERIES % '3,"quantile_levels":[0.1,"nan"]', "quantile_levels.1"),
        ("text", '{"model_name":"m","text":"1e999","temperature":"inf"}', "temperature"),
        (
            "tabular",
            '{"model_name":"m","context_X":[[1]],"context_y":[1],"query_X":[["inf"]]}',
            "query_X.0.0",
        ),
    ],
)
def test_such_a_text_in_a_row_of_a_built_in_contract_is_refused(model_type, line, field):
    assert [v.field for v in findings(model_type, line).violations] == [field]


def test_a_text_of_a_field_of_texts_may_read_as_any_number():
    line = '{"model_name":"m","features":{"a":"inf","b":"1e999"}}'

    assert not findings("features", line).violations
    assert not findings("text", '{"model_name":"m","text":"1e999"}').violations


def test_the_name_of_a_repeated_field_is_left_out_where_rows_are_redacted():
    found = findings("features", FEATURES % '1,"a":2', redact=True)

    assert found.unknown_fields == {"… (repeated)": 1}


@pytest.mark.parametrize("number", ["1e400", "-1E+400", "1" + 400 * "0", "1" + 400 * "0" + ".5"])
@pytest.mark.parametrize(
    ("model_type", "line"),
    [
        ("time_series", '{"model_name":"m","history":[1,%s],"horizon":1,"frequency":"1d"}'),
        ("features", FEATURES),
        ("tensors", '{"model_name":"m","inputs":{"x":[[1,%s]]}}'),
        ("tabular", '{"model_name":"m","context_X":[[%s]],"context_y":[1],"query_X":[[1]]}'),
    ],
)
def test_a_number_that_would_be_read_as_infinity_is_refused(model_type, line, number):
    (found,) = findings(model_type, line % number).violations

    assert "beyond the range of a float" in found.message
    assert number[:20] in found.excerpt
    (quiet,) = findings(model_type, line % number, redact=True).violations
    assert not quiet.excerpt


@pytest.mark.parametrize(
    ("model_type", "line"),
    [
        ("time_series", SERIES % "3"),
        ("time_series", SERIES.replace(":", " : ") % "3"),
        ("time_series", SERIES % '3,"more":1'),
        ("features", FEATURES % "NaN"),
        ("features", FEATURES % "123456789012345678901234567890"),
        ("features", FEATURES % "1e308"),
        ("features", FEATURES % '"1e400"'),
        ("features", FEATURES % '{"a":{"a":1}}'),
        ("text", json.dumps({"model_name": "m", "text": 'say {"a": 1, "a": 1e999}'})),
        ("openai_batch", CHAT % '"content":"hi"'),
    ],
)
def test_what_is_read_whole_is_accepted(model_type, line):
    found = findings(model_type, line)

    assert not found.violations
    assert found.unknown_fields.keys() <= {"more"}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=3), json_values, max_size=4), st.sampled_from([":", " : "]))
def test_nothing_that_json_writes_is_lost(row, colon):
    assert not lost_in(json.dumps(row, separators=(",", colon)).encode(), Anything())
