"""Contracts and rows that the fast codec leaves to pydantic."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Optional, Union
from uuid import UUID

import pytest
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from sheaf_dagster import BaseRequest
from sheaf_dagster.batch.rows.fast import fast_codec
from sheaf_dagster.batch.rows.requests import RowContract
from sheaf_dagster.contracts import TimeSeriesRequest
from sheaf_dagster.storage import split_rows
from tests.batch.rows.contracts import GOOD, Checked, Colour, Everything, line_of


class Aliased(BaseRequest):
    value: float = Field(alias="Value")


class Keeps(BaseRequest):
    model_config = ConfigDict(extra="allow")


class Strips(BaseRequest):
    model_config = ConfigDict(str_strip_whitespace=True)


class Private(BaseRequest):
    _seen: int = PrivateAttr(default=0)


class Late(BaseRequest):
    def model_post_init(self, context: Any, /) -> None:
        self.model_name = self.model_name.upper()


class Before(BaseRequest):
    @model_validator(mode="before")
    @classmethod
    def _rename(cls, values: Any) -> Any:
        return values


class WithDate(BaseRequest):
    when: datetime


class Half(BaseRequest):
    value: Annotated[float, BeforeValidator(lambda v: float(v) / 2)]


class Even(BaseRequest):
    value: int

    @field_validator("value")
    @classmethod
    def _even(cls, value: int) -> int:
        return value - value % 2


class Told(BaseRequest):
    value: int

    @model_validator(mode="after")
    def _told(self, info: Any) -> Told:
        return self


class BothBounds(BaseRequest):
    value: int = Field(gt=0, ge=1)


class Either(BaseRequest):
    value: Union[UUID, str]  # noqa: UP007


class Leftmost(BaseRequest):
    value: Optional[Annotated[Union[float, int], Field(union_mode="left_to_right")]] = None  # noqa: UP007, UP045


@pytest.mark.parametrize(
    "contract",
    [Aliased, Keeps, Strips, Private, Late, Before, WithDate, Half, Even, Told, BothBounds, Either],
)
def test_contracts_with_more_than_plain_types_are_pydantics_alone(contract):
    needed = [(name, "1") for name, field in contract.model_fields.items() if field.is_required()]
    line = line_of([*needed, ("model_type", '"a"'), ("model_name", '"m"')])

    assert fast_codec(contract).fields(line) is None
    assert fast_codec(contract).read(line) is None


def test_a_field_of_another_kind_may_still_be_left_out_or_null():
    fast = fast_codec(Leftmost)

    assert fast.fields(b'{"model_type":"a","model_name":"m"}')
    assert fast.fields(b'{"model_type":"a","model_name":"m","value":null}')
    assert fast.fields(b'{"model_type":"a","model_name":"m","value":1}') is None


def test_a_validator_sees_each_row_of_a_contract_that_has_one():
    fast = fast_codec(Checked)

    assert fast.fields(b'{"model_name":"m","low":0}') is None
    assert fast.read(b'{"model_name":"m","low":0}') is not None
    assert fast.read(b'{"model_name":"m","low":2}') is None


def test_a_validator_of_a_users_own_is_not_passed_over_for_the_one_it_replaces():
    class Mine(TimeSeriesRequest):
        @model_validator(mode="after")
        def _check_input(self) -> Mine:
            raise ValueError("never")

    class Longer(TimeSeriesRequest):
        @model_validator(mode="after")
        def _long_enough(self) -> Longer:
            raise ValueError("never")

    plain = line_of(list(GOOD[TimeSeriesRequest].items()))

    assert fast_codec(TimeSeriesRequest).fields(plain)
    for contract in (Mine, Longer):
        assert fast_codec(contract).fields(plain) is None


def test_a_field_that_a_subclass_narrows_is_checked_as_the_subclass_has_it():
    class Short(TimeSeriesRequest):
        history: list[float] = Field(max_length=2)

    class Same(TimeSeriesRequest):
        colour: Colour = Colour.RED

    plain = b'{"model_name":"m","history":[1,2,3],"horizon":1,"frequency":"1h"}'

    assert fast_codec(Short).fields(plain) is None
    assert fast_codec(Same).fields(plain)
    assert RowContract("time_series", Short).validate(plain + b"\n", 1).total_violations == 1


def rows(contract: type[BaseModel], *lines: bytes) -> tuple[RowContract, bytes]:
    name = str(contract.model_fields["model_type"].default)
    return RowContract(name, contract), b"\n".join([*lines, b""])


def test_rows_that_only_pydantic_takes_are_valid_beside_plain_ones():
    plain = b'{"model_name":"m","whole":1,"number":2}'
    others = [
        b'{"model_name":"m","whole":"1","number":NaN}',
        b'{"model_name":"m","whole":1.0,"number":"2.5","unknown":{"a":[]}}',
    ]
    contract, data = rows(Everything, *[plain] * 3, *others * 20, *[plain] * 3)

    check = contract.validate(data, 1)
    parsed = contract.parse(split_rows(data, 1), 0)

    assert (check.rows, check.total_violations) == (46, 0)
    assert [r.request.whole for r in parsed] == [1] * 46
    assert [r.request.number for r in parsed[:3]] == [2.0] * 3
    assert parsed[4].request.number == 2.5


def test_bad_rows_are_named_among_plain_ones():
    plain = b'{"model_name":"m","whole":1,"number":2}'
    contract, data = rows(
        Everything, *[plain] * 40, b'{"model_name":"m","whole":[],"number":2}', plain
    )

    check = contract.validate(data, 1)

    assert [(v.line, v.field) for v in check.violations] == [(41, "whole")]


def test_a_row_of_another_model_type_is_found_where_the_contract_allows_any():
    class Any_(BaseRequest):  # noqa: N801
        model_type: str = "mine"

    contract, data = rows(Any_, b'{"model_name":"m","model_type":"theirs"}', b'{"model_name":"m"}')

    check = contract.validate(data, 1)

    assert [(v.line, v.field) for v in check.violations] == [(1, "model_type")]


def test_lines_that_nobody_has_checked_are_pydantics_to_judge():
    contract, _ = rows(Everything)
    line = b'{"model_name":"m","whole":1,"number":2,"unknown":"\xff"}'

    with pytest.raises(ValidationError):
        contract.parse([(1, line)], 0, validated=False)
