"""Responses in columns are written, or refused, as those that are made one by one."""

from __future__ import annotations

import enum
import io
import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, FiniteFloat, ValidationError

from sheaf_dagster import BaseResponse, ResponseColumns
from sheaf_dagster.batch.rows.answer_columns import AnswerColumns, settled
from sheaf_dagster.batch.rows.answered import answers_for
from sheaf_dagster.batch.rows.columns import columns_of
from sheaf_dagster.storage.formats import JsonLines, Table
from sheaf_dagster.storage.formats.parquet import Parquet
from tests.toys import NumberRequest, NumberResponse

ROWS = 3
REQUESTS = [NumberRequest(request_id=UUID(int=i), model_name="m", value=i) for i in range(ROWS)]


class Colour(enum.StrEnum):
    RED = "red"
    BLUE = "blue"


class Odd(enum.Enum):
    ONE = "one"


class Level(enum.IntEnum):
    LOW = 1


class Kinds(BaseResponse):
    """A field of each kind."""

    model_type: Literal["number"] = "number"
    number: float = 0.0
    share: float = Field(default=0.5, ge=0, lt=1)
    finite: FiniteFloat = 0.0
    whole: int = 0
    small: int = Field(default=1, gt=-5, le=5)
    word: str = "none"
    short: str = Field(default="ab", min_length=2, max_length=3)
    yes: bool = True
    colour: Colour = Colour.RED
    odd: Odd | None = None
    level: Level | None = None
    kind: Literal["a", "b"] = "a"
    digit: Literal[1, 2] = 1
    either: int | float = 0
    label: str | float | bool | None = None
    numbers: list[float] = []  # noqa: RUF012
    maybe: list[float | None] | None = None
    finite_numbers: list[FiniteFloat] = []  # noqa: RUF012
    few: list[int] = Field(default_factory=list, max_length=2)
    few_numbers: list[float] = Field(default_factory=list, max_length=2)
    words: list[str] = []  # noqa: RUF012
    table: dict[str, list[float]] = {}  # noqa: RUF012
    scores: dict[str, float] | None = None
    nested: list[list[float]] | None = None
    cube: list[list[list[float]]] | None = None
    few_lists: list[Annotated[list[float], Field(max_length=2)]] = Field([], max_length=1)
    id: UUID | None = None
    anything: Any = None


def table_of(floats: str) -> Table:
    return Table(Parquet(), columns_of(Kinds, floats).serialize().to_pybytes())


FORMS = {"jsonl": JsonLines(), "float64": table_of("float64"), "float32": table_of("float32")}


def written(form: str, answer: Callable[[], Sequence[BaseModel]]) -> Any:
    """What is stored, and how many numbers became null; or what is said of the rows that can't be."""
    making, errors = answers_for(FORMS[form], ROWS), []
    try:
        answers = answer()
    except Exception as e:
        return repr(e)
    try:
        bad = making.add(range(ROWS), answers)
    except Exception:
        bad = 0
        for i, one in enumerate(answers):
            try:
                bad += making.add([i], [one])
            except Exception as e:
                errors.append((i, repr(e)))
    if errors:
        return errors
    content = making.content()
    if form == "jsonl":
        return content, bad
    file = io.BytesIO()
    pq.write_table(pa.ipc.open_file(content).read_all(), file)
    return file.getvalue(), bad


def by_hand(columns: dict[str, Any]) -> list[Kinds]:
    """The responses that say what columns do."""

    def value(column: Any, i: int) -> Any:
        if isinstance(column, np.ndarray):
            return column.tolist()[i]
        return column[i] if isinstance(column, (list, tuple)) else column

    return [
        Kinds(
            request_id=request.request_id,
            model_name="m",
            **{name: value(column, i) for name, column in columns.items()},
        )
        for i, request in enumerate(REQUESTS)
    ]


def assert_as_by_hand(columns: dict[str, Any], form: str) -> None:
    expected = written(form, lambda: by_hand(columns))
    found = written(form, lambda: settled(ResponseColumns(Kinds, REQUESTS, columns)))
    assert found == expected


