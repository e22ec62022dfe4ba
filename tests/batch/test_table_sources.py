"""Sources as other tools leave them: folders of tables, columns of other names, constants."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from sheaf_dagster import (
    BaseRequest,
    BatchRunner,
    BatchSpec,
    InputValidationError,
    SourceError,
    SpecError,
)
from sheaf_dagster.batch.estimate import estimate_job
from sheaf_dagster.batch.rows.requests import RowContract
from sheaf_dagster.batch.rows.sample import sample_output
from sheaf_dagster.cli.commands import main
from sheaf_dagster.contracts import contract_for
from sheaf_dagster.storage import source_digest
from tests.conftest import read_rows
from tests.toys import doubler

RENAMED = {"columns": {"value": "sales", "note": "sku"}, "fields": {"model_name": "m"}}


def job(source: Path | list[str], **fields) -> BatchSpec:
    first = Path(source if isinstance(source, Path) else source[0])
    sink = first.parent.parent / "out.jsonl"
    given = source if isinstance(source, list) else str(source)
    return BatchSpec(**{"source": given, "sink": str(sink), "compute": "local", **fields})


def run(spec: BatchSpec):
    return BatchRunner(doubler(), on_progress=None).run(spec)


@pytest.fixture
def days(tmp_path) -> Path:
    """A folder as Spark and Dagster's partitions leave it."""
    folder = tmp_path / "sales"
    for day, values in ((9, [1.0, 2.0]), (10, [3.0])):
        path = folder / f"group={day}" / "part-0.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.table({"sales": values, "sku": ["a"] * len(values)}), path)
        (path.parent / "_SUCCESS").touch()
    return folder


def test_a_folder_of_tables_is_read_with_its_columns_and_what_its_folders_say(days):
    spec = job(days, **RENAMED)

    result = run(spec)

    rows = read_rows(result.sink)
    assert [(r["value"], r["note"], r["model_name"]) for r in rows] == [
        (6.0, "a", "m"),
        (2.0, "a", "m"),
        (4.0, "a", "m"),
    ]
    sample = sample_output(doubler(), spec)
    assert sample.in_order
    assert [asked["group"] for asked, _ in sample.pairs] == [10]
    assert result.source_digest == source_digest(spec.source)
    runner = BatchRunner(doubler(), on_progress=None)
    assert runner.fingerprint(spec) == result.fingerprint
    (days / "group=9").rename(days / "group=8")
    assert runner.fingerprint(spec) != result.fingerprint


def test_other_columns_or_constants_make_another_job(days):
    runner = BatchRunner(doubler(), on_progress=None)
    specs = [
        job(days, **RENAMED),
        job(days, **{**RENAMED, "fields": {"model_name": "n"}}),
        job(days, **{**RENAMED, "columns": {"value": "sales"}}),
    ]
    assert len({runner.fingerprint(spec) for spec in specs}) == 3


def test_a_row_that_breaks_the_contract_is_named_by_its_file_row_and_column(days):
    table = pa.table({"sales": pa.array([1.0, None]), "sku": ["a", "b"]})
    pq.write_table(table, days / "group=9" / "part-0.parquet")
    with pytest.raises(InputValidationError) as raised:
        run(job(days, **RENAMED))
    where = f"{days}/group=9/part-0.parquet, row 2, column 'sales', field 'value': Field required"
    assert where in str(raised.value)
    assert "Fix these rows" in str(raised.value)


def test_a_column_that_isnt_there_is_named_with_those_that_are(days):
    pq.write_table(pa.table({"sale": [1.0]}), days / "group=9" / "part-0.parquet")
    said = r"part-0.parquet has no column 'sales', .* did you mean 'sale'\?.* columns: sale"
    with pytest.raises(SourceError, match=said):
        run(job(days, **RENAMED))


def test_lines_are_mapped_as_tables_are(tmp_path):
    path = tmp_path / "in" / "in.jsonl"
    path.parent.mkdir()
    path.write_text('\ufeff{"sales": 1.5, "sku": "a", "group": 7}\n\n{"sku": "b", "sales": "x"}\n')
    spec = job(path, **{**RENAMED, "fields": {"model_name": "m", "group": 3}})

    with pytest.raises(InputValidationError, match=r"line 3, field 'value': .*number"):
        run(spec)
    result = run(spec.model_copy(update={"row_limit": 1}))

    assert [(r["value"], r["note"]) for r in read_rows(result.sink)] == [(3.0, "a")]
    assert sample_output(doubler(), spec).pairs[0][0]["group"] == 3
    contract = RowContract.of(contract_for("number"))
    assert estimate_job(contract, [spec.model_copy(update={"row_limit": 1})], []).invalid_rows == 0


def test_a_list_of_tables_is_one_source_and_its_files_are_named(days):
    files = [str(days / f"group={day}" / "part-0.parquet") for day in (9, 10)]
    assert [r["value"] for r in read_rows(run(job(files, **RENAMED)).sink)] == [2.0, 4.0, 6.0]


