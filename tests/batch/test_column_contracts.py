"""Contracts of all kinds, of models that take and give columns."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import pytest
from pydantic import BaseModel, ConfigDict, Field, computed_field, model_validator

import sheaf_dagster as sd
from sheaf_dagster import BaseRequest, BaseResponse, ResponseColumns, request_column
from tests.batch.column_jobs import FORMATS, Doubler, assert_same, messages, numbers, source


class CaseRequest(BaseRequest):
    model_type: Literal["case"] = "case"
    value: float
    group: int = 0
    note: str | None = None


class CaseResponse(BaseResponse):
    model_type: Literal["case"] = "case"
    value: float


class Bounded(CaseResponse):
    value: float = Field(ge=10)


class Short(CaseResponse):
    vector: Annotated[list[float], Field(max_length=2)]


class Validated(CaseResponse):
    @model_validator(mode="after")
    def _round(self) -> Validated:
        if self.value == 12.0:
            raise ValueError("a dozen")
        self.value = float(round(self.value / 3))
        return self


class Open(CaseResponse):
    model_config = ConfigDict(extra="allow")


class Aliased(CaseResponse):
    value: float = Field(alias="amount")


class WrittenAs(CaseResponse):
    value: float = Field(serialization_alias="amount")


class Computed(CaseResponse):
    @computed_field
    def half(self) -> float:
        return self.value / 2


class Marked(CaseResponse):
    """Deviates by itself."""

    metadata: dict[str, Any] = Field(default_factory=lambda: {"deviations": ["clipped"]})


class Counted(CaseResponse):
    def token_usage(self) -> dict[str, int]:
        return {"prompt_tokens": int(self.value), "completion_tokens": 1}


class Anonymous(BaseModel):
    value: float


class Nested(CaseResponse):
    best: Anonymous
    texts: list[str]


class WithMore(CaseResponse):
    score: float


class Text(CaseResponse):
    text: str


class Whole(CaseResponse):
    whole: int


def deviations(values: list[float]) -> list[dict[str, Any]]:
    return [{"deviations": ["fell_back"]} if v % 2 else {"n": v} for v in values]


RESPONSES = {
    "bounded": (Bounded, lambda v: {"value": v}),
    "short": (Short, lambda v: {"value": v, "vector": [[x] * (3 if x == 12 else 2) for x in v]}),
    "validated": (Validated, lambda v: {"value": v}),
    "open": (Open, lambda v: {"value": v, "more": [str(x) for x in v]}),
    "aliased": (Aliased, lambda v: {"value": v}),
    "written as": (WrittenAs, lambda v: {"value": v}),
    "computed": (Computed, lambda v: {"value": v}),
    "deviations": (CaseResponse, lambda v: {"value": v, "metadata": deviations(v)}),
    "one for all": (CaseResponse, lambda v: {"value": v, "metadata": {"deviations": ["clipped"]}}),
    "marked": (Marked, lambda v: {"value": v}),
    "counted": (Counted, lambda v: {"value": v}),
    "anonymous": (Anonymous, lambda v: {"value": v}),
    "nested": (
        Nested,
        lambda v: {"value": v, "best": [{"value": x} for x in v], "texts": [["a"]] * len(v)},
    ),
    "more": (WithMore, lambda v: {"value": v, "score": v}),
    "half a surrogate": (
        Text,
        lambda v: {"value": v, "text": ["\ud800" if x == 12 else "a" for x in v]},
    ),
    "beyond 64 bits": (
        Whole,
        lambda v: {"value": v, "whole": [2**70 if x == 12 else 1 for x in v]},
    ),
}


class Case(Doubler):
    """Answers as one of ``RESPONSES``."""

    model_type = "case"

    def __init__(self, name: str = "") -> None:
        super().__init__()
        self.response, self.columns = RESPONSES[name]

    def in_columns(self, requests):
        columns = self.columns(request_column(requests, "value").tolist())
        if len({*map(len, columns.get("vector", ()))}) < 2:
            columns |= {n: np.array(v) for n, v in columns.items() if n in ("value", "vector")}
        return ResponseColumns(self.response, requests, columns)

    def in_lists(self, requests):
        answers = []
        for i, r in enumerate(requests):
            columns = self.columns([r.value for r in requests])
            row = {
                name: getattr(r, name)
                for name in ("request_id", "model_name")
                if name in self.response.model_fields
            }
            row |= {n: v[i] if isinstance(v, list) else v for n, v in columns.items()}
            if self.response is Aliased:
                row["amount"] = row.pop("value")
            answers.append(self.response(**row))
        return answers


class CaseInLists(Case):
    takes_columns = False
    lists = True


@pytest.mark.parametrize("sink", FORMATS)
@pytest.mark.parametrize("name", RESPONSES)
@pytest.mark.usefixtures("own_contracts")
def test_responses_of_any_kind_are_the_same(name, sink, tmp_path):
    sd.register_contract("case", CaseRequest, RESPONSES[name][0])
    path = source(tmp_path, "parquet", numbers(30))
    classes = (Case, CaseInLists)

    result = assert_same(classes, path, tmp_path / f"out.{sink}", {"name": name}, on_error="record")

    fails = {"bounded": 10, "short": 1, "validated": 1, "half a surrogate": 1}
    if sink == "parquet":
        fails["beyond 64 bits"] = 1
    assert result.error_rows == fails.get(name, 0)
    if result.error_rows:
        one, other = messages(classes, path, tmp_path / f"bad.{sink}", model={"name": name})
        assert one == other
    assert result.deviations == {
        "deviations": {"fell_back": 15},
        "one for all": {"clipped": 30},
        "marked": {"clipped": 30},
    }.get(name, {})


class Changing(CaseRequest):
    """Its rows aren't what their columns are."""

    @model_validator(mode="after")
    def _round(self) -> Changing:
        self.value = float(round(self.value / 3))
        return self


class Placed(CaseRequest):
    def placed(self, occurrence: int) -> None:
        self.value += 100 * occurrence


class AliasedRequest(CaseRequest):
    value: float = Field(alias="value", validation_alias="group")


class Strict(CaseRequest):
    model_config = ConfigDict(extra="forbid")
    shop: str


class Cased(BaseModel):
    """Has no id."""

    value: float
    group: int


@pytest.mark.parametrize("sink", FORMATS)
@pytest.mark.parametrize("contract", [Changing, Placed, AliasedRequest, Strict, Cased])
@pytest.mark.usefixtures("own_contracts")
def test_requests_of_any_kind_are_the_same(contract, sink, tmp_path):
    response = Anonymous if contract is Cased else CaseResponse
    sd.register_contract("case", contract, response)
    rows = {**numbers(30), "value": [float(i // 2) for i in range(30)]}
    name = "anonymous" if contract is Cased else "deviations"

    assert_same(
        (Case, CaseInLists),
        source(tmp_path, "parquet", rows),
        tmp_path / f"out.{sink}",
        {"name": name},
        keep=["shop"],
    )


@pytest.mark.usefixtures("own_contracts")
def test_a_field_for_which_there_is_no_column_is_refused_as_in_a_list(tmp_path):
    sd.register_contract("case", CaseRequest, CaseResponse)
    path, model = source(tmp_path, "parquet", numbers(30)), {"name": "more"}
    classes = (Case, CaseInLists)

    one, other = messages(classes, path, tmp_path / "bad.parquet", model=model)

    assert one == other
    assert "field 'score' is not a field of the contract" in one
    assert_same(classes, path, tmp_path / "out.jsonl", model)
