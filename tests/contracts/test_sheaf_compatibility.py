"""Rows that sheaf-serve 0.13 accepts are accepted here, and the other way round."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError, create_model

from sheaf_dagster import AnyRequest, ModelType, SpecError, UnknownContractError, contracts
from sheaf_dagster.contracts import contract_for, known_model_types, register_contract

sheaf_union = pytest.importorskip("sheaf.api.union", reason="sheaf-serve needs Python 3.11")
sheaf_base = pytest.importorskip("sheaf.api.base")

OURS = TypeAdapter(AnyRequest)
THEIRS = TypeAdapter(sheaf_union.AnyRequest)

number = st.one_of(
    st.integers(-(10**6), 10**6), st.floats(allow_nan=True, width=32), st.just("3"), st.just("x"),
    st.none(), st.booleans(),
)  # fmt: skip
good = st.floats(-1e6, 1e6)
vector = st.one_of(st.lists(good, max_size=5), st.lists(number, max_size=4), st.none())
matrix = st.lists(st.one_of(st.lists(good, min_size=2, max_size=2), vector), max_size=4)
junk = st.one_of(
    number, st.text(max_size=3), vector, st.dictionaries(st.text(max_size=2), number, max_size=2)
)
common = {"model_name": st.one_of(st.just("m"), junk)}
ids = {"request_id": st.one_of(st.uuids().map(str), junk), "surplus": junk}

time_series = st.fixed_dictionaries(
    {"model_type": st.just("time_series"), **common},
    optional={
        **ids,
        "history": st.one_of(vector, matrix),
        "feature_ref": st.one_of(
            st.none(),
            st.just(
                {"feature_view": "a", "feature_name": "b", "entity_key": "c", "entity_value": "d"}
            ),
            junk,
        ),
        "target_index": st.one_of(st.integers(-1, 3), junk),
        "horizon": st.one_of(st.integers(-1, 9), junk),
        "frequency": st.one_of(st.sampled_from(["1d", "1h", "1W", "1M", "5min", "2d"]), junk),
        "output_mode": st.sampled_from(["mean", "quantiles", "samples", "all", 3]),
        "quantile_levels": vector,
        "num_samples": st.one_of(st.integers(-1, 30), junk),
    },
)
tabular = st.fixed_dictionaries(
    {"model_type": st.just("tabular"), **common, "context_X": matrix, "context_y": vector, "query_X": matrix},
    optional={
        **ids,
        "task": st.sampled_from(["classification", "regression", "other"]),
        "output_mode": st.sampled_from(["predictions", "probabilities", "quantiles", 1]),
        "feature_names": st.one_of(st.none(), st.lists(st.text(max_size=2), max_size=2), junk),
        "categorical_feature_indices": vector,
        "quantile_levels": vector,
    },
)  # fmt: skip
embedding = st.fixed_dictionaries(
    {"model_type": st.just("embedding"), **common},
    optional={
        **ids,
        "texts": st.one_of(st.none(), st.lists(st.text(max_size=4), max_size=3), junk),
        "images_b64": st.one_of(st.none(), st.lists(st.sampled_from(["aGk=", "a", "äö", "%%"]), max_size=2)),
        "normalize": junk,
    },
)  # fmt: skip
TABLE = {
    "model_type": "tabular", "model_name": "m", "context_X": [], "context_y": [], "query_X": []
}  # fmt: skip


def parsed(adapter: TypeAdapter, row: dict) -> dict | None:
    try:
        request: BaseModel = adapter.validate_json(json.dumps(row))
    except ValidationError:
        return None
    exclude = set() if "request_id" in row else {"request_id"}
    dumped = request.model_dump(mode="json", exclude=exclude)
    if dumped.get("image_uris") is None:  # ours alone; rows of theirs don't have it
        dumped.pop("image_uris", None)
    return dumped


def without_gaps(row: dict) -> dict:
    """A row whose missing features are zeros: ours alone takes a missing one."""
    tables = {n: row[n] for n in ("context_X", "query_X") if n in row}
    filled = {
        name: [[0.0 if v is None else v for v in r] if isinstance(r, list) else r for r in table]
        for name, table in tables.items()
    }
    return {**row, **filled}


@settings(max_examples=600)
@example(dict(TABLE, query_X=[[None]]))
@example(dict(TABLE, context_X=[[1.0], [None]], context_y=[0, 1], query_X=[[2.0]]))
@given(st.one_of(time_series, tabular, embedding))
def test_both_accept_the_same_rows_with_the_same_values(row):
    filled = without_gaps(row)
    ours, theirs = parsed(OURS, filled), parsed(THEIRS, filled)
    assert repr(ours) == repr(theirs)
    if filled != row:
        assert parsed(THEIRS, row) is None
        assert (parsed(OURS, row) is None) == (ours is None)


def test_model_types_are_the_same():
    assert {m.name: m.value for m in ModelType} == {m.name: m.value for m in sheaf_base.ModelType}


@pytest.mark.parametrize("name", ["TimeSeries", "Tabular", "Embedding"])
def test_responses_have_the_same_fields(name):
    ours = getattr(contracts, f"{name}Response")
    module = __import__(f"sheaf.api.{ours.model_fields['model_type'].default}", fromlist=["x"])
    theirs = getattr(module, f"{name}Response")
    assert ours.model_json_schema()["required"] == theirs.model_json_schema()["required"]
    assert set(ours.model_fields) == set(theirs.model_fields)


def test_an_unknown_model_type_lists_the_known_ones():
    with pytest.raises(UnknownContractError, match=r"'horoscope'.*embedding.*time_series"):
        contract_for("horoscope")
    assert "tabular" in known_model_types()


def test_a_contract_must_be_pydantic_and_have_a_free_name():
    with pytest.raises(SpecError, match="must be a pydantic model"):
        register_contract("thing", dict, dict)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="already has a contract"):
        register_contract("tabular", contracts.EmbeddingRequest, contracts.EmbeddingResponse)


@pytest.mark.parametrize(
    "request_type",
    [
        contracts.TextRequest,
        create_model("Ask", __base__=contracts.BaseRequest, model_type=(str, "text")),
    ],
)
def test_a_contract_whose_rows_would_all_be_refused_is_refused_itself(request_type):
    with pytest.raises(SpecError, match=r"'mine'.*its 'model_type' is 'text'"):
        register_contract("mine", request_type, contracts.TextResponse)
