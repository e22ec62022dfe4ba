"""Fields that a contract doesn't know: counted and named, or refused."""

from __future__ import annotations

import json
import logging

import pytest
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

import sheaf_dagster as sd
from sheaf_dagster import BatchRunner
from sheaf_dagster.batch.rows.requests import RowContract
from sheaf_dagster.contracts import Contract, contract_for
from tests.batch.jobs import here_and_in_workers, leftovers, spec
from tests.conftest import read_rows
from tests.toys import doubler


class Item(BaseModel):
    sku: str
    note: str | None = None


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    a: int = 0


class Order(BaseModel):
    customer: str = Field(validation_alias=AliasChoices("customer", "client"))
    items: list[Item] = []
    first: Item | None = None
    by_shop: dict[str, Item] = {}
    free: Open | None = None

    @model_validator(mode="before")
    @classmethod
    def _old_name(cls, data):
        data = dict(data)
        if "things" in data:
            data["items"] = data.pop("things")
        return data


def checked(request: type[BaseModel], *rows: dict, **how) -> object:
    contract = RowContract(Contract("order", request, BaseModel).model_type, request, **how)
    return contract.validate(b"".join(json.dumps(r).encode() + b"\n" for r in rows), 1)


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ({"customer": "x"}, []),
        ({"client": "x", "things": [{"sku": "1"}]}, []),
        ({"customer": "x", "free": {"anything": 1}}, []),
        ({"customer": "x", "costumer": "y"}, ["costumer"]),
        ({"customer": "x", "items": [{"sku": "1"}, {"sku": "2", "nota": 3}]}, ["items.*.nota"]),
        ({"customer": "x", "first": {"sku": "1", "x": 1, "y": 2}}, ["first.x", "first.y"]),
        ({"customer": "x", "by_shop": {"a": {"sku": "1", "q": 1}}}, ["by_shop.*.q"]),
    ],
)
def test_unknown_fields_are_found_at_any_depth_by_the_contracts_own_reading(row, names):
    check = checked(Order, row, row)

    assert check.unknown_fields == dict.fromkeys(names, 2)
    assert check.invalid_rows == 0


def test_strict_names_line_and_field_and_what_was_probably_meant():
    check = checked(
        Order,
        {"customer": "x"},
        {"customer": "x", "items": [{"sku": "1", "nota": 3}], "cusomer": 1},
        strict=True,
    )

    assert [(v.line, v.field, v.message) for v in check.violations] == [
        (
            2,
            "cusomer",
            "is not a field of Order, and strict=True refuses it; did you mean 'customer'?",
        ),
        (
            2,
            "items.0.nota",
            "is not a field of Item, and strict=True refuses it; did you mean 'note'?",
        ),
    ]
    assert (check.invalid_rows, check.total_violations) == (1, 2)


@pytest.mark.parametrize("extra", ["allow", "forbid"])
def test_a_contract_that_says_what_becomes_of_them_is_not_concerned(extra):
    class Own(BaseModel):
        model_config = ConfigDict(extra=extra)
        a: int

    check = checked(Own, {"a": 1, "b": 2}, strict=True)

    assert check.unknown_fields == {}
    assert [v.message for v in check.violations] == (
        [] if extra == "allow" else ["Extra inputs are not permitted"]
    )


def test_names_are_bounded_and_hidden_where_rows_are_redacted():
    rows = [{"customer": "x", f"f{i}": 1} for i in range(150)]

    plain, redacted = checked(Order, *rows), checked(Order, *rows, redact=True, strict=True)

    assert len(plain.unknown_fields) == 101
    assert plain.unknown_fields["…"] == 50
    assert redacted.unknown_fields == {"…": 150}
    assert {v.field for v in redacted.violations} == {"…"}


def test_a_contract_that_reads_only_its_own_way_stays_as_it_is():
    class Picky(BaseModel):
        a: int

        @model_validator(mode="after")
        def _no_more_than_its_fields(self):
            assert not self.__pydantic_extra__, "more than its fields"
            return self

    check = checked(Picky, {"a": 1, "b": 2})

    assert check.invalid_rows == 0


BUILT_IN = {
    "time_series": {"history": [1, 2, 3], "horizon": 2, "frequency": "1d"},
    "tabular": {"context_X": [[1, 2]], "context_y": [1], "query_X": [[3, 4]]},
    "embedding": {"texts": ["hello"]},
    "features": {"features": {"a": 1}},
    "tensors": {"inputs": {"x": [1.0]}},
    "text": {"text": "hello"},
}


@pytest.mark.parametrize("model_type", BUILT_IN)
def test_a_misspelt_field_of_a_built_in_contract_is_found(model_type):
    row = {"model_type": model_type, "model_name": "m", **BUILT_IN[model_type]}
    contract = RowContract.of(contract_for(model_type))

    good, bad = (
        contract.validate(json.dumps(r).encode(), 1) for r in (row, {**row, "modelname": 1})
    )

    assert (good.invalid_rows, good.unknown_fields) == (0, {})
    assert (bad.invalid_rows, bad.unknown_fields) == (0, {"modelname": 1})


@here_and_in_workers
def test_a_job_counts_them_warns_once_and_answers(write_rows, tmp_path, caplog, mode):
    source = write_rows([1, 2, 3], nota="x")

    with caplog.at_level(logging.WARNING, "sheaf_dagster"):
        result = BatchRunner(doubler()).run(spec(source, tmp_path, **mode))

    assert result.validation.unknown_fields == {"nota": 3}
    assert [r["value"] for r in read_rows(result.sink)] == [2, 4, 6]
    (said,) = [r.getMessage() for r in caplog.records if "nota" in r.getMessage()]
    assert "'nota' (3 rows, did you mean 'note'?)" in said
    assert "strict=True" in said


@here_and_in_workers
def test_a_strict_job_refuses_them_and_writes_nothing(write_rows, tmp_path, mode):
    source = write_rows([1, 2, 3], nota="x")
    job = spec(source, tmp_path, strict=True, **mode)

    with pytest.raises(
        sd.InputValidationError, match="line 1, field 'nota': is not a field of Num"
    ):
        BatchRunner(doubler()).run(job)
    report = BatchRunner(doubler()).validate(job)

    assert (report.invalid_rows, report.unknown_fields) == (3, {"nota": 3})
    assert leftovers(tmp_path) == []
