"""What is made of Python's values in less time is what Arrow makes of them."""

from __future__ import annotations

import enum
import math

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sheaf_dagster.batch.rows.arrays import all_finite, vectors

DOUBLES, FLOATS = pa.list_(pa.float64()), pa.list_(pa.float32())
TABLES = pa.list_(DOUBLES)
NUMBERS = st.floats() | st.sampled_from([-0.0, 1e39, -(2.0**128 - 2.0**103), 2.0**-149, 0.1])
OTHERS = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=2)


class Half(float, enum.Enum):
    VALUE = 0.5


def lists(items, width: int):
    return st.lists(items, min_size=width, max_size=width)


def rows(items):
    """Vectors of one width, and now and then something else."""
    one = st.integers(0, 40).flatmap(lambda n: lists(items, n))
    equal = st.integers(0, 40).flatmap(lambda n: st.lists(lists(items, n), min_size=1, max_size=70))
    return equal | st.lists(one | st.none() | one.map(tuple), min_size=1, max_size=5)


def in_bytes(array: pa.Array) -> bytes:
    """The array as it is stored, in which not a number is one."""
    sink = pa.BufferOutputStream()
    batch = pa.record_batch([array], names=["v"])
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


@given(
    rows(NUMBERS) | rows(NUMBERS | OTHERS) | st.lists(rows(NUMBERS), min_size=1, max_size=4),
    st.sampled_from([DOUBLES, FLOATS, TABLES, pa.list_(pa.int64()), pa.list_(pa.float64(), 2)]),
)
@example([[1.0] * 15, [2.0] * 15], DOUBLES)
@example([[1.0] * 16, [2.0] * 16], DOUBLES)
@example([[1.0] * 2**16], FLOATS)
@example([[1.0]] * 2**16, DOUBLES)
@example([[1.0, Half.VALUE]], DOUBLES)
@example([[[1.0, 2.0]], [], [[3.0, 4.0], [5.0, 6.0]]], TABLES)
def test_vectors_are_what_arrow_makes_of_them(values, type_):
    made = vectors(values, type_)

    if made is not None:
        made.validate(full=True)
        assert in_bytes(made) == in_bytes(pa.array(values, type_))


@pytest.mark.parametrize("type_", [DOUBLES, FLOATS])
def test_vectors_of_one_width_take_the_short_way(type_):
    assert vectors([[1.0, math.nan], [math.inf, -0.0]], type_) is not None
    assert vectors([[[1.0, 2.0]], [[3.0, 4.0]]], pa.list_(type_)) is not None


@given(st.lists(NUMBERS | st.none(), max_size=5), st.integers(0, 5))
def test_a_number_that_is_not_finite_is_seen_among_those_that_count(values, start):
    finite = all(v is None or math.isfinite(v) for v in values[start:])

    assert all_finite(pa.array(values, pa.float64()).slice(start)) == finite
    assert all_finite(pa.array([values[:start], values[start:]], DOUBLES).slice(1)) == finite