def each(items, rows: int = ROWS):
    return st.lists(items, min_size=rows, max_size=rows)


def arrays(items, *shape: int):
    size = math.prod((ROWS, *shape))
    return each(items, size).map(lambda v: np.array(v).reshape(ROWS, *shape))


FLOATS = st.floats() | st.sampled_from([-0.0, 1e39, 1.0])
INTS = st.integers(-9, 9) | st.sampled_from([2**53 + 1, 2**63, 2**64, 10**400])
TEXTS = st.sampled_from(
    [
        "",
        "a",
        "ab",
        "red",
        "one",
        "1",
        "1.5",
        "nan",
        "true",
        "\ud800",
        "ü",
        str(UUID(int=7)),
        "a" * 32,
    ]
)
OBJECTS = st.sampled_from(
    [
        *(np.float64(1.5), np.float32(0.1), np.int64(1), np.bool_(True), np.str_("a")),
        *(Colour.RED, Odd.ONE, Level.LOW, UUID(int=5), b"a", np.float64("nan")),
        *((1.0, 2.0), {1.0}, frozenset([1.0]), np.arange(2.0), np.arange(2)),
    ]
)
SCALARS = st.none() | FLOATS | INTS | TEXTS | st.booleans() | OBJECTS
VECTORS = st.lists(FLOATS, max_size=3)
ITEMS = [
    *(FLOATS, INTS, TEXTS, st.booleans(), FLOATS | st.none(), SCALARS, VECTORS),
    *(st.lists(FLOATS | st.none(), max_size=3), st.lists(INTS, max_size=3)),
    *(st.lists(TEXTS, max_size=2), st.lists(VECTORS, max_size=2), st.lists(SCALARS, max_size=3)),
    *(st.dictionaries(TEXTS, s, max_size=2) for s in (FLOATS, VECTORS, SCALARS)),
]
COLUMNS = st.one_of(
    *map(each, ITEMS),
    *(arrays(FLOATS, *shape) for shape in [(), (1,), (2,), (2, 2), (2, 2, 2)]),
    *(arrays(st.floats(width=32), *shape).map(np.float32) for shape in [(), (2,)]),
    *(arrays(st.integers(-5, 5), *shape) for shape in [(), (2,)]),
    arrays(st.booleans()),
    arrays(st.floats(width=16), 2).map(np.float16),
    arrays(FLOATS, 2).map(lambda a: a[::-1, ::-1]),
    arrays(FLOATS, 2).map(lambda a: a.astype(">f8")),
    arrays(FLOATS, 2).map(np.ma.masked_invalid),
    each(SCALARS).map(lambda v: np.array([*v, None], object)[:-1]),
    st.just(np.zeros((ROWS, 0))),
    FLOATS | INTS | TEXTS | st.none() | st.dictionaries(TEXTS, FLOATS, max_size=2),
)
NAMES = [n for n in Kinds.model_fields if n not in ("request_id", "model_type", "model_name")]


@settings(max_examples=300)
@given(
    st.dictionaries(st.sampled_from(NAMES), COLUMNS, min_size=1, max_size=2),
    st.sampled_from([*FORMS]),
)
def test_columns_are_written_as_the_responses_that_are_made_of_them(columns, form):
    assert_as_by_hand(columns, form)


