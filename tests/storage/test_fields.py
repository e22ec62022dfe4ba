"""Columns become fields by name, by a map, by constants and by the folders of a file."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sheaf_dagster import SourceError, SourceNotFoundError
from sheaf_dagster.storage.formats.fields import FieldMap
from sheaf_dagster.storage.source_files import files_of

VALUES = st.recursive(
    st.none() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("ab"), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip
NAMES = st.sampled_from("abcd")
MAPS = st.builds(
    FieldMap,
    columns=st.dictionaries(NAMES, NAMES, max_size=2),
    constants=st.dictionaries(NAMES, VALUES, max_size=1),
    defaults=st.dictionaries(NAMES, VALUES, max_size=1),
)


@given(fields=MAPS, row=st.dictionaries(NAMES, VALUES))
def test_a_line_has_the_fields_that_its_values_have_as_a_row(fields, row):
    line = fields.line(orjson.dumps(row))
    assert orjson.loads(line) == fields.row(row)


def test_a_mapped_column_is_one_field_and_no_other():
    fields = FieldMap(
        columns={"history": "sales", "model_name": "sku", "note": "sku"},
        constants={"horizon": 7},
        defaults={"day": 5, "sku": "none"},
    )
    row = {"sales": [1, None], "sku": "a", "horizon": 3, "history": "old", "more": 1}
    assert fields.row(row) == {
        "day": 5,
        "more": 1,
        "history": [1, None],
        "model_name": "a",
        "note": "a",
        "horizon": 7,
    }
    assert [fields.column_of(p) for p in ("history.3", "horizon", "more")] == [
        "sales.3",
        "",
        "more",
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"a": 12345678901234567890123, "b": 1.10}', b'{"b":1.10,"c":12345678901234567890123}'),
        (b'{"a": NaN}\r', b'{"c": NaN}'),
        (b'{"a": 1', b'{"a": 1'),
        (b"[1]", b"[1]"),
        (b"", b""),
        (b"\xff", b"\xff"),
    ],
)
def test_values_are_copied_as_they_are_and_what_is_no_row_is_left_for_the_validation(line, said):
    assert FieldMap(columns={"c": "a"}).line(line) == said


def test_a_folder_is_its_files_of_rows_with_what_its_folders_say(place):
    for name in (
        "in/day=10/b.parquet",
        "in/day=9/a.parquet",
        "in/day=9/shop=a%20b/c.parquet",
        "in/day=9/_SUCCESS",
        "in/_temporary/x.parquet",
        "in/day=9/.a.parquet.crc",
        "in/read.me",
    ):
        place.put(name, b"x")

    found = files_of([place.at("in"), place.at("in/day=10/b.parquet")])

    base = f"{place.at('in').uri}/"
    assert [(f.location.uri.removeprefix(base), f.folders) for f in found] == [
        ("day=10/b.parquet", {"day": 10}),
        ("day=9/a.parquet", {"day": 9}),
        ("day=9/shop=a%20b/c.parquet", {"day": 9, "shop": "a b"}),
        ("day=10/b.parquet", {}),
    ]


def test_a_folder_of_names_that_are_no_numbers_says_text(place):
    place.put("in/code=007/a.jsonl", b"x")
    place.put("in/code=8/a.jsonl.gz", b"x")
    assert [f.folders for f in files_of([place.at("in/")])] == [{"code": "007"}, {"code": "8"}]


def test_a_folder_that_holds_no_rows_or_two_kinds_of_them_is_refused(place):
    place.put("empty/_SUCCESS", b"")
    place.put("both/a.jsonl", b"")
    place.put("both/a.parquet", b"")
    with pytest.raises(SourceNotFoundError, match="is a folder, and no .parquet or .jsonl file"):
        files_of([place.at("empty/")])
    with pytest.raises(SourceError, match=r"holds tables \(a.parquet\) and lines of JSON \(a.json"):
        files_of([place.at("both")])
