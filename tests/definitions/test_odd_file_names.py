"""Files whose names or first bytes a reader could take for something else."""

from __future__ import annotations

import polars as pl
import pyarrow as pa
import pytest

from sheaf_dagster.definitions.row_views import view_for
from sheaf_dagster.storage import Location

VIEWS = [
    pytest.param(list, list, id="list"),
    pytest.param(pl.DataFrame, pl.DataFrame.to_dicts, id="polars"),
    pytest.param(pl.LazyFrame, lambda x: x.collect().to_dicts(), id="polars query"),
    pytest.param(pa.Table, pa.Table.to_pylist, id="arrow"),
]


@pytest.mark.parametrize(("annotation", "rows"), VIEWS)
@pytest.mark.parametrize("name", ["a*", "a?", "[a]", "{a,ab}"])
def test_a_name_is_no_pattern(name, annotation, rows, tmp_path):
    for other in ("a", "ab"):
        (tmp_path / f"{other}.jsonl").write_text('{"of": "another file"}\n')
    path = tmp_path / f"{name}.jsonl"
    path.write_text('{"of": "this file"}\n')

    made = view_for(annotation).make([Location.of(str(path))], annotation)

    assert rows(made) == [{"of": "this file"}]


@pytest.mark.parametrize(("annotation", "rows"), VIEWS)
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b'\xef\xbb\xbf{"n": 1}\n', [{"n": 1}]),
        (b'\xef\xbb\xbf\r\n\n{"n": 1}\r\n \n{"n": 2}', [{"n": 1}, {"n": 2}]),
        (b"\n \r\n\n", []),
    ],
    ids=["byte order mark", "blank lines", "blank lines alone"],
)
def test_marks_and_blank_lines_are_no_rows(text, expected, annotation, rows, tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(text)

    made = view_for(annotation).make([Location.of(str(path))], annotation)

    assert rows(made) == expected
