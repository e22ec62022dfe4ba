"""Answers as columns say what they say as lines."""

from __future__ import annotations

import datetime as dt
import enum
import math
import uuid
from typing import Any, Literal

import orjson
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, RootModel

from sheaf_dagster import BaseResponse, SpecError
from sheaf_dagster.batch.rows.answered import answers_for
from sheaf_dagster.batch.rows.columns import columns_of
from sheaf_dagster.contracts import (
    EmbeddingResponse,
    TabularResponse,
    TimeSeriesResponse,
    Vector,
    contract_for,
)
from sheaf_dagster.storage.formats import JsonLines, Table
from sheaf_dagster.storage.formats.parquet import Parquet


def table_of(model: type[BaseModel], floats="float64") -> Table:
    return Table(Parquet(), columns_of(model, floats).serialize().to_pybytes())


def written(form, answers, order=None) -> tuple[list[Any], int]:
    """What a part of a format says in JSON, and how many numbers became null."""
    making = answers_for(form, len(answers))
    order = order or [*range(len(answers))]
    bad = sum(making.add([i], [answers[i]]) for i in order)
    stored = form.stored(making.content())
    return [orjson.loads(line) for line in form.lines(stored)], bad


def as_fields(row: dict) -> dict:
    """An error row may leave fields out that are null in an answer."""
    return {name: value for name, value in row.items() if value is not None}


class Colour(enum.StrEnum):
    RED = "red"
    BLUE = "blue"


class Box(BaseModel):
    label: str
    corners: list[float]
    inner: dict[str, int] | None


class Rich(BaseResponse):
    model_type: Literal["rich"] = "rich"
    boxes: list[Box] = []
    best: Box | None
    colour: Colour
    at: dt.datetime | None = None
    sizes: dict[str, list[float]] | None = None
    choice: int | str = 0
    either: float | int = 0
    pair: tuple[float, float] = (0.0, 0.0)
    vector: Vector | None = None
    note: str = Field(default="", serialization_alias="n_o_t_e")
    anything: Any = None


FLOATS = st.floats(allow_nan=True) | st.integers(-(2**53), 2**53).map(float)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
BOXES = st.builds(
    Box,
    label=TEXTS,
    corners=st.lists(FLOATS, max_size=3),
    inner=st.none() | st.dictionaries(TEXTS, st.integers(-(2**63), 2**63 - 1), max_size=2),
)
IDS = st.uuids()
RICH = st.builds(
    Rich,
    request_id=IDS,
    model_name=TEXTS,
    metadata=st.dictionaries(TEXTS, st.none() | FLOATS | TEXTS, max_size=2),
    boxes=st.lists(BOXES, max_size=2),
    best=st.none() | BOXES,
    colour=st.sampled_from(Colour),
    at=st.none() | st.datetimes(),
    sizes=st.none() | st.dictionaries(TEXTS, st.lists(FLOATS, max_size=2), max_size=2),
    choice=st.integers(0, 9) | TEXTS,
    either=st.integers(-(2**53), 2**53) | FLOATS,
    pair=st.tuples(FLOATS, FLOATS),
    vector=st.none() | st.lists(FLOATS, min_size=2, max_size=3),
    anything=st.none() | TEXTS | st.lists(st.integers(0, 2**64 - 1)),
)
EMBEDDED = st.integers(1, 3).flatmap(
    lambda width: st.builds(
        EmbeddingResponse,
        request_id=IDS,
        model_name=TEXTS,
        embeddings=st.lists(st.lists(FLOATS, min_size=width, max_size=width), max_size=3),
        dim=st.just(width),
    )
)
FORECASTS = st.builds(
    TimeSeriesResponse,
    request_id=IDS,
    model_name=TEXTS,
    mean=st.lists(FLOATS, max_size=3),
    quantiles=st.none() | st.dictionaries(TEXTS, st.lists(FLOATS, max_size=3), max_size=3),
    samples=st.none() | st.lists(st.lists(FLOATS, max_size=2), max_size=2),
    horizon=st.integers(1, 9),
    frequency=TEXTS,
)
ERROR_LINES = st.builds(
    lambda row, kind, message, code: orjson.dumps(
        {
            "request_id": str(row),
            "model_name": "m",
            "error": {
                "type": kind,
                "message": message,
                **({} if code is None else {"status_code": code}),
            },
        }
    ),
    IDS,
    TEXTS,
    TEXTS,
    st.none() | st.integers(400, 599),
)