class Untyped(BaseRequest):
    value: float


def test_a_model_type_that_a_contract_asks_for_is_implied_by_a_table_alone():
    contract = RowContract("number", Untyped)
    assert contract.fields_of(job([".../in.parquet"])).implied == {"model_type": "number"}
    assert not contract.fields_of(job([".../in.parquet"]))
    assert RowContract.of(contract_for("number")).fields_of(job(["a/b"])).implied == {}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"columns": {"a": "b"}, "fields": {"a": 1}}, "'a' is given by columns and by fields"),
        ({"fields": {"a": {1, 2}}}, "fields must hold JSON values only"),
        ({"fields": {"a": float("nan")}}, "fields must hold JSON values only"),
    ],
)
def test_a_map_that_cannot_work_is_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        job(["a/in.parquet"], **fields)


def test_a_sink_in_the_folder_of_the_source_is_refused(days):
    spec = job(days, sink=f"{days}/out.parquet", **RENAMED)
    with pytest.raises(SpecError, match="lies in the folder of the source"):
        run(spec)


def test_the_command_line_takes_columns_and_constants(days):
    args = ["validate", str(days), "--model-type", "number", "--json"]
    mapped = ["--column", "value=sales", "--column", "note=sku", "--field", 'model_name="m"']
    shell = CliRunner()

    bare = shell.invoke(main, args)
    full = shell.invoke(main, [*args, *mapped])
    both = shell.invoke(main, [*args, *mapped, "--field", "value=1"])

    assert (bare.exit_code, full.exit_code) == (3, 0)
    assert (both.exit_code, "'value' is given by columns and by fields" in both.output) == (2, True)
    assert json.loads(full.stdout.splitlines()[-1])["rows"] == 3


def test_a_kept_field_that_no_table_has_is_refused_with_the_columns_there_are(days):
    for sink in ("out.jsonl", "out.parquet"):
        spec = job(days, **RENAMED, keep=["skuu"], sink=str(days.parent / sink))
        with pytest.raises(SpecError, match="no column 'skuu' in .* and in 1 more; did you mean"):
            run(spec)


def test_a_kept_field_may_be_said_by_a_folder_or_be_in_some_tables(days):
    other = days / "group=10" / "part-0.parquet"
    pq.write_table(pq.read_table(other).append_column("shop", [["s"]]), other)

    spec = job(days, **RENAMED, keep=["group", "shop"])

    run(spec)

    kept = [(row["group"], row["shop"]) for row in read_rows(spec.sink)]
    assert kept == [(10, "s"), (9, None), (9, None)]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([0, 2**40], pa.timestamp("s", "UTC")),
        pa.array([0, 2**30], pa.date32()),
        pa.array([None, {"at": 2**40}], pa.struct([("at", pa.timestamp("s"))])),
    ],
    ids=lambda column: str(column.type),
)
def test_a_date_beyond_all_years_is_named_with_its_row_and_column(column, tmp_path):
    source = tmp_path / "in" / "far.parquet"
    source.parent.mkdir()
    table = {"model_name": ["m", "m"], "value": [1.0, 2.0], "when": column}
    pq.write_table(pa.table(table), source)

    with pytest.raises(SourceError, match=r"far\.parquet, row 2: the value in column 'when'"):
        run(job(source))


@pytest.mark.parametrize("keep", [[], ["k"]])
def test_a_map_with_a_key_twice_is_named_with_its_row_and_column(keep, tmp_path):
    source = tmp_path / "in" / "twice.parquet"
    source.parent.mkdir()
    maps = pa.array([[("a", 1)], [("b", 1), ("a", 2), ("b", 3)]], pa.map_(pa.string(), pa.int64()))
    pq.write_table(pa.table({"model_name": ["m", "m"], "value": [1.0, 2.0], "k": maps}), source)

    said = (
        r"twice\.parquet, row 2: the value in column 'k' can't be read \(the key 'b' is there twice"
    )
    with pytest.raises(SourceError, match=said):
        run(job(source, keep=keep))


@pytest.mark.parametrize(
    ("mapped", "said"),
    [
        ({"columns": {"valeu": "sales"}}, "columns: NumberRequest has no field 'valeu'; did you"),
        ({"fields": {"grup": 3}}, "fields: NumberRequest has no field 'grup'; did you mean"),
        ({"fields": {"zzz": 3}}, r"has no field 'zzz'\. Its fields: .*value"),
    ],
)
def test_what_is_mapped_to_no_field_is_refused_with_the_fields_there_are(days, mapped, said):
    with pytest.raises(SpecError, match=said):
        run(job(days, **mapped))

    run(
        job(
            days,
            columns={"value": "sales", "shop": "sku"},
            fields={"model_name": "m"},
            keep=["shop"],
        )
    )
