"""Contracts of many kinds of fields, and a good line of each."""

from __future__ import annotations

import json
from datetime import datetime
from enum import Enum, IntEnum
from typing import Any, Literal
from uuid import UUID

from pydantic import (
    Field,
    model_validator,
)

from sheaf_dagster import BaseRequest
from sheaf_dagster.contracts import TabularRequest, TextRequest, TimeSeriesRequest


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Everything(BaseRequest):
    """A field of each kind that the short cut knows, and some that it doesn't."""

    model_type: Literal["everything"] = "everything"
    whole: int
    number: float
    share: float = Field(default=0.5, ge=0, lt=1)
    small: int = Field(default=1, gt=-5, le=5)
    word: str = "none"
    short: str = Field(default="ab", min_length=2, max_length=3)
    yes: bool = True
    colour: Colour = Colour.RED
    level: Level | None = None
    kind: Literal["a", "b"] = "a"
    digit: Literal[1, 2] = 1
    either: int | float = 0
    label: str | float | bool | None = None
    numbers: list[float] = []  # noqa: RUF012  (pydantic copies it)
    few: list[int] = Field(default_factory=list, max_length=2)
    table: dict[str, list[float]] = Field(default_factory=dict)
    nested: list[float] | list[list[float]] | None = None
    id: UUID | None = None
    when: datetime | None = None
    anything: Any = None


class Checked(BaseRequest):
    """Its validator must see each row."""

    model_type: Literal["checked"] = "checked"
    low: float
    high: float = 1.0

    @model_validator(mode="after")
    def _in_order(self) -> Checked:
        if self.low > self.high:
            raise ValueError("low is above high")
        return self


CONTRACTS = (Everything, Checked, TimeSeriesRequest, TabularRequest, TextRequest)
GOOD = {
    Everything: {"whole": "3", "number": "1.5", "model_name": '"m"'},
    Checked: {"low": "0", "model_name": '"m"'},
    TimeSeriesRequest: {
        "history": "[1.5, 2]",
        "horizon": "3",
        "frequency": '"1h"',
        "model_name": '"m"',
    },
    TabularRequest: {
        "context_X": "[[1.5,2]]",
        "context_y": "[1]",
        "query_X": "[[1, 2]]",
        "model_name": '"m"',
    },
    TextRequest: {"text": '"hello"', "model_name": '"m"'},
}


def line_of(fields: list[tuple[str, str]], gap: str = "") -> bytes:
    text = ",".join(f"{gap}{json.dumps(name)}{gap}:{gap}{value}" for name, value in fields)
    return ("{" + text + gap + "}").encode("utf-8", "surrogatepass")