@pytest.mark.parametrize(
    ("model", "answers"),
    [(Rich, RICH), (EmbeddingResponse, EMBEDDED), (TimeSeriesResponse, FORECASTS)],
    ids=["rich", "embeddings", "forecasts"],
)
@given(data=st.data())
def test_columns_say_what_lines_say_in_the_order_of_the_rows(model, answers, data):
    given_answers = data.draw(st.lists(answers | ERROR_LINES, min_size=1, max_size=6))
    order = data.draw(st.permutations(range(len(given_answers))))

    lines, null_in_lines = written(JsonLines(), given_answers)
    rows, null_in_rows = written(table_of(model), given_answers, order)

    assert [as_fields(row) for row in rows] == [as_fields(line) for line in lines]
    answered = [i for i, line in enumerate(lines) if "error" not in line]
    assert [rows[i] for i in answered] == [lines[i] for i in answered]
    assert null_in_rows == null_in_lines


def test_the_columns_are_the_contracts_fields_with_the_id_first():
    number, text = pa.float64(), pa.string()
    box = pa.struct(
        [("label", text), ("corners", pa.list_(number)), ("inner", pa.map_(text, pa.int64()))]
    )

    schema = columns_of(Rich)

    assert {f.name: f.type for f in schema} == {
        "request_id": text,
        "model_type": text,
        "model_name": text,
        "metadata": text,
        "boxes": pa.list_(box),
        "best": box,
        "colour": text,
        "at": text,
        "sizes": pa.map_(text, pa.list_(number)),
        "choice": text,
        "either": number,
        "pair": pa.list_(number, 2),
        "vector": pa.list_(number),
        "note": text,
        "anything": text,
        "error_type": text,
        "error_message": text,
        "error_status_code": pa.int64(),
    }
    assert schema.names[0] == "request_id"
    halved = columns_of(Rich, "float32")
    assert halved.field("pair").type == pa.list_(pa.float32(), 2)
    assert halved.field("choice").type == text


@pytest.mark.parametrize(
    "model_type",
    ["embedding", "features", "openai_batch", "tabular", "tensors", "text", "time_series"],
)
def test_every_built_in_contract_has_columns(model_type):
    schema = columns_of(contract_for(model_type).response)
    assert schema.names[0] in ("request_id", "custom_id", "model_type", "id")


class Outdone(BaseResponse):
    error_type: str


def test_a_contract_with_a_field_named_like_a_column_of_ours_is_refused():
    with pytest.raises(SpecError, match=r"Outdone has a field 'error_type'.*name the sink .jsonl"):
        columns_of(Outdone)


def test_a_contract_without_fields_is_refused():
    with pytest.raises(SpecError, match="has no fields, so its answers have no columns"):
        columns_of(RootModel[list[float]])


class Open(BaseResponse):
    model_config = ConfigDict(extra="allow")
    model_type: str = "open"


def test_further_fields_have_a_column_of_their_own():
    answers = [
        Open(request_id=uuid.uuid4(), model_name="m", extra={"a": [1, None]}, more="x"),
        Open(request_id=uuid.uuid4(), model_name="m"),
    ]
    lines, _ = written(JsonLines(), answers)
    assert written(table_of(Open), answers)[0] == lines


def test_a_field_that_no_column_holds_is_never_left_out_silently():
    class More(EmbeddingResponse):
        extra: int = 1

    answer = More(request_id=uuid.uuid4(), model_name="m", embeddings=[], dim=1)
    with pytest.raises(TypeError, match="'extra' is not a field of the contract"):
        written(table_of(EmbeddingResponse), [answer])


def test_an_error_row_of_an_own_form_is_kept_whole():
    line = orjson.dumps({"request_id": "a", "failed": {"why": "x"}, "error": True})
    (row,), _ = written(table_of(TabularResponse), [line])
    assert row == orjson.loads(line)


@given(answers=st.lists(RICH, min_size=1, max_size=3))
def test_the_line_of_an_answer_is_taken_as_the_answer(answers):
    lines, _ = written(JsonLines(), answers)
    assert written(table_of(Rich), [orjson.dumps(line) for line in lines])[0] == lines


def test_a_number_beyond_float32_is_null_and_counted():
    answer = EmbeddingResponse(
        request_id=uuid.uuid4(),
        model_name="m",
        embeddings=[[1e300, 0.1, -math.inf, 3.4028235e38]],
        dim=4,
    )
    (row,), bad = written(table_of(EmbeddingResponse, "float32"), [answer])
    as_float32 = pa.scalar(0.1, pa.float32()).as_py()
    largest = pa.scalar(3.4028235e38, pa.float32()).as_py()
    assert row["embeddings"] == [[None, as_float32, None, largest]]
    assert bad == 2


@pytest.mark.parametrize("number", [float("inf"), float("nan")])
def test_a_number_that_is_not_finite_is_counted_in_a_value_of_any_type(number):
    answer = Rich(
        request_id=uuid.UUID(int=1), model_name="", metadata={"x": number}, boxes=[], best=None,
        colour=Colour.RED, at=None, sizes=None, choice=0, either=0, pair=(0.0, 0.0), vector=None,
    )  # fmt: skip

    assert written(table_of(Rich), [answer], [0])[1] == written(JsonLines(), [answer])[1] == 1