FITTING = {
    "number": arrays(FLOATS) | arrays(st.floats(width=32)).map(np.float32) | each(FLOATS),
    "share": arrays(st.floats(0, 1, exclude_max=True)),
    "whole": arrays(st.integers(-(2**63), 2**63 - 1)),
    "word": each(TEXTS),
    "yes": arrays(st.booleans()),
    "colour": each(st.sampled_from([*Colour, "blue"])),
    "maybe": arrays(FLOATS, 2) | each(st.none() | st.lists(st.none() | FLOATS, max_size=3)),
    "numbers": arrays(FLOATS, 1) | arrays(FLOATS, 3) | each(VECTORS) | st.just(np.zeros((ROWS, 0))),
    "few_numbers": arrays(FLOATS, 2) | arrays(st.floats(width=32), 1).map(np.float32),
    "nested": arrays(FLOATS, 2, 2) | each(st.lists(VECTORS, max_size=2)),
    "cube": arrays(FLOATS, 1, 2, 2) | arrays(FLOATS, 2, 2) | arrays(FLOATS, 2, 0, 1),
    "few_lists": st.sampled_from([(1, 2), (2, 2), (1, 3), (1, 1), (0, 1)]).flatmap(
        lambda shape: arrays(FLOATS, *shape)
    ),
    "scores": each(st.dictionaries(TEXTS, FLOATS, max_size=2)),
    "metadata": each(st.dictionaries(TEXTS, SCALARS | VECTORS, max_size=2)),
    "anything": each(SCALARS | VECTORS),
    "id": each(st.uuids() | st.none()),
}


@settings(max_examples=300)
@given(
    st.sets(st.sampled_from([*FITTING]), min_size=1, max_size=4).flatmap(
        lambda names: st.fixed_dictionaries({name: FITTING[name] for name in sorted(names)})
    ),
    st.sampled_from([*FORMS]),
)
def test_columns_that_fit_are_written_as_the_responses_that_are_made_of_them(columns, form):
    assert_as_by_hand(columns, form)


@pytest.mark.parametrize(
    "columns",
    [
        {"number": np.arange(3.0), "numbers": np.ones((3, 2), np.float32)},
        {"whole": np.arange(3), "yes": np.array([True, False, True]), "word": [*"abc"]},
        {"numbers": [[1.0], [], [2.0]], "id": [UUID(int=1), None, None]},
    ],
)
def test_plain_columns_become_no_responses(columns):
    answers = settled(ResponseColumns(Kinds, REQUESTS, columns))

    assert isinstance(answers, AnswerColumns)
    assert repr([*answers]) == repr(by_hand(columns))
    assert repr(answers[-1]) == repr(answers[1:][-1])
    assert len(answers) == ROWS


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"finite": np.array([1.0, np.nan, 2.0])}, "finite number"),
        ({"finite_numbers": np.array([[1.0], [np.inf], [2.0]])}, "finite number"),
        ({"share": np.array([0.5, np.nan, 0.5])}, "less than 1"),
        ({"share": np.array([0.5, -1.0, 0.5])}, "greater than or equal to 0"),
        ({"few_numbers": np.ones((3, 3))}, "at most 2 items"),
        ({"numbers": np.ma.masked_equal(np.eye(3), 1)}, "valid number"),
        ({"numbers": np.ones(3)}, "valid list"),
    ],
)
def test_what_the_class_refuses_is_refused(columns, said):
    with pytest.raises(ValidationError, match=said):
        settled(ResponseColumns(Kinds, REQUESTS, columns))


def test_answers_are_their_own_whatever_becomes_of_the_backends_arrays():
    vectors, numbers, lists = np.ones((3, 2)), np.ones(3), [[1.0], [2.0], [3.0]]
    columns = {"numbers": vectors, "number": numbers, "maybe": lists}
    expected = written("float64", lambda: by_hand(columns))

    answers = settled(ResponseColumns(Kinds, REQUESTS, columns))
    vectors[:], numbers[:], lists[0][0] = 7.0, 7.0, 7.0
    lists.clear()

    assert isinstance(answers, AnswerColumns)
    assert written("float64", lambda: answers) == expected


class More(Kinds):
    """Has a field that the contract hasn't."""

    score: float


def test_a_field_for_which_there_is_no_column_is_not_left_out():
    answers = settled(ResponseColumns(More, REQUESTS, {"score": np.arange(3.0)}))
    assert isinstance(answers, AnswerColumns)

    with pytest.raises(TypeError, match="'score' is not a field of the contract"):
        answers_for(FORMS["float64"], ROWS).add(range(ROWS), answers)


def test_a_list_of_responses_stays_what_it_is():
    answers = [NumberResponse(request_id=UUID(int=1), model_name="m", value=1.0)]

    assert settled(answers) is answers
    assert settled(None) is None
