"""What rows are loaded as: the annotation of whoever takes them says it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from upath import UPath

import sheaf_dagster as sd
from tests.conftest import read_rows
from tests.definitions.rows import DAYS, failure, returning, row, run, taking
from tests.toys import NumberResponse


def type_name(value: Any) -> str | None:
    """A case's name, the same in each process; that of a function would hold its address."""
    return None if inspect.isfunction(value) else str(value)


ROWS = [
    {"id": "a", "mean": [1.0, 2.5], "quantiles": {"0.1": [0.5, None]}, "at": "2026-01-01"},
    {"id": "b", "mean": None, "quantiles": None, "at": "2026-01-02"},
]


@pytest.mark.parametrize("compression", ["", "zst"])
@pytest.mark.parametrize(
    ("annotation", "rows"),
    [
        (Any, lambda x: x),
        (list[dict[str, Any]], lambda x: x),
        (Iterator, lambda x: x),
        (sd.RowStream, lambda x: [*x] if list(x) == list(x) else None),
        (pd.DataFrame, lambda x: x.to_dict("records")),
        (pl.DataFrame, lambda x: x.to_dicts()),
        (pl.LazyFrame, lambda x: x.collect().to_dicts()),
        (
            pa.Table,
            lambda x: [{**r, "at": str(r["at"].date())} for r in x.to_pylist()],
        ),
        (UPath, lambda x: read_rows(x) if not str(x).endswith("zst") else ROWS),
        (str, lambda x: ROWS if x.endswith((".jsonl", ".jsonl.zst")) else None),
        (Path, lambda x: ROWS if x.is_file() else None),
        (pd.DataFrame | None, lambda x: x.to_dict("records")),
    ],
    ids=type_name,
)
def test_the_annotation_says_what_rows_are_loaded_as(annotation, rows, compression, tmp_path):
    seen: list = []

    run(tmp_path, returning(ROWS), taking(annotation, seen), compression=compression)

    assert rows(seen[0]) == ROWS


@pytest.mark.parametrize(
    ("annotation", "size"),
    [(list[dict], len), (pd.DataFrame, len), (pl.DataFrame, len), (pa.Table, len)],
    ids=str,
)
def test_an_empty_file_is_an_empty_table(annotation, size, tmp_path):
    seen: list = []

    run(tmp_path, returning([]), taking(annotation, seen))

    assert size(seen[0]) == 0


def test_days_are_joined_or_kept_apart_as_the_annotation_says(tmp_path):
    joined, apart, untyped, one = [], [], [], []
    numbers = returning(lambda c: [{"day": c.partition_key}], partitions_def=DAYS)
    daily = {"partitions_def": DAYS, "backfill_policy": dg.BackfillPolicy.single_run()}
    for key in DAYS.get_partition_keys():
        run(tmp_path, numbers, key=key)

    for annotation, seen in (
        (pl.DataFrame, joined),
        (dict[str, list[dict]], apart),
        (Any, untyped),
    ):
        run(tmp_path, numbers.to_source_asset(), taking(annotation, seen))
    run(
        tmp_path,
        numbers.to_source_asset(),
        taking(dict[str, list[dict]], one, **daily),
        key="2026-01-02",
    )

    days = DAYS.get_partition_keys()
    assert joined[0]["day"].to_list() == days
    assert apart[0] == untyped[0] == {day: [{"day": day}] for day in days}
    assert one[0] == {"2026-01-02": [{"day": "2026-01-02"}]}


def test_a_missing_day_is_an_error_or_passed_over(tmp_path):
    numbers = returning(lambda c: [{"day": c.partition_key}], partitions_def=DAYS)
    for key in DAYS.get_partition_keys()[:3]:
        run(tmp_path, numbers, key=key)
    seen: list = []

    def lenient(annotation):
        return taking(
            annotation,
            seen,
            ins={"numbers": dg.AssetIn(metadata={"allow_missing_partitions": True})},
        )

    strict = run(tmp_path, numbers.to_source_asset(), taking(list[dict], []), raise_on_error=False)
    for annotation in (list[dict], dict[str, list[dict]]):
        run(tmp_path, numbers.to_source_asset(), lenient(annotation))

    assert "2026-01-04.jsonl does not exist" in failure(strict)
    assert len(seen[0]) == len(seen[1]) == 3


@pytest.mark.parametrize(
    ("annotation", "rows"),
    [
        (list, list),
        (list[dict], list),
        (list[dict[str, Any]], list),
        (list[NumberResponse], list),
        (dict, dict),
        (dict[str, Any], dict),
        (dict[str, list[dict]], dict),
        (dict[str, pd.DataFrame], dict),
        (Iterator, list),
        (sd.RowStream, list),
        (sd.RowStream[NumberResponse], list),
        (pd.DataFrame, lambda x: x.to_dict("records")),
        (pl.DataFrame, lambda x: x.to_dicts()),
        (pl.LazyFrame, lambda x: x.collect().to_dicts()),
        (pa.Table, lambda x: x.to_pylist()),
        (list[Path], list),
        (list[str], list),
        (Any, list),
    ],
    ids=type_name,
)
def test_where_there_is_no_day_the_argument_is_an_empty_one(annotation, rows, tmp_path):
    before = own_day_before(annotation)
    numbers = returning([row(1)], partitions_def=DAYS).to_source_asset()
    seen: list = []
    lenient = {"numbers": dg.AssetIn(metadata={"allow_missing_partitions": True})}
    taker = taking(annotation, seen, partitions_def=DAYS, ins=lenient)

    first = run(tmp_path, before(seen), key="2026-01-01")
    gap = run(tmp_path, numbers, taker, key="2026-01-02")

    assert first.success
    assert gap.success
    assert len(seen) == 2
    for loaded in seen:
        assert loaded is not None
        assert len(rows(loaded)) == 0


@pytest.mark.parametrize(
    "annotation", [pd.DataFrame | None, list[dict] | None, Path | None], ids=str
)
def test_where_there_is_no_day_an_optional_argument_is_none(annotation, tmp_path):
    seen: list = []

    run(tmp_path, own_day_before(annotation)(seen), key="2026-01-01")

    assert seen == [None]


@pytest.mark.parametrize("annotation", [Path, str])
def test_where_there_is_no_day_there_is_no_path_and_what_to_do_is_said(annotation, tmp_path):
    result = run(tmp_path, own_day_before(annotation)([]), key="2026-01-01", raise_on_error=False)

    assert f"annotate it with {annotation.__name__} | None" in failure(result)


def test_an_asset_that_takes_its_own_day_before_runs_day_by_day(tmp_path):
    seen: list = []
    running = own_day_before(list[dict])(seen)

    for key in DAYS.get_partition_keys()[:3]:
        run(tmp_path, running, key=key)

    assert [len(s) for s in seen] == [0, 1, 2]


def own_day_before(annotation: Any):
    """An asset whose argument is its own partition of the day before, and which adds a row."""

    def made(seen: list) -> dg.AssetsDefinition:
        def days(days):
            seen.append(list(days) if isinstance(days, Iterator) else days)
            return dg.Output([row(1), *days] if isinstance(days, list) else [row(1)])

        days.__annotations__ = {"days": annotation}
        mapping = dg.TimeWindowPartitionMapping(start_offset=-1, end_offset=-1)
        ins = {"days": dg.AssetIn(partition_mapping=mapping)}
        return dg.asset(days, partitions_def=DAYS, ins=ins)

    return made


def test_error_rows_are_no_responses(tmp_path):
    error = {"request_id": "x", "error": {"type": "ValueError", "message": "no"}}
    numbers = returning([error])

    result = run(tmp_path, numbers, taking(list[NumberResponse], []), raise_on_error=False)

    assert "1 of 1 rows are not valid as NumberResponse" in failure(result)
    assert "load such files as list[dict]" in failure(result)


def test_an_annotation_that_no_view_serves_is_refused(tmp_path):
    numbers = returning([row(1)])

    result = run(tmp_path, numbers, taking(set, []), raise_on_error=False)

    assert "rows can't be loaded as" in failure(result)


@pytest.mark.parametrize("line", [b'{"request_id": "a", "error": {}}', b"[1]", b"{"])
def test_a_row_of_any_type_that_names_none_is_named(line, tmp_path):
    numbers = returning([row(1)])
    run(tmp_path, numbers)
    (tmp_path / "numbers.jsonl").write_bytes(line + b"\n")

    result = run(
        tmp_path,
        numbers.to_source_asset(),
        taking(list[sd.BaseResponse], []),
        raise_on_error=False,
    )

    assert "numbers.jsonl, line 1: is no" in failure(result)
